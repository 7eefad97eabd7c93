//! What a proxy on loopback addresses has to serve for a service port (KEP-6032).
//!
//! In nftables mode no packet from a loopback address can be sent on, so that a process has to listen.
//! It chooses from the lists that packets are sent to, and is told no more than this.

use super::{FrontendKind, LocalhostNodePorts, Placement};
use crate::model::{Protocol, TrafficPolicy};
use crate::topology::Backend;

/// A NodePort to be served on a loopback address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalhostPort {
    /// TCP, or UDP.
    pub protocol: Protocol,
    /// The NodePort.
    pub port: u16,
    /// Where connections go; not empty.
    pub backends: Vec<Backend>,
    /// Session affinity's timeout in seconds. All clients have one address there, so that it holds for
    /// all of them together.
    pub affinity: Option<u32>,
}

/// What is to be served of a placement: nothing without endpoints, so that clients are refused.
pub fn localhost_port(
    placement: &Placement,
    localhost: LocalhostNodePorts,
) -> Option<LocalhostPort> {
    let protocol = placement.name.protocol;
    let node_port = placement.frontends.iter().find(|f| f.kind == FrontendKind::NodePort)?;
    let slots = match placement.external {
        TrafficPolicy::Cluster => &placement.cluster,
        TrafficPolicy::Local => &placement.local,
    };
    (localhost.is_proxied(protocol) && !slots.is_empty()).then(|| LocalhostPort {
        protocol,
        port: node_port.key.port,
        backends: slots.members().to_vec(),
        affinity: placement.affinity,
    })
}
