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

use std::io;

use crate::model::Family;

/// Something that could not be removed. Starting goes on without it (B-208).
#[derive(Debug, thiserror::Error)]
pub enum CleanupError {
    #[error("opening a netlink socket for {what}")]
    Open {
        /// nf_tables, ipset, IPVS or links.
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("reading {} table {table}", family.nft())]
    Read {
        family: Family,
        table: &'static str,
        #[source]
        source: io::Error,
    },
    /// The kernel refused to change a table; kube-proxy's rules in it are still in force.
    #[error("removing kube-proxy's chains from {} table {table}", family.nft())]
    Chains {
        family: Family,
        table: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("deleting chain {chain} of {} table {table}", family.nft())]
    Chain {
        family: Family,
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
        family: Family,
        table: &'static str,
        /// The chain that stays.
        chain: String,
        /// A chain with a rule that jumps to it.
        used_by: String,
    },
    #[error("destroying ipset {set}")]
    IpSet {
        set: String,
        #[source]
        source: io::Error,
    },
    #[error("removing IPVS services")]
    Services(#[source] io::Error),
    /// IPVS services that were left, because their address is not on `kube-ipvs0`.
    #[error("{0} IPVS services stay: their addresses are not on kube-ipvs0")]
    ForeignServices(usize),
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

// The names that belong to kube-proxy: what may be removed, and nothing else (sections 6.5, 6.6).

/// A table of iptables and what kube-proxy has in it.
struct Table {
    name: &'static str,
    /// Chains of iptables and of ipvs mode.
    chains: &'static [&'static str],
    /// Beginnings of the names of chains per service and endpoint.
    prefixes: &'static [&'static str],
    /// Jumps from built-in chains: from, to, comment.
    jumps: &'static [(&'static str, &'static str, &'static str)],
}

impl Table {
    fn owns_chain(&self, chain: &str) -> bool {
        self.chains.contains(&chain) || self.prefixes.iter().any(|prefix| chain.starts_with(prefix))
    }

    fn owns_jump(&self, from: &str, to: &str, comment: &str) -> bool {
        self.jumps.contains(&(from, to, comment))
    }
}

const PORTALS: &str = "kubernetes service portals";
const EXTERNAL: &str = "kubernetes externally-visible service portals";
const FIREWALL: &str = "kubernetes load balancer firewall";
const IPVS_FIREWALL: &str = "kube-proxy firewall rules";
const IPVS_FILTER: &str = "kubernetes ipvs access filter";

/// The tables kube-proxy writes to. Jumps go before chains, and filter before nat, so that what is
/// taken away first is what rejects.
const TABLES: [Table; 3] = [
    Table {
        name: "filter",
        chains: &[
            "KUBE-SERVICES",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FORWARD",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-FIREWALL",
            "KUBE-PROXY-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-SOURCE-RANGES-FIREWALL",
            "KUBE-IPVS-FILTER",
            "KUBE-IPVS-OUT-FILTER",
        ],
        prefixes: &[],
        jumps: &[
            ("INPUT", "KUBE-EXTERNAL-SERVICES", EXTERNAL),
            ("FORWARD", "KUBE-EXTERNAL-SERVICES", EXTERNAL),
            ("INPUT", "KUBE-NODEPORTS", "kubernetes health check service ports"),
            ("FORWARD", "KUBE-SERVICES", PORTALS),
            ("OUTPUT", "KUBE-SERVICES", PORTALS),
            ("FORWARD", "KUBE-FORWARD", "kubernetes forwarding rules"),
            ("INPUT", "KUBE-PROXY-FIREWALL", FIREWALL),
            ("OUTPUT", "KUBE-PROXY-FIREWALL", FIREWALL),
            ("FORWARD", "KUBE-PROXY-FIREWALL", FIREWALL),
            ("INPUT", "KUBE-NODE-PORT", "kubernetes health check rules"),
            ("INPUT", "KUBE-PROXY-FIREWALL", IPVS_FIREWALL),
            ("FORWARD", "KUBE-PROXY-FIREWALL", IPVS_FIREWALL),
            ("INPUT", "KUBE-IPVS-FILTER", IPVS_FILTER),
            ("OUTPUT", "KUBE-IPVS-OUT-FILTER", IPVS_FILTER),
        ],
    },
    Table {
        name: "nat",
        chains: &[
            "KUBE-SERVICES",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-MARK-MASQ",
            "KUBE-PROXY-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-LOAD-BALANCER",
        ],
        prefixes: &["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-FW-", "KUBE-EXT-"],
        jumps: &[
            ("OUTPUT", "KUBE-SERVICES", PORTALS),
            ("PREROUTING", "KUBE-SERVICES", PORTALS),
            ("POSTROUTING", "KUBE-POSTROUTING", "kubernetes postrouting rules"),
        ],
    },
    Table { name: "mangle", chains: &["KUBE-PROXY-CANARY"], prefixes: &[], jumps: &[] },
];

/// The ipsets of ipvs mode without their `KUBE-`; the IPv6 twins begin with `KUBE-6-`.
const IPSETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// The dummy link of ipvs mode.
const LINK: &str = "kube-ipvs0";
