//! Log lines, Events, and changes that end the process.

use ipnet::IpNet;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::status::contested;
use crate::logging::with_causes;
use crate::model::{Kind, ObjectName, PerFamily};
use crate::node::object::pod_cidrs_differ;
use crate::sync::{Subscriber, Synced, Turn};

/// Something for an Event, or for the end of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The kernel refused a service.
    Quarantined {
        /// The service.
        service: ObjectName,
        /// Why.
        reason: String,
    },
    /// The conntrack table is nearly full; says how full.
    ConntrackPressure(String),
    /// The node's podCIDRs are not what they were at start, in NodeCIDR mode (B-058).
    PodCidrsChanged,
}

/// Tells of what happened.
pub struct Events {
    notes: mpsc::UnboundedSender<Note>,
    /// podCIDRs at the start, if a change of them ends the process.
    pod_cidrs: Option<Vec<IpNet>>,
    conflicts: PerFamily<usize>,
}

impl Events {
    /// `pod_cidrs`: those of the start, if a change of them ends the process.
    pub fn new(notes: mpsc::UnboundedSender<Note>, pod_cidrs: Option<Vec<IpNet>>) -> Self {
        Events { notes, pod_cidrs, conflicts: PerFamily::default() }
    }

    fn note(&self, note: Note) {
        // Nobody listens any more only when the process ends.
        let _ = self.notes.send(note);
    }

    fn node(&self, turn: &Turn) {
        let Some(node) = &turn.node else { return };
        let moved = |arrival: &&crate::sync::Arrival| {
            arrival.kind == Kind::Node && !arrival.list && arrival.effect.zone
        };
        if turn.arrivals.iter().any(|arrival| moved(&arrival)) {
            let zone = node.zone.as_deref().unwrap_or_default();
            info!(zone, "The node's zone changed");
        }
        let differ = |at_start: &Vec<IpNet>| pod_cidrs_differ(at_start, node);
        if self.pod_cidrs.as_ref().is_some_and(differ) {
            self.note(Note::PodCidrsChanged);
        }
    }

    fn refusals(&self, sync: &Synced) {
        let family = sync.report.family;
        for trouble in &sync.report.troubles {
            warn!(%family, error = %with_causes(trouble), "Commit did not go through at once");
        }
        for (service, rejection) in &sync.report.refused {
            let reason = rejection.reason();
            error!(%family, %service, reason, "The kernel refused a service; it is set aside");
            self.note(Note::Quarantined { service: service.clone(), reason });
        }
    }

    fn outcome(&self, sync: &Synced) {
        let (report, repair) = (&sync.report, &sync.repair);
        let family = report.family;
        match &report.result {
            Ok(()) => info!(
                v = 2,
                %family,
                services = report.services.len(),
                commits = report.commits.len(),
                full = report.full,
                repair = repair.is_some(),
                elapsed = ?sync.elapsed,
                "Synced"
            ),
            Err(reason) => {
                error!(%family, reason = %with_causes(reason), "Sync failed, trying again");
            }
        }
        if let Some(adoption) = report.adoption {
            info!(v = 1, %family, ?adoption, "Read the table");
        }
        if let Some(foreign) = repair.as_ref().filter(|_| report.result.is_ok()) {
            let (what, by) = (&foreign.what, foreign.by.as_deref());
            warn!(%family, what, by, "Someone else changed the table; it is repaired");
        }
    }

    fn conflicts(&mut self, sync: &Synced) {
        let (family, conflicts) = (sync.report.family, &sync.state.conflicts);
        if std::mem::replace(&mut self.conflicts[family], conflicts.len()) == conflicts.len() {
            return;
        }
        for conflict in conflicts.iter().map(contested) {
            warn!(
                %family,
                frontend = conflict.frontend,
                owner = conflict.owner,
                others = conflict.others.join(","),
                "Several services claim one frontend; the oldest has it"
            );
        }
    }
}

impl Subscriber for Events {
    fn turn(&mut self, turn: &Turn) {
        self.node(turn);
        for sync in &turn.syncs {
            self.refusals(sync);
            self.outcome(sync);
            self.conflicts(sync);
        }
    }
}
