//! What the Node object means for start-up: how long to wait for it, which node IPs follow from it.
//!
//! Place in the flow: start-up feeds every sighting of the Node object into [`NodeWait`] and turns
//! what it ends with into [`NodeIps`]; at runtime [`pod_cidrs_differ`] is asked on every change. Pure:
//! the time is passed in, nothing is logged.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::model::{Family, Node, PerFamily};

/// How long the node's IPs are waited for before start-up goes on without (B-053).
pub const NODE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long `spec.podCIDRs` are waited for after that in NodeCIDR mode (B-054).
pub const POD_CIDR_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeMissing {
    #[error(
        "timeout waiting for node to exist; where the Node has another name than its host, set --hostname-override"
    )]
    Object,
    #[error("node has no node IP")]
    Addresses,
    #[error("timeout waiting for PodCIDR allocation on node")]
    PodCidrs,
}

/// What to do next about the Node object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeStep {
    /// Ask again with the next sighting of the Node, or at this time.
    Wait(Instant),
    /// Go on. Something may be missing, which is logged as an error; the node IPs are loopback then.
    Proceed(Option<NodeMissing>),
    /// Exit with 1.
    Fail(NodeMissing),
}

/// The wait for the Node object (section 3.2), from the end of the first list of Nodes.
#[derive(Debug, Clone)]
pub struct NodeWait {
    node_until: Instant,
    pod_cidrs: bool,
    first: Option<First>,
}

/// The end of the wait for node IPs.
#[derive(Debug, Clone, Copy)]
struct First {
    at: Instant,
    missing: Option<NodeMissing>,
}

impl NodeWait {
    /// Starts to wait. `pod_cidrs` is set in NodeCIDR mode.
    pub fn new(now: Instant, pod_cidrs: bool) -> Self {
        NodeWait { node_until: now + NODE_TIMEOUT, pod_cidrs, first: None }
    }

    /// Decides on the Node as it is now; `None` while it does not exist.
    pub fn step(&mut self, now: Instant, node: Option<&Node>) -> NodeStep {
        let first = match self.first {
            Some(first) => first,
            None => {
                let missing = match node {
                    None => Some(NodeMissing::Object),
                    Some(node) if node.addresses.is_empty() => Some(NodeMissing::Addresses),
                    Some(_) => None,
                };
                if missing.is_some() && now < self.node_until {
                    return NodeStep::Wait(self.node_until);
                }
                *self.first.insert(First { at: now, missing })
            }
        };
        let until = first.at + POD_CIDR_TIMEOUT;
        match node {
            _ if !self.pod_cidrs => NodeStep::Proceed(first.missing),
            Some(node) if !node.pod_cidrs.is_empty() => NodeStep::Proceed(first.missing),
            _ if now < until => NodeStep::Wait(until),
            None => NodeStep::Fail(NodeMissing::Object),
            Some(_) => NodeStep::Fail(NodeMissing::PodCidrs),
        }
    }
}

/// The effective node IPs (section 3.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeIps {
    /// Per family; loopback where none is known.
    pub ips: PerFamily<IpAddr>,
    /// The family whose support is required.
    pub primary: Family,
}

impl NodeIps {
    /// From the Node and `bindAddress`, which wins for its family and makes that one primary unless
    /// it is unspecified (B-055 to B-057).
    pub fn resolve(node: Option<&Node>, bind_address: IpAddr) -> Self {
        let known = node.map(Node::node_ips).unwrap_or_default();
        let loopback = |family| match family {
            Family::V4 => IpAddr::from([127, 0, 0, 1]),
            Family::V6 => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]),
        };
        let mut ips = PerFamily::from_fn(|family| known[family].unwrap_or(loopback(family)));
        let mut primary = node.and_then(Node::primary_family).unwrap_or(Family::V4);
        if !bind_address.is_unspecified() {
            primary = Family::of(&bind_address);
            ips[primary] = bind_address;
        }
        NodeIps { ips, primary }
    }

    /// Whether an operator should be advised to set `bindAddress`.
    pub fn primary_is_loopback(&self) -> bool {
        self.ips[self.primary].is_loopback()
    }
}

/// Whether `spec.podCIDRs` is not what it was at start; the order counts. In NodeCIDR mode this ends
/// the process, in others it means nothing (B-058).
pub fn pod_cidrs_differ(at_start: &[IpNet], now: &Node) -> bool {
    at_start != now.pod_cidrs
}

#[cfg(test)]
mod tests {
    //! Waiting for the Node, and node IPs, case by case.

    use super::*;
    use crate::model::ObjectName;

