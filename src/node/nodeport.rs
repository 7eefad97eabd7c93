//! On which addresses NodePorts are served.
//!
//! Place in the flow: the configuration's `nodePortAddresses`, the node IPs ([`super::object`]) and
//! the interfaces' addresses ([`super::addresses`]) become the match that the program is given; it
//! is decided anew whenever the addresses change. Pure: knows no interface and no table.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Family, NodeAddresses, PerFamily};
use crate::program::NodePortMatch;

/// `nodePortAddresses` after defaulting, in the configuration's order; nothing means every address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodePortAddresses(pub Vec<NodePortAddress>);

/// One entry of `nodePortAddresses`. Keywords stand beside CIDRs since 1.37.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodePortAddress {
    /// `primary`: the node IP of each family.
    Primary,
    /// `localhost`: the loopback network of each family.
    Localhost,
    /// `all`: every address of both families.
    All,
    Cidr(IpNet),
}

impl NodePortAddress {
    /// What a keyword stands for.
    pub fn keyword(text: &str) -> Option<Self> {
        match text {
            "primary" => Some(NodePortAddress::Primary),
            "localhost" => Some(NodePortAddress::Localhost),
            "all" => Some(NodePortAddress::All),
            _ => None,
        }
    }

    /// The entry as a network of a family; `None` if it has none there, or the node IP is unknown.
    fn net(self, node_ip: IpAddr, family: Family) -> Option<IpNet> {
        match self {
            NodePortAddress::Primary => (!node_ip.is_loopback()).then(|| IpNet::from(node_ip)),
            NodePortAddress::Localhost => Some(family.loopback()),
            NodePortAddress::All => Some(family.everything()),
            NodePortAddress::Cidr(net) => (Family::of_net(&net) == family).then_some(net),
        }
    }
}

impl NodePortAddresses {
    /// Whether loopback addresses of a family are named as such: `all` and wide CIDRs, which only
    /// contain them, do not count.
    pub fn name_loopback(&self, family: Family) -> bool {
        self.0.iter().any(|entry| match entry {
            NodePortAddress::Localhost => true,
            NodePortAddress::Primary | NodePortAddress::All => false,
            NodePortAddress::Cidr(net) => {
                Family::of_net(net) == family && net.network().is_loopback()
            }
        })
    }
}

/// Something an operator should be told about the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// An interface's loopback address is covered by the configuration and ignored; an error (B-155).
    LoopbackIgnored(IpAddr),
    /// The node IP is on no interface, so that no NodePort of its family works.
    NodeIpNotAssigned(IpAddr),
    /// `primary` without a node IP of the family: all addresses are served (Q-06, B-156).
    NoNodeIp(Family),
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Hint::LoopbackIgnored(ip) => {
                write!(f, "loopback address {ip} is in nodePortAddresses and is ignored")
            }
            Hint::NodeIpNotAssigned(ip) => {
                write!(f, "node IP {ip} is on no interface: NodePorts of its family do not work")
            }
            Hint::NoNodeIp(family) => {
                write!(f, "no {family} node IP: {family} NodePorts are served on all addresses")
            }
        }
    }
}

/// What [`nodeport_addresses`] decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePortDecision {
    /// Where NodePorts of the family are served.
    pub matched: NodePortMatch,
    /// What to log, in the order of the addresses.
    pub hints: Vec<Hint>,
}

/// Decides where NodePorts of a family are served (section 5.3).
///
/// `node_ips` are the effective ones of section 3.3; a loopback one counts as none. `localhost` keeps
/// IPv4's loopback addresses: iptables mode with `localhostNodePorts`.
pub fn nodeport_addresses(
    configured: &NodePortAddresses,
    node_ips: &PerFamily<IpAddr>,
    assigned: &NodeAddresses,
    family: Family,
    localhost: bool,
) -> NodePortDecision {
    let localhost = localhost && family == Family::V4;
    let node_ip = node_ips[family];
    let nets: Vec<IpNet> =
        configured.0.iter().filter_map(|entry| entry.net(node_ip, family)).collect();
    let primary = configured.0.contains(&NodePortAddress::Primary);
    // A list without a network of the family means every address.
    if nets.is_empty() || nets.iter().any(|net| net.prefix_len() == 0) {
        // `primary` stands for the node IPs that are known.
        let unknown = nets.is_empty() && primary;
        let hints = unknown.then_some(Hint::NoNodeIp(family)).into_iter().collect();
        return NodePortDecision { matched: NodePortMatch::AnyLocal, hints };
    }
    let mut decision = within(&nets, assigned, localhost);
    if primary && !node_ip.is_loopback() && !assigned.0.contains(&node_ip) {
        decision.hints.push(Hint::NodeIpNotAssigned(node_ip));
    }
    decision
}

