//! Log lines, Events, and changes that end the process.

use ipnet::IpNet;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::status::contested;
use crate::agent::note::Note;
use crate::model::{Kind, PerFamily};
use crate::node::object::pod_cidrs_differ;
use crate::sync::{Subscriber, Synced, Turn};
use crate::text::with_causes;

/// Which changes of the Node end the process.
#[derive(Debug, Clone, Default)]
pub struct Fatal {
    /// Others than these podCIDRs, those of the start: in NodeCIDR mode.
    pub pod_cidrs: Option<Vec<IpNet>>,
    /// Its deletion: where an API server knows the node. A directory of manifests need not have it.
    pub deletion: bool,
}

/// Tells of what happened.
pub struct Events {
    notes: mpsc::UnboundedSender<Note>,
    fatal: Fatal,
    conflicts: PerFamily<usize>,
}

impl Events {
    /// Nothing happened yet.
    pub fn new(notes: mpsc::UnboundedSender<Note>, fatal: Fatal) -> Self {
        Events { notes, fatal, conflicts: PerFamily::default() }
    }

    fn note(&self, note: Note) {
        // Nobody listens any more only when the process ends.
        let _ = self.notes.send(note);
    }

    fn node(&self, turn: &Turn) {
        if turn.node_deleted && self.fatal.deletion {
            self.note(Note::NodeDeleted);
        }
        let Some(node) = &turn.node else { return };
        let moved = |arrival: &&crate::sync::Arrival| {
            arrival.kind == Kind::Node && !arrival.list && arrival.effect.zone
        };
        if turn.arrivals.iter().any(|arrival| moved(&arrival)) {
            let zone = node.zone.as_deref().unwrap_or_default();
            info!(zone, "The node's zone changed");
        }
        let differ = |at_start: &Vec<IpNet>| pod_cidrs_differ(at_start, node);
        if self.fatal.pod_cidrs.as_ref().is_some_and(differ) {
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
