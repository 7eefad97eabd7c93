//! kube-proxy's chains in the tables of iptables-nft.
//!
//! Place in the flow: each table is read, a pure [`plan()`] says which rules and chains go, and
//! nf_tables removes them: jumps first, so that no packet meets a half-empty chain, then the contents
//! of the chains, then the chains. Must not know our own table.

pub(super) mod plan;

use super::owned::{TABLES, Table};
use super::{CleanupError, Removed};
use crate::model::Family;
use crate::netlink::iptables::IpTables;
use plan::{Removal, plan};

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
