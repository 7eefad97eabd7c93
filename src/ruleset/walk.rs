//! Walks the first packet of a flow, or a later one, through a table as the kernel would.
//!
//! Place in the flow: `kubeweir explain` walks the kernel's table; tests walk what the program
//! builds. The instructions themselves are evaluated, so the answer does not depend on what we
//! meant by them. Pure: which addresses are the node's own is told by [`Environment`], random draws
//! are not drawn but split the flow into [`Branch`]es with their probabilities. Lifetimes are not
//! looked at: who calls removes elements that have expired.

mod lookup;
mod machine;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Hook, Name, RejectKind, Ruleset, Verdict};
use crate::ruleset::Register;
use machine::{End, Machine};

/// All that can become of a packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Flow {
    /// Every outcome with its probability, likeliest first; the probabilities add up to 1. An
    /// outcome appears once, with and once without masquerade if both are possible.
    pub branches: Vec<Branch>,
}

/// One way a packet can take.
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    /// How likely it is, above 0 and up to 1.
    pub probability: f64,
    /// Where the packet ends.
    pub outcome: Outcome,
    /// Whether its source is replaced by an address of the node.
    pub masquerade: bool,
    /// What happened on the way, in order. Where draws lead to one outcome by several ways, the
    /// likeliest of them.
    pub steps: Vec<Step>,
}

/// Where a packet ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The table lets it pass as it is.
    Untouched,
    /// Its flow goes to this endpoint.
    Dnat(SocketAddr),
    Drop,
    Reject(RejectKind),
}

/// One rule that was evaluated.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Where in the network stack.
    pub hook: Hook,
    pub chain: Name,
    /// Where the rule stands in the chain.
    pub index: usize,
    /// The rule as nft prints it.
    pub rule: Arc<str>,
    /// How many equal rules in a row this step stands for: draws.
    pub repeats: usize,
    /// What the rule looked up, in order.
    pub lookups: Vec<LookedUp>,
    /// What came of it.
    pub effect: Effect,
}

#[derive(Debug, Clone, PartialEq)]
pub struct LookedUp {
    pub set: Name,
    /// The key as nft prints it; a draw stands there as `random mod 16`.
    pub key: String,
    /// What was found: the value of a map, `member` of a set; `None` if nothing.
    pub found: Option<String>,
    /// The comment of the element that was found.
    pub comment: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// It did not match; the next rule follows.
    NoMatch,
    /// It matched and said nothing; the next rule follows.
    Continue,
    /// Its verdict, or the one a verdict map had.
    Verdict(Verdict),
    /// The flow goes to an endpoint.
    Dnat(SocketAddr),
    /// The flow gets an address of the node as source.
    Masquerade,
    Reject(RejectKind),
    /// An element would be added or refreshed; the walk leaves the table alone.
    Update {
        set: Name,
        /// The element as nft prints it, without its lifetime.
        element: String,
    },
    /// It holds an instruction the walk cannot follow, and was taken as not matching.
    NotFollowed,
}

/// Walks a packet through all hooks it passes: prerouting or output, then by where it is routed
/// input or forward, postrouting; what the host sends to itself comes in again after that.
pub fn walk_flow(ruleset: &Ruleset, packet: &Packet, environment: &Environment) -> Flow {
    let machine = Machine::new(ruleset, packet, environment);
    let mut live = vec![State::new(packet)];
    let mut ended = Vec::new();
    for stage in 0..4 {
        let mut next = Vec::new();
        for state in live {
            let Some(hook) = nth_hook(stage, packet, environment, &state) else {
                ended.push((state, End::Accept));
                continue;
            };
            for (state, end) in machine.hook(hook, state) {
                match end {
                    End::Accept | End::Return => next.push(state),
                    End::Drop | End::Reject(_) => ended.push((state, end)),
                }
            }
        }
        live = next;
    }
    ended.extend(live.into_iter().map(|state| (state, End::Accept)));
    Flow { branches: branches(ended) }
}

