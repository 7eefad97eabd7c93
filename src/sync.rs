//! Keeps the kernel at what the engine wants: plan, commit, learn from the outcome.
//!
//! Place in the flow: between the pure [`crate::engine`] and a [`Kernel`]. Time is passed in as the
//! monotonic age of the process; nothing here sleeps, logs or spawns. One family's trouble never
//! touches the other's (B-202).

mod blame;
mod inbox;
mod schedule;
#[cfg(test)]
mod tests;
mod turn;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use blame::{Quarantine, Quarantined};
pub use inbox::{Inbox, Incoming, Refusal};
pub use schedule::Limits;
pub use turn::{Arrival, FamilyState, Foreign, InForce, Subscriber, Synced, Turn};
pub use worker::{Programmer, StartError, Survey, Worker, watch_foreign_changes};

use crate::engine::{Adoption, Engine, MOST_ENTRIES, Plan, Selection, surviving_clients};
use crate::kernel::{CommitError, Counts, DumpError, Kernel, Op, Rejection, Transaction};
use crate::model::{Family, ObjectName, PerFamily};
use crate::ruleset::{Element, Name, Ownership, Table};

/// Elements in one transaction of a cold start: some tens of milliseconds of the kernel's lock.
const BATCH: usize = 10_000;

/// How often a table is read back within one sync before the sync counts as failed.
const READS: usize = 3;

/// How often an affinity map is read again after a member left: packets of the old generation are
/// through after the first.
const RECHECKS: usize = 3;

/// Why a family could not be brought to the wanted state; it stays pending.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// A transaction did not get through, and no single service is to blame.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// What one sync of a family did.
#[derive(Debug)]
pub struct Report {
    pub family: Family,
    /// Whether every service was looked at: after a start, a repair, or a failure (B-255).
    pub full: bool,
    /// What was found in the kernel, if it was read.
    pub adoption: Option<Adoption>,
    /// Services whose fragments are in force now.
    pub services: BTreeSet<ObjectName>,
    /// Commits, and what they asked of the kernel in sum.
    pub commits: Vec<CommitReport>,
    /// Services the kernel refused, newly or again.
    pub refused: Vec<(ObjectName, Rejection)>,
    /// Refusals and lost outcomes on the way, in order; the sync may have succeeded in spite of them.
    pub troubles: Vec<CommitError>,
    /// Objects that nothing needs any more could not be deleted; the last trouble says why.
    pub garbage_stays: bool,
    /// `Err` if the family is not at the wanted state.
    pub result: Result<(), SyncError>,
}

/// One successful commit.
#[derive(Debug, Clone, Copy)]
pub struct CommitReport {
    /// What the transaction asked for.
    pub counts: Counts,
    /// What it took.
    pub committed: crate::kernel::Committed,
}

/// Engine and kernel together.
pub struct Synchronizer<K> {
    /// Decides.
    pub engine: Engine,
    /// Carries out.
    pub kernel: K,
    /// Families whose mirror is not to be believed before the table was read.
    distrusted: PerFamily<bool>,
    quarantine: PerFamily<Quarantine>,
    batch: usize,
}

impl<K: Kernel> Synchronizer<K> {
    /// Nothing is known of the kernel yet.
    pub fn new(engine: Engine, kernel: K) -> Self {
        Synchronizer {
            engine,
            kernel,
            distrusted: PerFamily { v4: true, v6: true },
            quarantine: PerFamily::default(),
            batch: BATCH,
        }
    }

    /// With another number of elements in one transaction of a cold start.
    #[must_use]
    pub fn in_batches_of(self, elements: usize) -> Self {
        Synchronizer { batch: elements, ..self }
    }

    /// The family's table has to be read before the next commit: someone else changed it.
    pub fn distrust(&mut self, family: Family) {
        self.distrusted[family] = true;
    }

    pub fn quarantined(&self, family: Family) -> &BTreeMap<ObjectName, Quarantined> {
        self.quarantine[family].services()
    }

    /// Whether a family has work.
    pub fn is_pending(&self, family: Family) -> bool {
        let distrusted = self.engine.is_ready()
            && self.engine.families().contains(family)
            && self.distrusted[family];
        distrusted || self.engine.is_pending(family)
    }