fn within(nets: &[IpNet], assigned: &NodeAddresses, localhost: bool) -> NodePortDecision {
    let covered = |ip: &&IpAddr| nets.iter().any(|net| net.contains(*ip));
    let (loopback, mut addresses): (Vec<IpAddr>, Vec<IpAddr>) =
        assigned.0.iter().filter(covered).partition(|ip| ip.is_loopback() && !localhost);
    addresses.sort_unstable();
    addresses.dedup();
    NodePortDecision {
        matched: NodePortMatch::Addresses(addresses),
        hints: loopback.into_iter().map(Hint::LoopbackIgnored).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a literal address")
    }

    fn assigned() -> NodeAddresses {
        let texts = ["127.0.0.1", "10.0.0.5", "192.0.2.7", "192.0.2.8", "::1", "fd00::5"];
        NodeAddresses(texts.map(ip).to_vec())
    }

    fn decide(
        configured: &NodePortAddresses,
        node_ips: [&str; 2],
        family: Family,
    ) -> NodePortDecision {
        let node_ips = PerFamily { v4: ip(node_ips[0]), v6: ip(node_ips[1]) };
        nodeport_addresses(configured, &node_ips, &assigned(), family, false)
    }

    fn cidrs(texts: &[&str]) -> NodePortAddresses {
        listed(texts)
    }

    fn listed(texts: &[&str]) -> NodePortAddresses {
        let entry = |text: &&str| {
            let cidr = || NodePortAddress::Cidr(text.parse().expect("a literal CIDR"));
            NodePortAddress::keyword(text).unwrap_or_else(cidr)
        };
        NodePortAddresses(texts.iter().map(entry).collect())
    }

    fn exactly(texts: &[&str]) -> NodePortMatch {
        NodePortMatch::Addresses(texts.iter().copied().map(ip).collect())
    }

    const NODE: [&str; 2] = ["10.0.0.5", "fd00::5"];

    // B-152, B-157: assigned addresses within the CIDRs, and no other.
    #[test]
    fn cidrs_select_assigned_addresses() {
        let one = cidrs(&["192.0.2.0/24", "198.51.100.0/24", "fd00::/64"]);
        let v4 = decide(&one, NODE, Family::V4);
        assert_eq!(v4.matched, exactly(&["192.0.2.7", "192.0.2.8"]));
        assert_eq!(v4.hints, vec![]);
        assert_eq!(decide(&one, NODE, Family::V6).matched, exactly(&["fd00::5"]));
        let none = decide(&cidrs(&["203.0.113.0/24"]), NODE, Family::V4);
        assert_eq!(none.matched, exactly(&[]), "no address matches: NodePorts nowhere");
    }

    // B-153: a /0, an empty list and a list without the family leave the lookup to the kernel.
    #[test]
    fn match_all() {
        for (name, configured) in [
            ("empty", listed(&[])),
            ("all", listed(&["primary", "all"])),
            ("/0", cidrs(&["192.0.2.0/24", "0.0.0.0/0"])),
            ("only the other family", cidrs(&["fd00::/64"])),
        ] {
            assert_eq!(
                decide(&configured, NODE, Family::V4).matched,
                NodePortMatch::AnyLocal,
                "{name}"
            );
        }
    }

    // B-154, B-155: loopback addresses are never served, and the operator is told.
    #[test]
    fn loopback_cidr_is_ignored() {
        let v4 = decide(&cidrs(&["127.0.0.0/8"]), NODE, Family::V4);
        assert_eq!(v4.matched, exactly(&[]));
        assert_eq!(v4.hints, vec![Hint::LoopbackIgnored(ip("127.0.0.1"))]);
        let both = decide(&cidrs(&["::1/128", "fd00::/16"]), NODE, Family::V6);
        assert_eq!(both.matched, exactly(&["fd00::5"]));
        assert_eq!(both.hints, vec![Hint::LoopbackIgnored(ip("::1"))]);
    }

    // B-156: the node IP per family; a family without one is served on all addresses.
    #[test]
    fn primary_is_the_node_ip() {
        let v4 = decide(&listed(&["primary"]), NODE, Family::V4);
        assert_eq!(v4, NodePortDecision { matched: exactly(&["10.0.0.5"]), hints: vec![] });
        let v6 = decide(&listed(&["primary"]), ["10.0.0.5", "::1"], Family::V6);
        assert_eq!(v6.matched, NodePortMatch::AnyLocal);
        assert_eq!(v6.hints, vec![Hint::NoNodeIp(Family::V6)]);
    }

    // nothing matches, as upstream, but it is said.
    #[test]
    fn primary_on_no_interface() {
        let v4 = decide(&listed(&["primary"]), ["203.0.113.9", "::1"], Family::V4);
        assert_eq!(v4.matched, exactly(&[]));
        assert_eq!(v4.hints, vec![Hint::NodeIpNotAssigned(ip("203.0.113.9"))]);
    }

    // 1.37: keywords stand alone, together, and beside CIDRs.
    #[test]
    fn keywords_combine() {
        let both = listed(&["primary", "192.0.2.0/24"]);
        let v4 = decide(&both, NODE, Family::V4);
        assert_eq!(v4.matched, exactly(&["10.0.0.5", "192.0.2.7", "192.0.2.8"]));
        assert_eq!(decide(&both, NODE, Family::V6).matched, exactly(&["fd00::5"]));
        for (family, node_ip) in [(Family::V4, "10.0.0.5"), (Family::V6, "fd00::5")] {
            let local = decide(&listed(&["primary", "localhost"]), NODE, family);
            assert_eq!(local.matched, exactly(&[node_ip]), "{family}");
            let only = decide(&listed(&["localhost"]), NODE, family);
            assert_eq!(only.matched, exactly(&[]), "{family}: no other address serves NodePorts");
        }
        // Unlike `primary` alone, the list does name a network of the family.
        let v6 = decide(&listed(&["primary", "localhost"]), ["10.0.0.5", "::1"], Family::V6);
        assert_eq!(v6.matched, exactly(&[]));
    }

    // 1.37, KEP-6032: only what names loopback turns the localhost proxy on.
    #[test]
    fn loopback_is_named_or_only_contained() {
        let named = |texts: &[&str]| Family::BOTH.map(|family| listed(texts).name_loopback(family));
        assert_eq!(named(&["primary", "localhost"]), [true, true]);
        assert_eq!(named(&["0.0.0.0/0", "127.0.0.1/32"]), [true, false]);
        assert_eq!(named(&["::1/128"]), [false, true]);
        for texts in [&["all"][..], &["0.0.0.0/0", "::/0"], &["126.0.0.0/7"], &["primary"], &[]] {
            assert_eq!(named(texts), [false, false], "{texts:?}");
        }
    }
}
