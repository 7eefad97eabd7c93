//! kube-proxy's chains in the tables of iptables-nft.
//!
//! iptables-nft keeps its tables in nf_tables: table `nat` of iptables is table `ip nat`, a comment is
//! an xt match called `comment`. Place in the flow: each table is read, a pure [`plan`] says which
//! rules and chains go, and nf_tables removes them: jumps first, so that no packet meets a half-empty
//! chain, then the contents of the chains, then the chains. Must not know our own table.
//! Source: linux/netfilter/nf_tables.h, nf_tables_compat.h.

mod listing;

use std::collections::{BTreeMap, BTreeSet};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::owned::{TABLES, Table};
use super::{CleanupError, Removed};
use crate::model::Family;
use crate::node::nfnetlink::{Attributes, Netlink, Request};
use listing::{Jump, Listing, SUBSYSTEM, TABLE_NAME, nfproto};

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

/// What goes from a table.
#[derive(Debug, Default, PartialEq, Eq)]
struct Removal {
    /// Jumps by chain and handle.
    jumps: Vec<(String, u64)>,
    /// Chains to be emptied, in order.
    emptied: Vec<String>,
    /// Those of them that are then used by nobody, in order.
    deleted: Vec<String>,
    /// The others, with a chain that uses each.
    kept: BTreeMap<String, String>,
}

fn plan(table: &Table, listing: &Listing) -> Removal {
    let owned: BTreeSet<&str> =
        listing.chains.iter().map(String::as_str).filter(|chain| table.owns_chain(chain)).collect();
    let ours = |jump: &&Jump| {
        let comment = jump.comment.as_deref().unwrap_or_default();
        table.owns_jump(&jump.from, &jump.to, comment)
    };
    let (jumps, foreign): (Vec<&Jump>, Vec<&Jump>) = listing
        .jumps
        .iter()
        .filter(|jump| owned.contains(jump.to.as_str()) && !owned.contains(jump.from.as_str()))
        .partition(ours);
    let kept: BTreeMap<String, String> =
        foreign.iter().map(|jump| (jump.to.clone(), jump.from.clone())).collect();
    let deleted = owned.iter().filter(|chain| !kept.contains_key(**chain));
    Removal {
        jumps: jumps.iter().map(|jump| (jump.from.clone(), jump.handle)).collect(),
        deleted: deleted.map(|chain| (*chain).to_owned()).collect(),
        emptied: owned.iter().map(|chain| (*chain).to_owned()).collect(),
        kept,
    }
}

fn carry_out(
    netlink: &mut Netlink,
    family: Family,
    table: &Table,
    removal: &Removal,
    removed: &mut Removed,
) {
    let requests = requests(family, table, removal);
    match netlink.batches(SUBSYSTEM, &requests) {
        Ok(()) => {
            removed.jumps += removal.jumps.len();
            removed.chains += removal.deleted.len();
        }
        Err(source) => {
            removed.errors.push(CleanupError::Chains { family, table: table.name, source });
        }
    }
    let table = table.name;
    removed.errors.extend(removal.kept.iter().map(|(chain, used_by)| CleanupError::Used {
        family,
        table,
        chain: chain.clone(),
        used_by: used_by.clone(),
    }));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn jump(from: &str, handle: u64, to: &str, comment: &str) -> Jump {
        let comment = Some(comment).filter(|c| !c.is_empty()).map(str::to_owned);
        Jump { from: from.to_owned(), handle, to: to.to_owned(), comment }
    }

    fn plan_nat(chains: &[&str], jumps: Vec<Jump>) -> Removal {
        let chains = chains.iter().map(|chain| (*chain).to_owned()).collect();
        plan(&TABLES[1], &Listing { chains, jumps })
    }

    // B-203, B-204, B-205: names decide about chains, target and comment about jumps.
    #[test]
    fn only_kube_proxys_own_goes() {
        let chains = [
            "PREROUTING",
            "KUBE-SERVICES",
            "KUBE-SVC-ABC",
            "KUBE-FIREWALL",
            "KUBE-KUBELET-CANARY",
            "KUBE-IPTABLES-HINT",
            "KUBE-ROUTER-X",
            "MINE",
        ];
        let jumps = vec![
            jump("PREROUTING", 4, "KUBE-SERVICES", "kubernetes service portals"),
            jump("PREROUTING", 5, "MINE", "kubernetes service portals"),
            jump("PREROUTING", 6, "KUBE-FIREWALL", ""),
            jump("KUBE-SERVICES", 7, "KUBE-SVC-ABC", ""),
            jump("KUBE-SERVICES", 8, "MINE", ""),
        ];
        let expected = Removal {
            jumps: vec![("PREROUTING".to_owned(), 4)],
            emptied: vec!["KUBE-SERVICES".to_owned(), "KUBE-SVC-ABC".to_owned()],
            deleted: vec!["KUBE-SERVICES".to_owned(), "KUBE-SVC-ABC".to_owned()],
            kept: BTreeMap::new(),
        };
        assert_eq!(plan_nat(&chains, jumps), expected);
    }

    // B-205, B-208: a foreign rule stays, and with it the chain it needs, empty.
    #[test]
    fn chains_in_foreign_use_are_emptied_and_stay() {
        let jumps = vec![
            jump("MINE", 9, "KUBE-MARK-MASQ", ""),
            jump("PREROUTING", 4, "KUBE-SERVICES", "another comment"),
        ];
        let removal = plan_nat(&["MINE", "KUBE-MARK-MASQ", "KUBE-SERVICES", "KUBE-SEP-1"], jumps);
        assert_eq!(removal.jumps, vec![]);
        assert_eq!(removal.emptied, ["KUBE-MARK-MASQ", "KUBE-SEP-1", "KUBE-SERVICES"]);
        assert_eq!(removal.deleted, ["KUBE-SEP-1"]);
        assert_eq!(removal.kept["KUBE-MARK-MASQ"], "MINE");
        assert_eq!(removal.kept["KUBE-SERVICES"], "PREROUTING");
    }

    // B-023: nothing there, nothing asked.
    #[test]
    fn nothing_to_do() {
        let removal = plan_nat(&["PREROUTING"], vec![jump("PREROUTING", 1, "MINE", "")]);
        assert_eq!(removal, Removal::default());
        assert_eq!(requests(Family::V4, &TABLES[1], &removal), vec![]);
    }
}
