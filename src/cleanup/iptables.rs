//! kube-proxy's chains in the tables of iptables-nft.
//!
//! iptables-nft keeps its tables in nf_tables: table `nat` of iptables is table `ip nat`, a comment is
//! an xt match called `comment`. Place in the flow: each table is read, a pure [`plan`] says which
//! rules and chains go, and nf_tables removes them: jumps first, so that no packet meets a half-empty
//! chain, then the contents of the chains, then the chains. Must not know our own table.
//! Source: linux/netfilter/nf_tables.h, nf_tables_compat.h.

pub(super) mod listing;
pub(super) mod plan;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::owned::{TABLES, Table};
use super::{CleanupError, Removed};
use crate::model::Family;
use crate::node::nfnetlink::{Attributes, Netlink, Request};
use listing::{SUBSYSTEM, TABLE_NAME, nfproto};
use plan::{Removal, plan};

const DELETE_CHAIN: u8 = 5; // NFT_MSG_DELCHAIN
const DELETE_RULE: u8 = 8; // NFT_MSG_DELRULE

const CHAIN_NAME: u16 = 3; // NFTA_CHAIN_NAME
const RULE_CHAIN: u16 = 2; // NFTA_RULE_CHAIN
const RULE_HANDLE: u16 = 3; // NFTA_RULE_HANDLE

/// Removes kube-proxy's jumps and chains of a family; errors are collected in `removed`.
pub fn remove(family: Family, removed: &mut Removed) {
    let mut netlink = match Netlink::open(NETLINK_NETFILTER) {
        Ok(netlink) => netlink,
        Err(source) => {
            removed.errors.push(CleanupError::Open { what: "nf_tables", source });
            return;
        }
    };
    for table in &TABLES {
        match listing::read(&mut netlink, family, table) {
            Ok(listing) => {
                let removal = plan(table, &listing);
                carry_out(&mut netlink, family, table, &removal, removed);
            }
            Err(source) => {
                removed.errors.push(CleanupError::Read { family, table: table.name, source });
            }
        }
    }
}

fn carry_out(
    netlink: &mut Netlink,
    family: Family,
    table: &Table,
    removal: &Removal,
    removed: &mut Removed,
) {
    match netlink.batches(SUBSYSTEM, &requests(family, table, removal)) {
        Ok(()) => removal.account(family, table.name, removed),
        Err(source) => {
            removed.errors.push(CleanupError::Chains { family, table: table.name, source });
        }
    }
}

fn requests(family: Family, table: &Table, removal: &Removal) -> Vec<Request> {
    let request =
        |command, attributes| Request::nfnetlink(SUBSYSTEM, command, nfproto(family), attributes);
    let rules_of = |chain: &str| {
        Attributes::default().put_str(TABLE_NAME, table.name).put_str(RULE_CHAIN, chain)
    };
    let jumps = removal.jumps.iter().map(|(chain, handle)| {
        request(DELETE_RULE, rules_of(chain).put(RULE_HANDLE, &handle.to_be_bytes()))
    });
    // Without a handle every rule of the chain goes.
    let emptied = removal.emptied.iter().map(|chain| request(DELETE_RULE, rules_of(chain)));
    let deleted = removal.deleted.iter().map(|chain| {
        let attributes = Attributes::default().put_str(TABLE_NAME, table.name);
        request(DELETE_CHAIN, attributes.put_str(CHAIN_NAME, chain))
    });
    jumps.chain(emptied).chain(deleted).collect()
}
