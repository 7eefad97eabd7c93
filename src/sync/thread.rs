//! The threads of netlink: the one that programs, and the one that hears of foreign changes.
//!
//! Sockets are opened by the thread that uses them, in the network namespace of the process.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use tokio::sync::oneshot;
use tracing::{debug, error};

use super::Synchronizer;
use super::inbox::Inbox;
use super::schedule::Limits;
use super::turn::{Foreign, Subscriber};
use super::worker::{Survey, Worker};
use crate::engine::Engine;
use crate::model::Family;
use crate::netlink::{Monitor, MonitorError, NetlinkKernel, Notice, OpenError};
use crate::text::with_causes;

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