    /// When the next quarantined service of a family is due, as the age of the process.
    pub fn next_retry(&self, family: Family) -> Option<Duration> {
        self.quarantine[family].next_retry()
    }

    /// Brings a family to the wanted state. `None` if it is there already.
    pub fn sync(&mut self, family: Family, now: Duration) -> Option<Report> {
        let due = self.quarantine[family].due(now);
        for service in &due {
            self.engine.take_back(family, service);
        }
        if !self.is_pending(family) {
            // What was taken back is gone, or in force without a sync of its own.
            due.iter().for_each(|service| self.quarantine[family].release(service));
            return None;
        }
        let mut report = Report {
            family,
            full: self.distrusted[family],
            adoption: None,
            services: BTreeSet::new(),
            commits: Vec::new(),
            refused: Vec::new(),
            troubles: Vec::new(),
            garbage_stays: false,
            result: Ok(()),
        };
        report.result = self.converge(family, now, &mut report);
        for service in &report.services {
            self.quarantine[family].release(service);
        }
        Some(report)
    }

    fn converge(
        &mut self,
        family: Family,
        now: Duration,
        report: &mut Report,
    ) -> Result<(), SyncError> {
        let mut reads = 0;
        while self.is_pending(family) {
            if self.distrusted[family] {
                let observed = self.kernel.dump(family)?;
                report.adoption = Some(self.engine.adopt(family, &observed));
                self.distrusted[family] = false;
                report.full = true;
                reads += 1;
                continue;
            }
            let contested = matches!(self.engine.ownership(family), Ownership::Other(_));
            let plan = self.plan(family, Selection::Elements(self.batch))?;
            if !plan.oversized.is_empty() {
                // What they keep belongs to the plan.
                self.leave_out(family, plan.oversized, now, report)?;
                continue;
            }
            match self.commit(family, plan, report) {
                // Until then the former owner may have changed it once more.
                Ok(()) => self.distrusted[family] = contested,
                // Its owner changes it as it likes: it is read again before the next attempt.
                Err((_, error @ CommitError::Owned { portid, .. })) => {
                    self.engine.disowned(family, portid);
                    self.distrusted[family] = true;
                    return Err(error.into());
                }
                Err((_, error @ CommitError::Unsent { .. })) => return Err(error.into()),
                Err((plan, CommitError::Rejected(rejection)))
                    if self.is_known(family, &plan, &rejection, now, report)? => {}
                // The mirror may be wrong: read before judging.
                Err((_, error)) if reads < READS && !is_fresh(reads, &error) => {
                    report.troubles.push(error);
                    self.distrusted[family] = true;
                }
                Err((plan, CommitError::Rejected(rejection))) => {
                    self.isolate(family, *plan, rejection, now, report)?;
                }
                Err((_, error)) => return Err(error.into()),
            }
        }
        self.collect_garbage(family, report);
        Ok(())
    }

    fn plan(&mut self, family: Family, selection: Selection<'_>) -> Result<Plan, SyncError> {
        let mut draft = self.engine.draft(family, selection);
        while let Some(maps) = draft.advance() {
            for map in maps {
                let clients = self.kernel.dump_set(family, &map)?;
                draft.remember(map, clients);
            }
        }
        Ok(draft.finish())
    }

    fn leave_out(
        &mut self,
        family: Family,
        oversized: Vec<(ObjectName, usize)>,
        now: Duration,
        report: &mut Report,
    ) -> Result<(), SyncError> {
        for (service, entries) in oversized {
            let object = format!("{entries} list entries (at most {MOST_ENTRIES})");
            let rejection = Rejection { op: None, element: None, object, errno: libc::E2BIG };
            self.set_aside(family, service, rejection, now, report)?;
        }
        Ok(())
    }

