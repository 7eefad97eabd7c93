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

/// What is missing on the Node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NodeMissing {
    /// The API server has no such Node.
    #[error(
        "timeout waiting for node to exist; where the Node has another name than its host, set --hostname-override"
    )]
    Object,
    /// It has no InternalIP and no ExternalIP that can be parsed.
    #[error("node has no node IP")]
    Addresses,
    /// It has no `spec.podCIDRs`.
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
mod tests;
