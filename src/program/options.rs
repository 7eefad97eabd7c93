//! What the configuration and the node decide about the program.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Family, PerFamily, Protocol};

/// How traffic from this cluster's pods is recognised (section 5.2).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum LocalPods {
    /// It is not: nothing counts as a pod.
    #[default]
    Unknown,
    /// By source address: the cluster's or the node's pod CIDR.
    Cidr(IpNet),
    /// By exact input interface: the pods' bridge.
    Interface(String),
    /// By the start of the input interface's name.
    InterfacePrefix(String),
}

/// Which destination addresses accept NodePort traffic in one family (section 5.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodePortMatch {
    /// Every local address except loopback, asked from the fib per packet (B-153).
    AnyLocal,
    /// Exactly these (B-152); sorted, without duplicates.
    Addresses(Vec<IpAddr>),
}

impl Default for NodePortMatch {
    fn default() -> Self {
        NodePortMatch::Addresses(Vec::new())
    }
}

/// What becomes of NodePorts on loopback addresses in nftables mode (KEP-6032).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LocalhostNodePorts {
    /// The rules say nothing of them.
    #[default]
    Untouched,
    /// They are refused.
    Refused,
    /// A proxy listens there for TCP, and for UDP if so configured; the rest is refused.
    Proxied {
        /// For UDP too.
        udp: bool,
    },
}

impl LocalhostNodePorts {
    pub fn refused(self) -> &'static [Protocol] {
        match self {
            LocalhostNodePorts::Untouched => &[],
            LocalhostNodePorts::Refused => &[Protocol::Tcp, Protocol::Udp, Protocol::Sctp],
            LocalhostNodePorts::Proxied { udp: false } => &[Protocol::Udp, Protocol::Sctp],
            LocalhostNodePorts::Proxied { udp: true } => &[Protocol::Sctp],
        }
    }

    /// Whether a proxy listens for a protocol.
    pub fn is_proxied(self, protocol: Protocol) -> bool {
        matches!(self, LocalhostNodePorts::Proxied { .. }) && !self.refused().contains(&protocol)
    }
}

/// Everything outside services that shapes the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleOptions {
    /// Masquerade all ClusterIP traffic (B-129).
    pub masquerade_all: bool,
    /// The local-traffic detector of each family.
    pub local_pods: PerFamily<LocalPods>,
    /// NodePort addresses of each family.
    pub node_ports: PerFamily<NodePortMatch>,
    /// Primary addresses of the node: a source range that contains one admits the Service's own
    /// load-balancer addresses too (B-161).
    pub node_ips: PerFamily<Option<IpAddr>>,
    /// Refuse unused ports of ClusterIPs and drop unallocated service addresses (B-136, B-137):
    /// nftables mode; iptables mode lets them fall through.
    pub guard_cluster_ips: bool,
    /// NodePorts on 127.0.0.0/8: iptables mode's `localhostNodePorts`, IPv4 only.
    pub localhost_node_ports: bool,
    /// NodePorts on loopback addresses of each family where packets cannot be sent on: nftables mode.
    pub localhost: PerFamily<LocalhostNodePorts>,
    /// Services come before other programs' port forwarding to the same address: iptables mode.
    pub before_host_ports: bool,
    /// Drop forwarded packets that conntrack calls invalid: iptables mode.
    pub drop_invalid: bool,
    /// Masquerade hairpins of every reachable endpoint, not only of local ones: iptables mode.
    pub hairpin_everywhere: bool,
    /// Source ranges restrict services without endpoints too (B-162): nftables mode.
    pub restrict_without_endpoints: bool,
    /// Count new connections by frontend.
    pub service_counters: bool,
}

/// Where the node is reached, and what follows from it: all of this may change while the program runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeAddressing {
    /// The options, as the node's addresses have them.
    pub options: RuleOptions,
    /// Addresses that accept NodePort traffic or, where every one does, all addresses of the node.
    pub local_addresses: PerFamily<Vec<IpAddr>>,
}

impl RuleOptions {
    /// nftables mode without detector and without NodePort addresses.
    pub fn nftables() -> Self {
        RuleOptions {
            masquerade_all: false,
            local_pods: PerFamily::default(),
            node_ports: PerFamily::default(),
            node_ips: PerFamily::default(),
            guard_cluster_ips: true,
            localhost_node_ports: false,
            localhost: PerFamily::default(),
            before_host_ports: false,
            drop_invalid: false,
            hairpin_everywhere: false,
            restrict_without_endpoints: true,
            service_counters: false,
        }
    }

    /// Whether packets are sent on from NodePorts on some loopback address of a family.
    pub fn serves_localhost(&self, family: Family) -> bool {
        let chosen = match &self.node_ports[family] {
            NodePortMatch::AnyLocal => true,
            NodePortMatch::Addresses(addresses) => addresses.iter().any(IpAddr::is_loopback),
        };
        self.localhost_node_ports && family == Family::V4 && chosen
    }

    /// Whether NodePorts answer on every loopback address of a family.
    pub fn loopback_node_ports(&self, family: Family) -> bool {
        self.localhost_node_ports
            && family == Family::V4
            && self.node_ports[family] == NodePortMatch::AnyLocal
    }
}
