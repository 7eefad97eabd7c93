//! The loop around engine and kernel: take what came in, sync what is due, tell what was done.
//!
//! It runs on a thread of its own, as does everything of netlink: metrics and health never wait for
//! a commit.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::{debug, error};

use super::Synchronizer;
use super::inbox::{Inbox, Incoming, Refusal};
use super::schedule::{Limits, Schedule, Work};
use super::turn::{Arrival, Foreign, Subscriber, Synced, Turn};
use crate::engine::Engine;
use crate::kernel::Kernel;
use crate::model::{Families, Family, Node, NodeAddresses, PerFamily};
use crate::netlink::{Monitor, MonitorError, NetlinkKernel, Notice, OpenError};
use crate::program::NodeAddressing;
use crate::text::with_causes;

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

// The threads of netlink: the one that programs, and the one that hears of foreign changes.
//
// Sockets are opened by the thread that uses them, in the network namespace of the process.

/// How long the monitor sleeps between two looks at whether the process still runs.
const MONITOR_WAIT: Duration = Duration::from_secs(60);

/// Pause after notifications could not be read; the tables are read instead.
const MONITOR_RETRY: Duration = Duration::from_secs(1);

/// Why a thread of netlink did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("starting the thread {name:?}")]
    Thread {
        name: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error("a thread of netlink ended while it started")]
    Ended,
}

/// What the programming thread is told.
enum Order {
    /// Open the socket; its port id is the answer.
    Open(oneshot::Sender<Result<u32, OpenError>>),
    /// Program until the inbox is closed.
    Program(Box<Task>),
}

/// All that it takes.
struct Task {
    engine: Engine,
    inbox: Arc<Inbox>,
    survey: Survey,
    subscribers: Vec<Box<dyn Subscriber>>,
    limits: Limits,
}

/// The thread that programs, before it does. It ends when this is dropped.
pub struct Programmer {
    orders: Sender<Order>,
    thread: JoinHandle<()>,
}

impl Programmer {
    /// Starts the thread.
    ///
    /// Errors: there can be no more threads.
    pub fn spawn() -> Result<Self, StartError> {
        let (orders, incoming) = channel();
        let thread = spawn("netlink", move || obey(&incoming))?;
        Ok(Programmer { orders, thread })
    }

    /// Has it open its socket; returns the socket's port id, which is the owner of the tables it
    /// makes.
    ///
    /// Errors: it cannot; it may be asked again.
    pub async fn open(&self) -> Result<u32, StartError> {
        let (answer, outcome) = oneshot::channel();
        self.orders.send(Order::Open(answer)).map_err(|_| StartError::Ended)?;
        Ok(outcome.await.map_err(|_| StartError::Ended)??)
    }

    /// Has it program. The thread that is returned ends when the inbox is closed.
    pub fn start(
        self,
        engine: Engine,
        inbox: Arc<Inbox>,
        survey: Survey,
        subscribers: Vec<Box<dyn Subscriber>>,
        limits: Limits,
    ) -> JoinHandle<()> {
        let task = Task { engine, inbox, survey, subscribers, limits };
        // If the thread panicked meanwhile, whoever joins it learns of it.
        let _ = self.orders.send(Order::Program(Box::new(task)));
        self.thread
    }
}

fn obey(orders: &Receiver<Order>) {
    let mut opened = None;
    for order in orders {
        match order {
            Order::Open(answer) => {
                let outcome = NetlinkKernel::open();
                // Who asked is gone only when the process ends.
                let _ = answer.send(outcome.map(|kernel| opened.insert(kernel).portid()));
            }
            Order::Program(task) => {
                let Some(kernel) = opened else { return };
                let Task { engine, inbox, survey, subscribers, limits } = *task;
                let synchronizer = Synchronizer::new(engine, kernel);
                Worker::new(synchronizer, inbox, survey, subscribers, limits).run();
                return;
            }
        }
    }
}

/// Tells the inbox when others change our tables, on a thread that ends with the process.
///
/// Errors: the notifications cannot be subscribed to.
pub async fn watch_foreign_changes(own_portid: u32, inbox: Arc<Inbox>) -> Result<(), StartError> {
    let (answer, opened) = oneshot::channel();
    spawn("monitor", move || match Monitor::open(own_portid) {
        Ok(monitor) => {
            let _ = answer.send(Ok(()));
            listen(monitor, &inbox);
        }
        Err(reason) => drop(answer.send(Err(reason))),
    })?;
    Ok(opened.await.map_err(|_| StartError::Ended)??)
}

fn listen(mut monitor: Monitor, inbox: &Inbox) {
    loop {
        match monitor.wait(MONITOR_WAIT) {
            Ok(None) => {}
            Ok(Some(Notice::Overflow)) => both(inbox, "notifications were lost"),
            Ok(Some(Notice::Foreign { family, changes, by })) => {
                let what = changes.into_iter().collect::<Vec<_>>().join(", ");
                // Each at debug level only: a program that fights us writes hundreds a second.
                // The repair is a warning.
                debug!(v = 3, %family, what, by, "Someone else changed the table");
                inbox.foreign_change(family, Foreign { what, by });
            }
            Err(reason) => {
                error!(reason = with_causes(&reason), "A foreign change may be missed");
                both(inbox, "notifications could not be read");
                thread::sleep(MONITOR_RETRY);
            }
        }
    }
}

fn both(inbox: &Inbox, what: &str) {
    for family in Family::BOTH {
        inbox.foreign_change(family, Foreign { what: what.to_owned(), by: None });
    }
}

fn spawn(
    name: &'static str,
    work: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(|source| StartError::Thread { name, source })
}