    const UNSET: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("a literal address")
    }

    fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Node {
        Node {
            name: ObjectName::new("", "node-1"),
            zone: None,
            addresses: addresses.iter().copied().map(ip).collect(),
            pod_cidrs: pod_cidrs.iter().map(|c| c.parse().expect("a literal CIDR")).collect(),
            deleting: false,
            to_be_deleted: false,
        }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    // B-053: 30 s without Node or without addresses, then on with what there is.
    #[test]
    fn a_missing_node_is_not_fatal() {
        let start = Instant::now();
        for (name, seen, missing) in [
            ("no object", None, NodeMissing::Object),
            ("no addresses", Some(node(&[], &[])), NodeMissing::Addresses),
        ] {
            let mut wait = NodeWait::new(start, false);
            assert_eq!(
                wait.step(start, seen.as_ref()),
                NodeStep::Wait(start + seconds(30)),
                "{name}"
            );
            let late = start + Duration::from_millis(29_999);
            assert_eq!(
                wait.step(late, seen.as_ref()),
                NodeStep::Wait(start + seconds(30)),
                "{name}"
            );
            let end = wait.step(start + seconds(30), seen.as_ref());
            assert_eq!(end, NodeStep::Proceed(Some(missing)), "{name}");
        }
        let ips = NodeIps::resolve(None, UNSET);
        assert_eq!(ips.ips, PerFamily { v4: ip("127.0.0.1"), v6: ip("::1") });
        assert!(ips.primary_is_loopback());
    }

    #[test]
    fn a_node_with_addresses_ends_the_wait_at_once() {
        let start = Instant::now();
        let seen = node(&["192.0.2.1"], &[]);
        let mut wait = NodeWait::new(start, false);
        assert_eq!(wait.step(start, None), NodeStep::Wait(start + NODE_TIMEOUT));
        assert_eq!(wait.step(start + seconds(3), Some(&seen)), NodeStep::Proceed(None));
    }

    // B-054: podCIDRs have five minutes of their own, after the wait for the node IPs.
    #[test]
    fn pod_cidrs_are_awaited_and_then_fatal() {
        let start = Instant::now();
        let bare = node(&["192.0.2.1"], &[]);
        let mut wait = NodeWait::new(start, true);
        assert_eq!(wait.step(start, Some(&bare)), NodeStep::Wait(start + seconds(300)));
        let end = wait.step(start + seconds(300), Some(&bare));
        assert_eq!(end, NodeStep::Fail(NodeMissing::PodCidrs));

        let mut wait = NodeWait::new(start, true);
        wait.step(start, None);
        assert_eq!(wait.step(start + seconds(30), None), NodeStep::Wait(start + seconds(330)));
        let allocated = node(&[], &["10.1.0.0/24"]);
        let end = wait.step(start + seconds(329), Some(&allocated));
        assert_eq!(end, NodeStep::Proceed(Some(NodeMissing::Object)), "allocated in time");

        let mut wait = NodeWait::new(start, true);
        wait.step(start + seconds(30), None);
        let end = wait.step(start + seconds(330), None);
        assert_eq!(end, NodeStep::Fail(NodeMissing::Object));
    }

    // B-055: the first address, and the first one of the other family.
    #[test]
    fn node_ips_of_the_object() {
        let seen = node(&["192.0.2.1", "192.0.2.2", "fd00::1", "203.0.113.1"], &[]);
        let dual = NodeIps::resolve(Some(&seen), UNSET);
        assert_eq!(dual.ips, PerFamily { v4: ip("192.0.2.1"), v6: ip("fd00::1") });
        assert_eq!(dual.primary, Family::V4);

        let single = NodeIps::resolve(Some(&node(&["fd00::1"], &[])), UNSET);
        assert_eq!(single.ips, PerFamily { v4: ip("127.0.0.1"), v6: ip("fd00::1") });
        assert_eq!(single.primary, Family::V6);
    }

    // B-056, B-057: a specific bindAddress wins, an unspecified one says nothing.
    #[test]
    fn bind_address() {
        let seen = node(&["192.0.2.1", "fd00::1"], &[]);
        let cases = [
            ("0.0.0.0", "192.0.2.1", "fd00::1", Family::V4),
            ("::", "192.0.2.1", "fd00::1", Family::V4),
            ("198.51.100.4", "198.51.100.4", "fd00::1", Family::V4),
            ("fd00::9", "192.0.2.1", "fd00::9", Family::V6),
            ("::1", "192.0.2.1", "::1", Family::V6),
        ];
        for (bind, v4, v6, primary) in cases {
            let resolved = NodeIps::resolve(Some(&seen), ip(bind));
            let wanted = NodeIps { ips: PerFamily { v4: ip(v4), v6: ip(v6) }, primary };
            assert_eq!(resolved, wanted, "{bind}");
        }
        assert_eq!(NodeIps::resolve(None, ip("::")).primary, Family::V4);
    }

    // B-058: the comparison that ends the process in NodeCIDR mode minds the order.
    #[test]
    fn pod_cidr_changes() {
        let at_start = node(&[], &["10.1.0.0/24", "fd01::/64"]);
        assert!(!pod_cidrs_differ(&at_start.pod_cidrs, &at_start));
        assert!(pod_cidrs_differ(&at_start.pod_cidrs, &node(&[], &["fd01::/64", "10.1.0.0/24"])));
        assert!(pod_cidrs_differ(&at_start.pod_cidrs, &node(&[], &["10.1.0.0/24"])));
    }
}
