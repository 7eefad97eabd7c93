//! The names that belong to kube-proxy: what may be removed, and nothing else (sections 6.5, 6.6).
//!
//! Place in the flow: read by [`super::iptables`] and [`super::ipvs`]. Pure data. KUBE-FIREWALL,
//! KUBE-KUBELET-CANARY and KUBE-IPTABLES-HINT are kubelet's and do not appear (B-204).

/// A table of iptables and what kube-proxy has in it.
pub(super) struct Table {
    pub(super) name: &'static str,
    /// Chains of iptables and of ipvs mode.
    pub(super) chains: &'static [&'static str],
    /// Beginnings of the names of chains per service and endpoint.
    pub(super) prefixes: &'static [&'static str],
    /// Jumps from built-in chains: from, to, comment.
    pub(super) jumps: &'static [(&'static str, &'static str, &'static str)],
}

impl Table {
    pub(super) fn owns_chain(&self, chain: &str) -> bool {
        self.chains.contains(&chain) || self.prefixes.iter().any(|prefix| chain.starts_with(prefix))
    }

    pub(super) fn owns_jump(&self, from: &str, to: &str, comment: &str) -> bool {
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
pub(super) const TABLES: [Table; 3] = [
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
pub(super) const IPSETS: [&str; 17] = [
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
pub(super) const LINK: &str = "kube-ipvs0";
