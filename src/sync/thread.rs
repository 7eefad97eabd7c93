//! The threads of netlink: the one that programs, and the one that hears of foreign changes.
//!
//! Sockets are opened by the thread that uses them, in the network namespace of the process.

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{io, thread};

use tokio::sync::oneshot;
use tracing::{debug, error};

use super::Synchronizer;
use super::inbox::Inbox;
use super::schedule::Limits;
use super::turn::{Foreign, Subscriber};
use super::worker::{LocalAddresses, Worker};
use crate::engine::Engine;
use crate::logging::with_causes;
use crate::model::Family;
use crate::netlink::{Monitor, MonitorError, NetlinkKernel, Notice, OpenError};

/// How long the monitor sleeps between two looks at whether the process still runs.
const MONITOR_WAIT: Duration = Duration::from_secs(60);

/// Pause after notifications could not be read; the tables are read instead.
const MONITOR_RETRY: Duration = Duration::from_secs(1);

/// Why a thread of netlink did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The thread itself.
    #[error("starting the thread {name:?}")]
    Thread {
        /// Its name.
        name: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The socket that programs.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The socket that hears of changes.
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    /// The thread ended before it had opened its socket.
    #[error("the thread that programs ended while it started")]
    Ended,
}

/// What the programming thread is to do.
struct Task {
    engine: Engine,
    inbox: Arc<Inbox>,
    local_addresses: LocalAddresses,
    subscribers: Vec<Box<dyn Subscriber>>,
    limits: Limits,
}

/// A thread that has opened the kernel and waits for its task. It ends when this is dropped.
pub struct Programmer {
    task: Sender<Task>,
    thread: JoinHandle<()>,
    portid: u32,
}

impl Programmer {
    /// Starts the thread, and waits until it has opened its socket.
    ///
    /// # Errors
    /// If it could not; then the thread is gone.
    pub async fn open() -> Result<Self, StartError> {
        let (task, tasks) = channel::<Task>();
        let (opened, outcome) = oneshot::channel();
        let thread = spawn("netlink", move || match NetlinkKernel::open() {
            Ok(kernel) => {
                // Nobody waits any more: then no task comes either.
                let _ = opened.send(Ok(kernel.portid()));
                if let Ok(task) = tasks.recv() {
                    let synchronizer = Synchronizer::new(task.engine, kernel);
                    let (addresses, subscribers) = (task.local_addresses, task.subscribers);
                    Worker::new(synchronizer, task.inbox, addresses, subscribers, task.limits)
                        .run();
                }
            }
            Err(reason) => drop(opened.send(Err(reason))),
        })?;
        let portid = outcome.await.map_err(|_| StartError::Ended)??;
        Ok(Programmer { task, thread, portid })
    }

    /// The port id of its socket: the owner of the tables it makes.
    pub fn portid(&self) -> u32 {
        self.portid
    }

    /// Starts to program. The thread that is returned ends when the inbox is closed.
    pub fn start(
        self,
        engine: Engine,
        inbox: Arc<Inbox>,
        local_addresses: LocalAddresses,
        subscribers: Vec<Box<dyn Subscriber>>,
        limits: Limits,
    ) -> JoinHandle<()> {
        let task = Task { engine, inbox, local_addresses, subscribers, limits };
        // If the thread panicked meanwhile, whoever joins it learns of it.
        let _ = self.task.send(task);
        self.thread
    }
}

/// Tells the inbox when others change our tables, on a thread that ends with the process.
///
/// # Errors
/// If the notifications cannot be subscribed to.
pub fn watch_foreign_changes(own_portid: u32, inbox: Arc<Inbox>) -> Result<(), StartError> {
    let mut monitor = Monitor::open(own_portid)?;
    spawn("monitor", move || {
        loop {
            match monitor.wait(MONITOR_WAIT) {
                Ok(None) => {}
                Ok(Some(Notice::Overflow)) => both(&inbox, "notifications were lost"),
                Ok(Some(Notice::Foreign { family, changes, by })) => {
                    let what = changes.into_iter().collect::<Vec<_>>().join(", ");
                    // Each at debug level only: a program that fights us writes hundreds a second.
                    // The repair is a warning.
                    debug!(v = 3, %family, what, by, "Someone else changed the table");
                    inbox.foreign_change(family, Foreign { what, by });
                }
                Err(reason) => {
                    error!(reason = with_causes(&reason), "A foreign change may be missed");
                    both(&inbox, "notifications could not be read");
                    thread::sleep(MONITOR_RETRY);
                }
            }
        }
    })?;
    Ok(())
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