    fn commit(
        &mut self,
        family: Family,
        plan: Plan,
        report: &mut Report,
    ) -> Result<(), (Box<Plan>, CommitError)> {
        if !plan.transaction.is_empty() {
            match self.kernel.commit(&plan.transaction) {
                Ok(committed) => {
                    let counts = plan.transaction.counts();
                    report.commits.push(CommitReport { counts, committed });
                }
                Err(error) => {
                    // Wherever it was committed: the mirror may be wrong now.
                    self.distrusted[family] |= matches!(error, CommitError::Unknown(_));
                    return Err((Box::new(plan), error));
                }
            }
        }
        let aside = |service: &&ObjectName| self.engine.is_set_aside(family, service);
        report.services.extend(plan.services.iter().filter(|s| !aside(s)).cloned());
        let recheck = plan.recheck.clone();
        self.engine.applied(family, plan);
        for (map, members) in recheck {
            self.forget_clients(family, &map, &members, report);
        }
        Ok(())
    }

    /// A packet that entered before the commit may have remembered a client at an endpoint that left.
    fn forget_clients(
        &mut self,
        family: Family,
        map: &Name,
        members: &[crate::topology::Backend],
        report: &mut Report,
    ) {
        for _ in 0..RECHECKS {
            let Ok(clients) = self.kernel.dump_set(family, map) else { return };
            let Some(left) = surviving_clients(&clients, members, family) else { return };
            let ops = crate::engine::replace_clients(map, left);
            let transaction = Transaction { family, ops };
            match self.kernel.commit(&transaction) {
                Ok(committed) => {
                    report.commits.push(CommitReport { counts: transaction.counts(), committed })
                }
                Err(error) => {
                    report.troubles.push(error);
                    return;
                }
            }
        }
    }

    /// Has late packets of connections refused that are ended; whether that is in force. No service
    /// depends on it: a failure is not tried again.
    ///
    /// Errors: it could not be committed.
    pub fn refuse(
        &mut self,
        family: Family,
        connections: Vec<Element>,
    ) -> Result<bool, CommitError> {
        let Some(refusal) = self.engine.refusal(family, connections) else { return Ok(false) };
        match self.kernel.commit(&refusal) {
            Ok(_) => self.engine.refused(family),
            Err(error) => {
                self.distrusted[family] |= matches!(error, CommitError::Unknown(_));
                return Err(error);
            }
        }
        Ok(true)
    }

    fn collect_garbage(&mut self, family: Family, report: &mut Report) {
        for garbage in self.engine.garbage(family, self.batch) {
            match self.kernel.commit(&garbage) {
                Ok(committed) => {
                    self.engine.garbage_collected(family, &garbage);
                    report.commits.push(CommitReport { counts: garbage.counts(), committed });
                }
                // It stays garbage and is tried again after the next sync.
                Err(error) => {
                    self.distrusted[family] |= matches!(error, CommitError::Unknown(_));
                    report.troubles.push(error);
                    report.garbage_stays = true;
                    return;
                }
            }
        }
    }
}

/// Replaces a persistent table by an equal plain one, in one transaction (a second one ends the
/// handover); no other process may own it.
///
/// A persistent table outlives its process, too, but only another of us could ever change it: the
/// kernel refuses every `add table` on it without the same flags (EOPNOTSUPP, seen up to 6.18), so
/// that no upstream kube-proxy could follow.
///
/// Errors: the table cannot be read, or the kernel refuses; then it is as it was, or the handover has not
/// ended, which harms nobody.
pub fn release(kernel: &mut impl Kernel, family: Family) -> Result<(), SyncError> {
    let ruleset = kernel.dump(family)?;
    if let Some(table) = ruleset.table.clone().filter(|table| table.persist) {
        let plain = Table { owner: Ownership::Nobody, persist: false, ..table };
        for transaction in ruleset.recreated(plain) {
            kernel.commit(&transaction)?;
        }
    }
    Ok(())
}

/// Whether reading the table again can teach nothing: it was just read, and the kernel refused.
fn is_fresh(reads: usize, error: &CommitError) -> bool {
    reads > 0 && matches!(error, CommitError::Rejected(_))
}

impl Plan {
    /// Whether the plan deletes a table that may still carry traffic.
    fn replaces_table(&self) -> bool {
        self.transaction.ops.contains(&Op::DeleteTable)
    }
}
