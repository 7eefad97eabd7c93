//! The state that `kubeweir status` shows.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::engine::Conflict;
use crate::status::{
    Contested, FamilyStatus, LastSync, QuarantinedService, SharedStatus, UnservedPorts,
};
use crate::sync::{FamilyState, Subscriber, Synced, Turn};
use crate::text::with_causes;

/// How many syncs before the last one the status shows.
const EARLIER_SYNCS: usize = 4;

/// Keeps the status.
pub struct Shown {
    status: SharedStatus,
}

impl Shown {
    /// Nothing happened yet.
    pub fn new(status: SharedStatus) -> Self {
        Shown { status }
    }

    fn sync(&self, sync: &Synced) {
        let FamilyState { summary, program, ownership, unserved, conflicts, quarantine, .. } =
            &sync.state;
        let failed = sync.report.result.is_err();
        let unserved = unserved.iter().map(|(reason, (count, first))| {
            let first = first.iter().map(|label| label.to_string()).collect();
            (*reason, UnservedPorts { count: *count, first })
        });
        let quarantine = quarantine.iter().map(|(service, quarantined)| QuarantinedService {
            service: service.to_string(),
            reason: quarantined.rejection.reason(),
            refusals: quarantined.refusals,
        });
        self.status.update(|status| {
            let family = sync.report.family.to_string();
            let entry = status.families.entry(family).or_default();
            let mut earlier_syncs = std::mem::take(&mut entry.earlier_syncs);
            earlier_syncs.splice(..0, entry.last_sync.take());
            earlier_syncs.truncate(EARLIER_SYNCS);
            *entry = FamilyStatus {
                summary: *summary,
                program: program.clone(),
                owned: ownership.is_ours(),
                syncs: entry.syncs + 1,
                failed_syncs: entry.failed_syncs + u64::from(failed),
                repairs: entry.repairs + u64::from(sync.repair.is_some() && !failed),
                last_sync: Some(last_sync(sync)),
                earlier_syncs,
                contested: conflicts.iter().map(contested).collect(),
                unserved: unserved.collect(),
                quarantine: quarantine.collect(),
                dropped: BTreeMap::new(),
            };
        });
    }
}

impl Subscriber for Shown {
    fn turn(&mut self, turn: &Turn) {
        turn.syncs.iter().for_each(|sync| self.sync(sync));
        self.status.update(|status| status.backlog = turn.backlog);
    }
}

fn last_sync(sync: &Synced) -> LastSync {
    let commits = &sync.report.commits;
    LastSync {
        at: Timestamp::now().to_string(),
        took_us: sync.elapsed.as_micros() as u64,
        kernel_us: commits.iter().map(|c| c.committed.elapsed.as_micros() as u64).sum(),
        bytes: commits.iter().map(|c| c.committed.bytes).sum(),
        added: commits.iter().map(|c| c.counts.elements_added).sum(),
        deleted: commits.iter().map(|c| c.counts.elements_deleted).sum(),
        full: sync.report.full,
        error: sync.report.result.as_ref().err().map(|error| with_causes(error)),
    }
}

pub(super) fn contested(conflict: &Conflict) -> Contested {
    Contested {
        frontend: conflict.frontend.to_string(),
        owner: conflict.owner.port.to_string(),
        others: conflict.others.iter().map(|claim| claim.port.to_string()).collect(),
    }
}