/// The hooks a packet passes, by what it looks like by then.
fn nth_hook(
    stage: usize,
    packet: &Packet,
    environment: &Environment,
    state: &State,
) -> Option<Hook> {
    let to_host = environment.is_local(state.destination.ip());
    let hooks: &[Hook] = match (packet.input.is_some(), to_host) {
        (true, true) => &[Hook::Prerouting, Hook::Input],
        (true, false) => &[Hook::Prerouting, Hook::Forward, Hook::Postrouting],
        (false, true) => &[Hook::Output, Hook::Postrouting, Hook::Prerouting, Hook::Input],
        (false, false) => &[Hook::Output, Hook::Postrouting],
    };
    hooks.get(stage).copied()
}

fn branches(ended: Vec<(State, End)>) -> Vec<Branch> {
    let mut branches: Vec<Branch> = Vec::new();
    let mut ended: Vec<(State, Outcome)> = ended
        .into_iter()
        .map(|(state, end)| {
            let outcome = match end {
                End::Drop => Outcome::Drop,
                End::Reject(kind) => Outcome::Reject(kind),
                End::Accept | End::Return => {
                    state.translated.map_or(Outcome::Untouched, Outcome::Dnat)
                }
            };
            (state, outcome)
        })
        .collect();
    let by_outcome =
        |(state, outcome): &(State, Outcome)| (outcome_order(outcome), state.masquerade);
    ended.sort_by(|a, b| {
        by_outcome(a).cmp(&by_outcome(b)).then(b.0.probability.total_cmp(&a.0.probability))
    });
    for (state, outcome) in ended {
        match branches.last_mut() {
            Some(last) if (last.outcome, last.masquerade) == (outcome, state.masquerade) => {
                last.probability += state.probability;
            }
            _ => branches.push(Branch {
                probability: state.probability,
                outcome,
                masquerade: state.masquerade,
                steps: state.steps,
            }),
        }
    }
    branches.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    branches
}

/// Any order that keeps equal outcomes together.
fn outcome_order(outcome: &Outcome) -> (u8, Option<SocketAddr>) {
    match outcome {
        Outcome::Dnat(endpoint) => (0, Some(*endpoint)),
        Outcome::Untouched => (1, None),
        Outcome::Drop => (2, None),
        Outcome::Reject(RejectKind::PortUnreachable) => (3, None),
        Outcome::Reject(RejectKind::TcpReset) => (4, None),
    }
}

// What is walked, what the walk must be told of the node, and what it carries from rule to rule.

/// A packet on its way.
#[derive(Debug, Clone)]
struct State {
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
    fn new(packet: &Packet) -> Self {
        State {
            probability: 1.0,
            destination: packet.destination,
            translated: None,
            masquerade: false,
            steps: Vec::new(),
        }
    }

    /// Sends the flow to an endpoint.
    fn translate(&mut self, endpoint: SocketAddr) {
        self.destination = endpoint;
        self.translated = Some(endpoint);
    }

    /// What conntrack does with a later packet where nat chains see the first.
    fn translate_as_before(&mut self, packet: &Packet) {
        if let FlowState::Established { translated: Some(endpoint) } = packet.state {
            self.translate(endpoint);
        }
    }
}

/// The 16 registers of 4 bytes. A random draw is not drawn: its register is marked.
#[derive(Debug, Clone)]
struct Registers {
    bytes: [u8; Registers::LEN],
    /// First byte and modulus of the draw.
    pub draw: Option<(usize, u32)>,
}

impl Registers {
    const LEN: usize = 64;

    fn new() -> Self {
        Registers { bytes: [0; Registers::LEN], draw: None }
    }

    /// Writes from a register on, and fills the last one with zeros; `None` beyond the last.
    fn load(&mut self, register: Register, bytes: &[u8]) -> Option<()> {
        let at = usize::from(register.0) * 4;
        let end = at + bytes.len().next_multiple_of(4);
        let slot = self.bytes.get_mut(at..end)?;
        slot.fill(0);
        slot[..bytes.len()].copy_from_slice(bytes);
        self.draw = self.draw.filter(|(draw, _)| !(at..end).contains(draw));
        Some(())
    }

    /// Reads from a register on; `None` beyond the last.
    fn read(&self, register: Register, len: usize) -> Option<&[u8]> {
        let at = usize::from(register.0) * 4;
        self.bytes.get(at..at + len)
    }
}

/// An address' bytes.
fn octets(address: IpAddr) -> Vec<u8> {
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
