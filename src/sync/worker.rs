//! The thread that owns engine and kernel.
//!
//! Netlink runs here and nowhere else, never on the async workers: metrics and health never wait for
//! a commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::inbox::{Inbox, Mail};
use super::schedule::{Damper, Limits, Schedule};
use super::{Report, Synchronizer};
use crate::engine::Effect;
use crate::model::{Change, Family, NodeAddresses, PerFamily};
use crate::transaction::Kernel;

/// Told of what the worker does. Called on the worker's thread: must not block.
pub trait Observer<K>: Send {
    /// Changes came in and were applied to the store; `effect` says what they mean.
    fn changed(&mut self, synchronizer: &mut Synchronizer<K>, change: &Change, effect: &Effect);

    /// The node's addresses changed; returns what the engine should know of them.
    fn addresses(&mut self, addresses: NodeAddresses) -> Option<PerFamily<Vec<std::net::IpAddr>>>;

    /// A family has work.
    fn queued(&mut self, family: Family);

    /// A family was synced.
    fn synced(&mut self, synchronizer: &Synchronizer<K>, report: &Report, timing: Timing);

    /// Everything that came in so far is dealt with; `backlog` changes wait already.
    fn settled(&mut self, synchronizer: &Synchronizer<K>, backlog: usize);
}

/// About one sync.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long it took.
    pub elapsed: Duration,
    /// It was a repair: someone else had changed the table.
    pub repair: bool,
}

/// The worker's parts.
pub struct Worker<K, O> {
    synchronizer: Synchronizer<K>,
    inbox: Arc<Inbox>,
    observer: O,
    limits: Limits,
    schedules: PerFamily<Schedule>,
    fresh: PerFamily<bool>,
    audited: PerFamily<Duration>,
    dampers: PerFamily<Damper>,
    started: Instant,
}

impl<K: Kernel, O: Observer<K>> Worker<K, O> {
    /// A worker that has not started.
    pub fn new(
        synchronizer: Synchronizer<K>,
        inbox: Arc<Inbox>,
        observer: O,
        limits: Limits,
    ) -> Self {
        Worker {
            synchronizer,
            inbox,
            observer,
            limits,
            schedules: PerFamily::from_fn(|_| Schedule::new(limits)),
            fresh: PerFamily::default(),
            audited: PerFamily::default(),
            dampers: PerFamily::default(),
            started: Instant::now(),
        }
    }

    /// Works until the inbox is closed; then engine and kernel are given back.
    pub fn run(mut self) -> Synchronizer<K> {
        loop {
            let patience = self.patience();
            let mail = self.inbox.take(patience);
            let closed = mail.closed;
            self.take(mail);
            for family in self.synchronizer.engine.families().iter() {
                self.sync(family);
            }
            self.observer.settled(&self.synchronizer, self.inbox.len());
            if closed {
                return self.synchronizer;
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// How long to wait for mail: until something else is due.
    fn patience(&self) -> Option<Duration> {
        let families = self.synchronizer.engine.families();
        let pending = families.iter().filter(|f| self.synchronizer.is_pending(*f));
        let syncs = pending.map(|family| self.schedules[family].due(self.fresh[family]));
        let ready = self.synchronizer.engine.is_ready();
        let audits = families
            .iter()
            .filter(|_| ready)
            .map(|family| self.audited[family] + self.limits.audit);
        let repairs = Family::BOTH.into_iter().filter_map(|f| self.dampers[f].due());
        let retry = self.synchronizer.next_retry();
        let due = syncs.chain(audits).chain(repairs).chain(retry).min()?;
        Some(due.saturating_sub(self.now()))
    }

    fn take(&mut self, mail: Mail) {
        let families = self.synchronizer.engine.families();
        for change in mail.changes {
            // The observer sees the change as it was delivered, with what it means.
            let effect = self.synchronizer.engine.apply(change.clone());
            self.observer.changed(&mut self.synchronizer, &change, &effect);
        }
        if let Some(addresses) = mail.addresses.and_then(|new| self.observer.addresses(new)) {
            self.synchronizer.engine.set_local_addresses(&addresses);
        }
        for family in families.iter() {
            if mail.foreign_changes[family] {
                let now = self.now();
                self.dampers[family].disturbed(now);
            }
            if self.synchronizer.is_pending(family) && mail.oldest.is_some() {
                self.fresh[family] = true;
                self.observer.queued(family);
            }
        }
    }

    fn sync(&mut self, family: Family) {
        let now = self.now();
        let ready = self.synchronizer.engine.is_ready();
        let repair = self.dampers[family].due().is_some_and(|due| due <= now);
        if repair {
            self.dampers[family].repairing(now);
        }
        if ready && (repair || now >= self.audited[family] + self.limits.audit) {
            self.synchronizer.distrust(family);
        }
        if now < self.schedules[family].due(self.fresh[family]) {
            return;
        }
        let Some(report) = self.synchronizer.sync(family, now) else { return };
        let ended = self.now();
        self.fresh[family] = false;
        self.schedules[family].ended(ended, report.result.is_ok());
        if report.full && report.result.is_ok() {
            self.audited[family] = ended;
        }
        let timing = Timing { elapsed: ended - now, repair };
        self.observer.synced(&self.synchronizer, &report, timing);
    }
}
