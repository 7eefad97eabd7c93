//! Walks the first packet of a flow, or a later one, through a table as the kernel would.
//!
//! Place in the flow: `kubeweir explain` walks the kernel's table; tests walk what the program
//! builds. The instructions themselves are evaluated, so the answer does not depend on what we
//! meant by them. Pure: which addresses are the node's own is told by [`Environment`], random draws
//! are not drawn but split the flow into [`Branch`]es with their probabilities. Lifetimes are not
//! looked at: who calls removes elements that have expired.

mod machine;
mod state;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;

pub use state::{Environment, FlowState, Packet};

use super::{Hook, Name, RejectKind, Ruleset, Verdict};
use machine::{End, Machine};
use state::State;

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
    /// It is discarded.
    Drop,
    /// It is refused.
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

/// One lookup in a set or map.
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

/// What a rule did.
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
    /// The packet is refused.
    Reject(RejectKind),
    /// An element would be added or refreshed; the walk leaves the table alone.
    Update {
        /// The set or map.
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

/// One branch per outcome.
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
