//! The loop around engine and kernel: take what came in, sync what is due, tell what was done.
//!
//! It runs on a thread of its own, as does everything of netlink: metrics and health never wait for
//! a commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Synchronizer;
use super::inbox::{Inbox, Incoming, Refusal};
use super::schedule::{Limits, Schedule, Work};
use super::turn::{Arrival, Foreign, Subscriber, Synced, Turn};
use crate::kernel::Kernel;
use crate::model::{Families, Family, Node, NodeAddresses, PerFamily};
use crate::program::NodeAddressing;

/// From what is new of the node, its object or its interfaces' addresses, to what the engine is to know
/// of it.
pub type Survey = Box<dyn FnMut(Option<&Node>, Option<NodeAddresses>) -> NodeAddressing + Send>;

/// The worker's parts.
pub struct Worker<K> {
    synchronizer: Synchronizer<K>,
    inbox: Arc<Inbox>,
    survey: Survey,
    subscribers: Vec<Box<dyn Subscriber>>,
    schedules: PerFamily<Schedule>,
    /// Foreign changes that are not repaired yet.
    foreign: PerFamily<Option<Foreign>>,
    started: Instant,
}

impl<K: Kernel> Worker<K> {
    /// A worker that has not started; `subscribers` are told in their order.
    pub fn new(
        synchronizer: Synchronizer<K>,
        inbox: Arc<Inbox>,
        survey: Survey,
        subscribers: Vec<Box<dyn Subscriber>>,
        limits: Limits,
    ) -> Self {
        Worker {
            synchronizer,
            inbox,
            survey,
            subscribers,
            schedules: PerFamily::from_fn(|_| Schedule::new(limits)),
            foreign: PerFamily::default(),
            started: Instant::now(),
        }
    }

    /// Works until the inbox is closed; then engine and kernel are given back.
    pub fn run(mut self) -> Synchronizer<K> {
        loop {
            let mut incoming = self.inbox.take(self.timeout());
            let (closed, refusals) = (incoming.closed, std::mem::take(&mut incoming.refusals));
            let mut turn = self.take(incoming);
            for family in self.synchronizer.engine.families().iter() {
                turn.syncs.extend(self.sync(family));
            }
            // After the syncs: one may have replaced the table.
            for Refusal { family, connections, done } in refusals {
                // Whoever asked may have waited long enough.
                let _ = done.send(self.synchronizer.refuse(family, connections));
            }
            turn.backlog = self.inbox.len();
            for subscriber in &mut self.subscribers {
                subscriber.turn(&turn);
            }
            if closed {
                return self.synchronizer;
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn due(&self, family: Family) -> Option<Duration> {
        let work = Work {
            ready: self.synchronizer.engine.is_ready(),
            pending: self.synchronizer.is_pending(family),
            retry: self.synchronizer.next_retry(family),
        };
        self.schedules[family].due(work)
    }

    /// How long to wait for what comes in: until a family is due.
    fn timeout(&self) -> Option<Duration> {
        let families = self.synchronizer.engine.families();
        let due = families.iter().filter_map(|family| self.due(family)).min()?;
        Some(due.saturating_sub(self.now()))
    }

    fn take(&mut self, incoming: Incoming) -> Turn {
        let now = self.now();
        let engine = &mut self.synchronizer.engine;
        let mut turn = Turn { families: engine.families(), ..Turn::default() };
        for change in incoming.changes {
            let (kind, objects, list) = Arrival::shape(&change);
            let effect = engine.apply(change);
            turn.requested = turn.requested.union(effect.families);
            if effect.node {
                turn.node = engine.store().node().cloned();
            }
            turn.node_deleted |= effect.node_deleted;
            turn.arrivals.push(Arrival { kind, objects, list, effect });
        }
        if turn.node.is_some() || incoming.addresses.is_some() {
            let addressing = (self.survey)(turn.node.as_deref(), incoming.addresses);
            let (changed, rewritten) = engine.set_surroundings(&addressing);
            turn.requested = turn.requested.union(changed);
            turn.addressing = Some(addressing);
            rewritten.iter().for_each(|family| self.synchronizer.distrust(family));
        }
        let families = turn.families;
        for family in families.iter() {
            if turn.requested.contains(family) {
                self.schedules[family].arrived();
            }
            if let Some(foreign) = &incoming.foreign_changes[family] {
                self.schedules[family].disturbed(now);
                self.foreign[family] = Some(foreign.clone());
            }
        }
        let waits = |family| {
            families.contains(family)
                && (self.synchronizer.is_pending(family)
                    || self.foreign[family].is_some() && self.synchronizer.engine.is_ready())
        };
        turn.waiting = Families { v4: waits(Family::V4), v6: waits(Family::V6) };
        turn
    }

    fn sync(&mut self, family: Family) -> Option<Synced> {
        let now = self.now();
        if self.due(family)? > now {
            return None;
        }
        let start = self.schedules[family].begin(now);
        if start.read {
            self.synchronizer.distrust(family);
        }
        let report = self.synchronizer.sync(family, now)?;
        let ended = self.now();
        let success = report.result.is_ok();
        self.schedules[family].ended(ended, success, report.full);
        let repair = start.repair.then(|| self.foreign[family].clone().unwrap_or_default());
        if success {
            self.foreign[family] = None;
        }
        Some(Synced::new(&self.synchronizer, report, ended - now, repair))
    }
}
