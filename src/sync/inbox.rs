//! Where sources put changes and the worker takes them.
//!
//! Changes coalesce by object: only the latest state of each is kept, so the inbox never holds more
//! than the cluster has objects, however long a commit takes.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::Sender;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::turn::Foreign;
use crate::kernel::CommitError;
use crate::model::{Change, Family, Kind, NodeAddresses, Object, ObjectName, PerFamily};
use crate::ruleset::Element;
use crate::source::Sink;

/// What the worker takes out in one go.
#[derive(Debug, Default)]
pub struct Incoming {
    /// Complete lists first, then single changes in order of their objects' first arrival.
    pub changes: Vec<Change>,
    /// The node's addresses, if they changed.
    pub addresses: Option<NodeAddresses>,
    /// Families whose table someone else changed.
    pub foreign_changes: PerFamily<Option<Foreign>>,
    /// Connections whose late packets are to be refused.
    pub refusals: Vec<Refusal>,
    /// Nothing more will come.
    pub closed: bool,
}

/// Connections of a family that are about to be ended.
#[derive(Debug)]
pub struct Refusal {
    pub family: Family,
    /// See [`crate::program::ended`].
    pub connections: Vec<Element>,
    /// Is told whether their late packets are refused from now on.
    pub done: Sender<Result<bool, CommitError>>,
}

#[derive(Debug, Default)]
pub struct Inbox {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lists: Vec<(Kind, Vec<Object>)>,
    order: VecDeque<(Kind, ObjectName)>,
    latest: HashMap<(Kind, ObjectName), Change>,
    addresses: Option<NodeAddresses>,
    foreign_changes: PerFamily<Option<Foreign>>,
    refusals: Vec<Refusal>,
    closed: bool,
    /// Since when the worker is at work on what it took.
    at_work: Option<Instant>,
}

impl Inbox {
    pub fn new() -> Self {
        Inbox::default()
    }

    pub fn set_addresses(&self, addresses: NodeAddresses) {
        self.update(|state| state.addresses = Some(addresses));
    }

    /// Someone else changed a family's table.
    pub fn foreign_change(&self, family: Family, change: Foreign) {
        self.update(|state| state.foreign_changes[family] = Some(change));
    }

    /// Connections are about to be ended.
    pub fn refuse(&self, refusal: Refusal) {
        self.update(|state| state.refusals.push(refusal));
    }

    /// For how long the worker has been at work without coming back for more.
    pub fn at_work(&self) -> Option<Duration> {
        self.lock().at_work.map(|since| since.elapsed())
    }

    /// Ends the worker.
    pub fn close(&self) {
        self.update(|state| state.closed = true);
    }

    /// Number of changes waiting, lists counted as one each.
    pub fn len(&self) -> usize {
        let state = self.lock();
        state.lists.len() + state.latest.len()
    }

    /// Whether no change waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes everything, waiting at most `timeout` for the first thing to come (for ever if `None`).
    pub fn take(&self, timeout: Option<Duration>) -> Incoming {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        let mut state = self.lock();
        state.at_work = None;
        while state.is_idle() {
            state = match deadline {
                None => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break;
                    }
                    let waited = self.wake.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let taken = std::mem::take(&mut *state);
        state.at_work = Some(Instant::now());
        drop(state);
        taken.into_incoming()
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        drop(state);
        self.wake.notify_one();
    }

    /// A sink that panicked while holding the lock left whole values behind: every update is one
    /// assignment or insertion.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for Inbox {
    fn deliver(&self, change: Change) {
        self.update(|state| state.put(change));
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.lists.is_empty()
            && self.latest.is_empty()
            && self.addresses.is_none()
            && self.foreign_changes.v4.is_none()
            && self.foreign_changes.v6.is_none()
            && self.refusals.is_empty()
            && !self.closed
    }

    fn put(&mut self, change: Change) {
        let key = match &change {
            Change::Replace(kind, _) => {
                // The list says all there is to say about its kind.
                let kind = *kind;
                self.lists.retain(|(listed, _)| *listed != kind);
                self.order.retain(|(changed, _)| *changed != kind);
                self.latest.retain(|(changed, _), _| *changed != kind);
                if let Change::Replace(kind, objects) = change {
                    self.lists.push((kind, objects));
                }
                return;
            }
            Change::Apply(object) => (object.kind(), object.name().clone()),
            Change::Delete(kind, name) => (*kind, name.clone()),
        };
        if self.latest.insert(key.clone(), change).is_none() {
            self.order.push_back(key);
        }
    }

    fn into_incoming(mut self) -> Incoming {
        let lists = self.lists.into_iter().map(|(kind, objects)| Change::Replace(kind, objects));
        let mut changes: Vec<Change> = lists.collect();
        changes.extend(self.order.iter().filter_map(|key| self.latest.remove(key)));
        Incoming {
            changes,
            addresses: self.addresses,
            foreign_changes: self.foreign_changes,
            refusals: self.refusals,
            closed: self.closed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::ServiceCidr;

    fn cidr(name: &str, net: &str) -> Object {
        Object::ServiceCidr(Arc::new(ServiceCidr {
            name: ObjectName::cluster_scoped(name),
            cidrs: vec![net.parse().unwrap()],
        }))
    }

    // B-194: a storm on few objects stays few changes.
    #[test]
    fn only_the_latest_state_of_an_object_is_kept() {
        let inbox = Inbox::new();
        for i in 0..1000 {
            inbox.deliver(Change::Apply(cidr("a", &format!("10.0.{}.0/24", i % 256))));
            inbox.deliver(Change::Apply(cidr("b", "10.1.0.0/16")));
        }
        inbox.deliver(Change::Delete(Kind::ServiceCidr, ObjectName::cluster_scoped("b")));
        assert_eq!(inbox.len(), 2);
        let incoming = inbox.take(None);
        assert_eq!(
            incoming.changes,
            [
                Change::Apply(cidr("a", "10.0.231.0/24")),
                Change::Delete(Kind::ServiceCidr, ObjectName::cluster_scoped("b")),
            ]
        );
        assert!(inbox.is_empty());
    }

    #[test]
    fn a_list_supersedes_what_waits_of_its_kind() {
        let inbox = Inbox::new();
        inbox.deliver(Change::Apply(cidr("a", "10.0.0.0/16")));
        inbox.deliver(Change::Replace(Kind::ServiceCidr, vec![cidr("b", "10.1.0.0/16")]));
        inbox.deliver(Change::Apply(cidr("c", "10.2.0.0/16")));
        let incoming = inbox.take(None);
        assert_eq!(
            incoming.changes,
            [
                Change::Replace(Kind::ServiceCidr, vec![cidr("b", "10.1.0.0/16")]),
                Change::Apply(cidr("c", "10.2.0.0/16")),
            ]
        );
    }

    #[test]
    fn waiting_ends_with_patience_and_with_closing() {
        let inbox = Inbox::new();
        assert!(inbox.take(Some(Duration::from_millis(1))).changes.is_empty());
        inbox.close();
        assert!(inbox.take(None).closed);
    }

    // A worker that hangs in the kernel is seen from outside.
    #[test]
    fn the_worker_is_at_work_from_one_taking_to_the_next() {
        let inbox = Inbox::new();
        assert_eq!(inbox.at_work(), None);
        inbox.foreign_change(Family::V4, Foreign::default());
        inbox.take(None);
        assert!(inbox.at_work().is_some());
        inbox.deliver(Change::Apply(cidr("a", "10.0.0.0/16")));
        assert!(inbox.at_work().is_some(), "what comes in meanwhile changes nothing");
    }
}
