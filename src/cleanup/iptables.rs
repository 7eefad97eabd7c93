//! kube-proxy's chains in the tables of iptables-nft.
//!
//! iptables-nft keeps its tables in nf_tables: table `nat` of iptables is table `ip nat`, a comment is
//! an xt match called `comment`. Place in the flow: each table is read, a pure [`plan()`] says which
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
    if let Err(source) = netlink.batches(SUBSYSTEM, &emptying(family, table, removal)) {
        removed.errors.push(CleanupError::Chains { family, table: table.name, source });
        return;
    }
    removal.account(family, table.name, removed);
    let deletions: Vec<Request> =
        removal.deleted.iter().map(|chain| deletion(family, table, chain)).collect();
    if netlink.batches(SUBSYSTEM, &deletions).is_ok() {
        return;
    }
    // Something that is no plain jump, a verdict map for one, uses a chain: take them one by one.
    for (chain, request) in removal.deleted.iter().zip(deletions) {
        match netlink.batches(SUBSYSTEM, &[request]) {
            Err(source) if source.raw_os_error() != Some(libc::ENOENT) => {
                removed.chains -= 1;
                let (table, chain) = (table.name, chain.clone());
                removed.errors.push(CleanupError::Chain { family, table, chain, source });
            }
            _ => {}
        }
    }
}

/// Takes the jumps away and empties the chains; after it no rule of kube-proxy is in force.
fn emptying(family: Family, table: &Table, removal: &Removal) -> Vec<Request> {
    let request =
        |attributes| Request::nfnetlink(SUBSYSTEM, DELETE_RULE, nfproto(family), attributes);
    let rules_of = |chain: &str| {
        Attributes::default().put_str(TABLE_NAME, table.name).put_str(RULE_CHAIN, chain)
    };
    let jumps = removal
        .jumps
        .iter()
        .map(|(chain, handle)| request(rules_of(chain).put(RULE_HANDLE, &handle.to_be_bytes())));
    // Without a handle every rule of the chain goes.
    jumps.chain(removal.emptied.iter().map(|chain| request(rules_of(chain)))).collect()
}

fn deletion(family: Family, table: &Table, chain: &str) -> Request {
    let attributes =
        Attributes::default().put_str(TABLE_NAME, table.name).put_str(CHAIN_NAME, chain);
    Request::nfnetlink(SUBSYSTEM, DELETE_CHAIN, nfproto(family), attributes)
}
