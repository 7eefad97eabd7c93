//! kube-proxy's chains in the tables of iptables-nft.
//!
//! Place in the flow: each table is read, a pure [`plan()`] says which rules and chains go, and
//! nf_tables removes them: jumps first, so that no packet meets a half-empty chain, then the contents
//! of the chains, then the chains. Must not know our own table.

use std::collections::{BTreeMap, BTreeSet};

use super::{CleanupError, Removed, TABLES, Table};
use crate::model::Family;
use crate::netlink::iptables::{IpTables, Jump, Listing};

/// Removes kube-proxy's jumps and chains of a family; errors are collected in `removed`.
pub fn remove(family: Family, removed: &mut Removed) {
    let mut kernel = match IpTables::open(family) {
        Ok(kernel) => kernel,
        Err(source) => {
            removed.errors.push(CleanupError::Open { what: "nf_tables", source });
            return;
        }
    };
    for table in &TABLES {
        match kernel.read(table.name, |chain| table.owns_chain(chain)) {
            Ok(listing) => {
                carry_out(&mut kernel, family, table, &plan(table, &listing), removed);
            }
            Err(source) => {
                removed.errors.push(CleanupError::Read { family, table: table.name, source });
            }
        }
    }
}

fn carry_out(
    kernel: &mut IpTables,
    family: Family,
    table: &Table,
    removal: &Removal,
    removed: &mut Removed,
) {
    // After it no rule of kube-proxy is in force.
    if let Err(source) = kernel.delete_rules(table.name, &removal.jumps, &removal.emptied) {
        removed.errors.push(CleanupError::Chains { family, table: table.name, source });
        return;
    }
    removal.account(family, table.name, removed);
    if kernel.delete_chains(table.name, &removal.deleted).is_ok() {
        return;
    }
    // Something that is no plain jump, a verdict map for one, uses a chain: take them one by one.
    for chain in &removal.deleted {
        match kernel.delete_chains(table.name, std::slice::from_ref(chain)) {
            Err(source) if source.raw_os_error() != Some(libc::ENOENT) => {
                removed.chains -= 1;
                let (table, chain) = (table.name, chain.clone());
                removed.errors.push(CleanupError::Chain { family, table, chain, source });
            }
            _ => {}
        }
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::cleanup) struct Removal {
    /// Jumps by chain and handle.
    pub(in crate::cleanup) jumps: Vec<(String, u64)>,
    /// Chains to be emptied, in order.
    pub(in crate::cleanup) emptied: Vec<String>,
    /// Those of them that are then used by nobody, in order.
    pub(in crate::cleanup) deleted: Vec<String>,
    /// The others, with a chain that uses each.
    pub(in crate::cleanup) kept: BTreeMap<String, String>,
}

impl Removal {
    pub(in crate::cleanup) fn is_empty(&self) -> bool {
        self.jumps.is_empty() && self.emptied.is_empty()
    }

    /// Notes what went, and what had to stay.
    pub(in crate::cleanup) fn account(
        &self,
        family: Family,
        table: &'static str,
        removed: &mut Removed,
    ) {
        removed.jumps += self.jumps.len();
        removed.chains += self.deleted.len();
        removed.errors.extend(self.kept.iter().map(|(chain, used_by)| CleanupError::Used {
            family,
            table,
            chain: chain.clone(),
            used_by: used_by.clone(),
        }));
    }
}

/// Decides by names about chains, by target and comment about jumps.
pub(in crate::cleanup) fn plan(table: &Table, listing: &Listing) -> Removal {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cleanup::TABLES;

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
        assert!(removal.is_empty());
    }
}
