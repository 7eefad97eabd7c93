//! Where a packet goes, and why, in plain words.
//!
//! Place in the flow: `kubeweir explain` walks the kernel's table with [`walk_flow`] and prints what
//! this module makes of the walk. Pure: the table and the node's addresses are told.

mod reasons;
mod trace;

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

pub use trace::{Trace, TracedEffect, TracedLookup, TracedRule};

use super::view::{Frontends, frontends};
use crate::model::Protocol;
use crate::ruleset::{Environment, Flow, FlowState, Outcome, Packet, Ruleset, Step, walk_flow};
use reasons::Reasons;

/// A connection somebody asks about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Who dials. The port is not of interest.
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub protocol: Protocol,
    /// The interface it arrives on; `None` if the host itself dials.
    pub input: Option<String>,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Served,
    Untouched,
    /// It is refused: the client gets an error at once.
    Refused,
    /// It is discarded: the client waits.
    Dropped,
}

/// One endpoint the flow may go to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    pub endpoint: SocketAddr,
    /// Above 0 and up to 1.
    pub probability: f64,
    /// Whether the endpoint sees an address of the node instead of the client's.
    pub masquerade: bool,
}

/// What session affinity knows of the client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Affinity {
    /// Where the client went before; `None` if it is not remembered.
    pub endpoint: Option<SocketAddr>,
    /// Milliseconds until it is forgotten.
    pub expires_ms: Option<u64>,
}

/// How often packets met the same end, whoever sent them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The table's counter: one of [`crate::program::CounterId::REASONS`].
    pub counter: String,
    /// Packets to whatever Service, since the table was written. Above 0.
    pub packets: u64,
    /// Of these, in the last minute; `None` if no agent tells.
    pub last_minute: Option<u64>,
    /// Packets to this service port, as long as it has the reason; `None` for none, or where service
    /// ports are not counted.
    pub to_service: Option<u64>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub from: std::net::IpAddr,
    pub to: SocketAddr,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// `namespace/service:port` that was found.
    pub service: Option<String>,
    pub verdict: Verdict,
    /// Why, a sentence each; the most important first.
    pub reasons: Vec<String>,
    /// How often that happened, if it is refused or dropped and is counted.
    #[serde(default)]
    pub count: Option<Count>,
    /// Possible endpoints, likeliest first, then by address.
    pub endpoints: Vec<Share>,
    pub affinity: Option<Affinity>,
    /// What happened on the likeliest way, rule by rule.
    pub steps: Vec<TracedRule>,
}

impl Explanation {
    /// Whether another node says the same for the same reasons, whatever rules it has walked, however
    /// often that happened, and whatever else it remembers of the client.
    pub fn agrees_with(&self, other: &Explanation) -> bool {
        let essence = |one: &Explanation| {
            let ways = one.endpoints.iter().map(|way| (way.endpoint, way.masquerade));
            (one.verdict, one.service.clone(), one.reasons.clone(), ways.collect::<Vec<_>>())
        };
        essence(self) == essence(other)
    }

    /// Adds what another node counted.
    pub fn add_count(&mut self, other: &Explanation) {
        let sum = |a: Option<u64>, b: Option<u64>| a.map_or(b, |a| Some(a + b.unwrap_or(0)));
        let Some(other) = &other.count else { return };
        match &mut self.count {
            Some(count) => {
                count.packets += other.packets;
                count.last_minute = sum(count.last_minute, other.last_minute);
                count.to_service = sum(count.to_service, other.to_service);
            }
            none => *none = Some(other.clone()),
        }
    }
}

/// A table that questions are asked about.
#[derive(Debug)]
pub struct Explainer {
    ruleset: Ruleset,
    frontends: Frontends,
}

impl Explainer {
    /// Reads a table by frontend, once for all questions.
    pub fn new(ruleset: Ruleset) -> Explainer {
        Explainer { frontends: frontends(&ruleset), ruleset }
    }

    /// Walks the first packet of a connection.
    pub fn explain(&self, question: &Question, node: &Environment) -> Explanation {
        let packet = Packet {
            source: question.from,
            destination: question.to,
            protocol: question.protocol.number(),
            input: question.input.clone(),
            state: FlowState::New,
        };
        let flow = walk_flow(&self.ruleset, &packet, node);
        let steps: &[Step] = flow.branches.first().map_or(&[], |branch| &branch.steps);
        let reasons = Reasons { question, flow: &flow, steps, table: self };
        Explanation {
            from: question.from.ip(),
            to: question.to,
            protocol: question.protocol.to_string(),
            service: reasons.service(),
            verdict: verdict(&flow),
            reasons: reasons.sentences(),
            count: reasons.count(),
            endpoints: shares(&flow),
            affinity: reasons.affinity(),
            steps: steps.iter().map(TracedRule::from).collect(),
        }
    }
}

/// All branches of a flow end alike but for the endpoint.
fn verdict(flow: &Flow) -> Verdict {
    match flow.branches.first().map(|branch| branch.outcome) {
        Some(Outcome::Dnat(_)) => Verdict::Served,
        Some(Outcome::Reject(_)) => Verdict::Refused,
        Some(Outcome::Drop) => Verdict::Dropped,
        Some(Outcome::Untouched) | None => Verdict::Untouched,
    }
}

fn shares(flow: &Flow) -> Vec<Share> {
    let mut shares: Vec<Share> = flow
        .branches
        .iter()
        .filter_map(|branch| match branch.outcome {
            Outcome::Dnat(endpoint) => Some(Share {
                endpoint,
                probability: branch.probability,
                masquerade: branch.masquerade,
            }),
            _ => None,
        })
        .collect();
    let order = |a: &Share, b: &Share| {
        // Shares of one list differ by rounding only.
        let same = (a.probability - b.probability).abs() < 1e-3;
        let by_probability =
            if same { std::cmp::Ordering::Equal } else { b.probability.total_cmp(&a.probability) };
        by_probability.then(a.endpoint.cmp(&b.endpoint))
    };
    shares.sort_by(order);
    shares
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Served => "served",
            Verdict::Untouched => "not touched",
            Verdict::Refused => "refused",
            Verdict::Dropped => "dropped",
        })
    }
}

impl Explanation {
    fn write_count(&self, count: &Count, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { counter, packets, last_minute, to_service } = count;
        write!(f, "  {} {packets} times so far", self.verdict)?;
        if let Some(packets) = last_minute {
            write!(f, ", {packets} times in the last minute")?;
        }
        writeln!(f, ": packets of all clients to all Services (counter {counter})")?;
        if let (Some(packets), Some(service)) = (to_service, &self.service) {
            writeln!(f, "  {packets} times to {service} since it is so")?;
        }
        Ok(())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} -> {}/{}: {}", self.from, self.to, self.protocol, self.verdict)?;
        for reason in &self.reasons {
            writeln!(f, "  {reason}")?;
        }
        if let Some(count) = &self.count {
            self.write_count(count, f)?;
        }
        if !self.endpoints.is_empty() {
            writeln!(f, "endpoints:")?;
        }
        for share in &self.endpoints {
            let source = if share.masquerade { "sees the node" } else { "sees the client" };
            let percent = share.probability * 100.0;
            writeln!(f, "  {:<28} {percent:5.1} %  {source}", share.endpoint.to_string())?;
        }
        if !self.steps.is_empty() {
            writeln!(f, "steps (the likeliest way):")?;
        }
        Trace(&self.steps).fmt(f)
    }
}

#[cfg(test)]
mod tests;
