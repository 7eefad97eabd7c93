//! The agent's state, as it tells it and as `kubeweir status` shows it.
//!
//! Place in the flow: the agent writes it and serves it as JSON under [`PATH`] on the metrics port;
//! [`crate::command`] reads that page, [`crate::inspect`] makes sentences of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::conntrack::Statistics;
use crate::engine::{FamilySummary, UnservedReason};
use crate::source;

/// Where the metrics server serves it.
pub const PATH: &str = "/kubeweir/status";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub node: String,
    pub mode: String,
    /// Changes that wait while a commit runs.
    pub backlog: usize,
    /// The kernel's figures about its conntrack table; none if it does not answer.
    #[serde(default)]
    pub conntrack: Option<Statistics>,
    #[serde(default)]
    pub endings: Endings,
    /// How far the API server has told, by kind; nothing with manifests.
    #[serde(default)]
    pub heard: BTreeMap<String, Heard>,
    /// By family: `IPv4`, `IPv6`.
    pub families: BTreeMap<String, FamilyStatus>,
}

/// How far the API server has told of a kind, as resourceVersions, which are numbers that grow (KEP-5504).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The newest change that came by itself, not in a list; 0 before one.
    pub change: u64,
    /// Everything up to here was told: by a list, a bookmark or a change.
    pub state: u64,
}

impl Heard {
    /// Takes what a source has come to; nothing that is no number.
    pub fn take(&mut self, heard: source::Heard<'_>) {
        let (source::Heard::Change(text) | source::Heard::State(text)) = heard;
        let Ok(version) = text.parse() else { return };
        self.state = version;
        match heard {
            source::Heard::Change(_) => self.change = version,
            // Of a server that was set back to a backup.
            source::Heard::State(_) => self.change = self.change.min(version),
        }
    }
}

/// TCP connections to endpoints that are gone, ended on request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endings {
    /// Connections that were ended.
    pub ended: u64,
    /// Endpoints whose time to drain runs.
    pub draining: usize,
    /// Endpoints that went with all others of their list: nothing is ended until it has one again.
    pub held: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct FamilyStatus {
    /// Figures of what is applied and pending.
    #[serde(flatten)]
    pub summary: FamilySummary,
    pub program: String,
    /// The kernel keeps others off the table.
    pub owned: bool,
    /// Syncs so far, and how many of them failed.
    pub syncs: u64,
    pub failed_syncs: u64,
    pub repairs: u64,
    pub last_sync: Option<LastSync>,
    /// A few before it, newest first.
    pub earlier_syncs: Vec<LastSync>,
    pub contested: Vec<Contested>,
    /// Service ports that are not served to everyone, by reason; no reason without one.
    pub unserved: BTreeMap<UnservedReason, UnservedPorts>,
    pub quarantine: Vec<QuarantinedService>,
    /// What the rules did not let through, by reason; empty if the kernel does not answer.
    #[serde(default)]
    pub dropped: BTreeMap<String, Dropped>,
}

/// Packets that were refused or dropped.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Since the table was written.
    pub packets: u64,
    /// Of these, in the last minute: since the oldest of the agent's looks that is no older, up to ten
    /// seconds less.
    pub last_minute: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LastSync {
    /// When it ended, RFC 3339.
    pub at: String,
    /// Microseconds from start to end.
    pub took_us: u64,
    /// Microseconds of that in the kernel.
    pub kernel_us: u64,
    pub bytes: usize,
    pub added: usize,
    pub deleted: usize,
    pub full: bool,
    pub error: Option<String>,
}

/// Service ports that are not served to everyone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct UnservedPorts {
    pub count: usize,
    /// The first of them by name, `namespace/service:port`.
    pub first: Vec<String>,
}

/// A frontend that several service ports claim.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Contested {
    /// `10.0.0.1:80/tcp`, or `nodePort 30080/tcp`.
    pub frontend: String,
    pub owner: String,
    pub others: Vec<String>,
}

/// A service that the kernel refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct QuarantinedService {
    /// `namespace/name`.
    pub service: String,
    pub reason: String,
    pub refusals: u32,
}

/// A status that one thread writes and others read.
#[derive(Debug, Clone, Default)]
pub struct SharedStatus(Arc<Mutex<Status>>);

impl SharedStatus {
    pub fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn get(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use source::Heard::{Change, State};

    #[test]
    fn how_far_the_api_server_has_told() {
        let mut heard = Heard::default();
        let cases = [
            (State("7"), (0, 7)),
            (Change("9"), (9, 9)),
            (State("20"), (9, 20)),
            (Change("not a number"), (9, 20)),
            // From a backup.
            (State("5"), (5, 5)),
        ];
        for (told, (change, state)) in cases {
            heard.take(told);
            assert_eq!(heard, Heard { change, state }, "{told:?}");
        }
    }
}
