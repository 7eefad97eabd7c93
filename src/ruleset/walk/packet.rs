//! What is walked, and what the walk must be told of the node.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// One packet of a flow, in the flow's original direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// Address and port it comes from. Both ends are of the table's family.
    pub source: SocketAddr,
    /// Address and port that were dialled; port 0 for protocols without ports.
    pub destination: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The interface it arrives on; `None` if the host itself sends it.
    pub input: Option<String>,
    /// What conntrack knows of its flow.
    pub state: FlowState,
}

/// What conntrack knows of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowState {
    /// Nothing: this is the first packet, and nat chains see it.
    New,
    /// It has been answered; nat chains do not see it, conntrack translates it as before.
    Established {
        /// The endpoint its first packet was sent to, if it was translated.
        translated: Option<SocketAddr>,
    },
}

/// What the rules ask of the node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Environment {
    /// The addresses of the node's interfaces. Loopback addresses need not be among them.
    pub local_addresses: BTreeSet<IpAddr>,
}

impl Environment {
    /// Whether packets to an address are delivered here.
    pub fn is_local(&self, address: IpAddr) -> bool {
        address.is_loopback() || self.local_addresses.contains(&address)
    }
}
