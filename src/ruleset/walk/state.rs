//! What a walk carries from rule to rule.

use std::net::{IpAddr, SocketAddr};

use super::{FlowState, Packet, Step};
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
