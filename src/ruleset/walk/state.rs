//! What is walked, what the walk must be told of the node, and what it carries from rule to rule.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::Step;
use crate::ruleset::Register;

/// A packet on its way.
#[derive(Debug, Clone)]
pub(super) struct State {
    /// How likely it is to have come here.
    pub probability: f64,
    /// Where it goes by now.
    pub destination: SocketAddr,
    /// The endpoint its flow was sent to.
    pub translated: Option<SocketAddr>,
    /// Whether its flow gets an address of the node as source.
    pub masquerade: bool,
    /// What happened so far.
    pub steps: Vec<Step>,
}

impl State {
    /// Before the first hook.
    pub(super) fn new(packet: &Packet) -> Self {
        State {
            probability: 1.0,
            destination: packet.destination,
            translated: None,
            masquerade: false,
            steps: Vec::new(),
        }
    }

    /// Sends the flow to an endpoint.
    pub(super) fn translate(&mut self, endpoint: SocketAddr) {
        self.destination = endpoint;
        self.translated = Some(endpoint);
    }

    /// What conntrack does with a later packet where nat chains see the first.
    pub(super) fn translate_as_before(&mut self, packet: &Packet) {
        if let FlowState::Established { translated: Some(endpoint) } = packet.state {
            self.translate(endpoint);
        }
    }
}

/// The 16 registers of 4 bytes. A random draw is not drawn: its register is marked.
#[derive(Debug, Clone)]
pub(super) struct Registers {
    bytes: [u8; Registers::LEN],
    /// First byte and modulus of the draw.
    pub draw: Option<(usize, u32)>,
}

impl Registers {
    const LEN: usize = 64;

    pub(super) fn new() -> Self {
        Registers { bytes: [0; Registers::LEN], draw: None }
    }

    /// Writes from a register on, and fills the last one with zeros; `None` beyond the last.
    pub(super) fn load(&mut self, register: Register, bytes: &[u8]) -> Option<()> {
        let at = usize::from(register.0) * 4;
        let end = at + bytes.len().next_multiple_of(4);
        let slot = self.bytes.get_mut(at..end)?;
        slot.fill(0);
        slot[..bytes.len()].copy_from_slice(bytes);
        self.draw = self.draw.filter(|(draw, _)| !(at..end).contains(draw));
        Some(())
    }

    /// Reads from a register on; `None` beyond the last.
    pub(super) fn read(&self, register: Register, len: usize) -> Option<&[u8]> {
        let at = usize::from(register.0) * 4;
        self.bytes.get(at..at + len)
    }
}

/// An address' bytes.
pub(super) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

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
