//! Removes what an iptables- or ipvs-mode kube-proxy left on the node (section 6.6).
//!
//! Place in the flow: run at `--cleanup`, and at start after our own rules are in force, in
//! the network namespace of the calling thread. Talks to the kernel itself: nf_tables for
//! iptables-nft ([`iptables`]), socket options for iptables-legacy ([`legacy`]), and for ipvs mode
//! generic netlink, ipset and rtnetlink ([`ipvs`]). Must not know our own table, which is removed by a transaction like any other change.
//!
//! What cannot be removed is collected and the rest goes on (B-208, B-023).

pub mod iptables;
pub mod ipvs;
pub mod legacy;
mod owned;

use std::io;

use crate::model::Family;

/// Something that could not be removed. Starting goes on without it (B-208).
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    /// No socket.
    #[error("opening a netlink socket for {what}")]
    Open {
        /// nf_tables, ipset, IPVS or links.
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// A table's chains and rules could not be read.
    #[error("reading {} table {table}", family.nft())]
    Read {
        /// Of which family.
        family: Family,
        /// Which table.
        table: &'static str,
        #[source]
        source: io::Error,
    },
    /// The kernel refused to change a table; kube-proxy's rules in it are still in force.
    #[error("removing kube-proxy's chains from {} table {table}", family.nft())]
    Chains {
        /// Of which family.
        family: Family,
        /// Which table.
        table: &'static str,
        #[source]
        source: io::Error,
    },
    /// A chain was emptied but the kernel refused to delete it.
    #[error("deleting chain {chain} of {} table {table}", family.nft())]
    Chain {
        /// Of which family.
        family: Family,
        /// Which table.
        table: &'static str,
        /// The chain that stays.
        chain: String,
        /// Why; EBUSY if something uses it.
        #[source]
        source: io::Error,
    },
    /// A chain was emptied but stays, because a rule of somebody else jumps to it.
    #[error("chain {chain} of {} table {table} stays: chain {used_by} uses it", family.nft())]
    Used {
        /// Of which family.
        family: Family,
        /// Which table.
        table: &'static str,
        /// The chain that stays.
        chain: String,
        /// A chain with a rule that jumps to it.
        used_by: String,
    },
    /// An ipset could not be destroyed.
    #[error("destroying ipset {set}")]
    IpSet {
        /// Its name.
        set: String,
        #[source]
        source: io::Error,
    },
    /// IPVS services could not be listed or deleted.
    #[error("removing IPVS services")]
    Services(#[source] io::Error),
    /// IPVS services that were left, because their address is not on `kube-ipvs0`.
    #[error("{0} IPVS services stay: their addresses are not on kube-ipvs0")]
    ForeignServices(usize),
    /// The link `kube-ipvs0` could not be looked at or deleted.
    #[error("deleting link kube-ipvs0")]
    Link(#[source] rtnetlink::Error),
}

/// What was removed.
#[derive(Debug, Default)]
pub struct Removed {
    /// Rules in chains of others that jumped to kube-proxy's chains.
    pub jumps: usize,
    /// Chains, with the rules in them.
    pub chains: usize,
    /// ipsets.
    pub sets: usize,
    /// IPVS virtual services.
    pub services: usize,
    /// `kube-ipvs0`.
    pub link: bool,
    /// What could not be removed.
    pub errors: Vec<CleanupError>,
}

/// Removes the remains of iptables and ipvs mode, both families. `root` is `/` outside tests.
///
/// Blocking, never to be called on an async worker: it waits for the lock of iptables and for the kernel.
pub fn other_modes(root: &std::path::Path) -> Removed {
    let mut removed = Removed::default();
    for family in Family::BOTH {
        iptables::remove(family, &mut removed);
        legacy::remove(root, family, &mut removed);
    }
    ipvs::remove(&mut removed);
    removed
}
