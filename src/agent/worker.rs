//! Starts the threads and tasks around the worker: netlink, monitor, interface addresses.
//!
//! Place in the flow: [`super::run`] calls it once the node is prepared; from then on everything
//! reaches the worker through the inbox.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, warn};

use super::observer::{AgentObserver, Surroundings};
use super::patience::patiently;
use super::{AgentError, Launch};
use crate::engine::Engine;
use crate::logging::with_causes;
use crate::model::{Families, Family, Node, NodeAddresses};
use crate::netlink::{Monitor, NetlinkKernel, Notice};
use crate::node::addresses;
use crate::sync::{Inbox, Limits, Synchronizer, Worker};
use crate::topology::Vantage;

/// How long the monitor sleeps between two looks at whether the process still runs.
const MONITOR_WAIT: Duration = Duration::from_secs(60);

/// Pause after notifications could not be read; the tables are read instead.
const MONITOR_RETRY: Duration = Duration::from_secs(1);

/// Pause before a broken stream of addresses is opened anew.
const ADDRESSES_RETRY: Duration = Duration::from_secs(1);

/// What the worker is about.
pub struct Subject {
    /// This node's name.
    pub node: Arc<str>,
    /// This node as it was at the start.
    pub object: Option<Arc<Node>>,
    /// Families to program.
    pub families: Families,
}

/// Follows the interfaces' addresses and starts the worker's threads.
///
/// Returns the one that programs: it ends when the inbox is closed. The others end with the process.
pub async fn start(
    launch: &Launch,
    subject: Subject,
    surroundings: Surroundings,
    inbox: &Arc<Inbox>,
) -> Result<JoinHandle<()>, AgentError> {
    let mut addresses = follow_addresses().await?;
    let assigned = addresses.borrow_and_update().clone();
    let owned = surroundings.owned;
    let (kernel, monitor) = patiently("nf_tables", async || open(owned)).await?;
    if let Some(monitor) = monitor {
        start_monitor(monitor, inbox.clone())?;
    }
    let synchronizer = synchronizer(subject, &surroundings, &assigned, kernel);
    let observer = AgentObserver::new(surroundings, assigned);
    let limits = Limits {
        min_interval: launch.config.min_sync_period,
        retry: launch.config.sync_period,
        audit: Limits::AUDIT,
    };
    let worker = Worker::new(synchronizer, inbox.clone(), observer, limits);
    let programming = spawn("netlink", || drop(worker.run()))?;
    let inbox = inbox.clone();
    tokio::spawn(async move {
        while addresses.changed().await.is_ok() {
            inbox.set_addresses(addresses.borrow_and_update().clone());
        }
    });
    Ok(programming)
}

/// Interface addresses, now and after every change.
async fn follow_addresses() -> Result<watch::Receiver<NodeAddresses>, AgentError> {
    let (sender, receiver) = watch::channel(read_addresses().await?);
    tokio::spawn(async move {
        loop {
            match addresses::watch(sender.clone()).await {
                Ok(()) => return,
                Err(reason) => warn!(reason = with_causes(&reason), "Following addresses again"),
            }
            tokio::time::sleep(ADDRESSES_RETRY).await;
        }
    });
    Ok(receiver)
}

async fn read_addresses() -> Result<NodeAddresses, AgentError> {
    patiently("the interfaces' addresses", async || Ok(addresses::read().await?)).await
}

/// The socket that programs and, where others cannot be kept off, the one that watches them.
fn open(owned: bool) -> Result<(NetlinkKernel, Option<Monitor>), AgentError> {
    let kernel = NetlinkKernel::open()?;
    let monitor = if owned { None } else { Some(Monitor::open(kernel.portid())?) };
    Ok((kernel, monitor))
}

fn synchronizer(
    subject: Subject,
    surroundings: &Surroundings,
    assigned: &NodeAddresses,
    kernel: NetlinkKernel,
) -> Synchronizer<NetlinkKernel> {
    let (options, hints) = surroundings.traffic.options(assigned);
    for hint in hints {
        error!("{hint}");
    }
    let zone = subject.object.as_ref().and_then(|node| node.zone.clone());
    let vantage = Vantage { node: subject.node, zone };
    let mut engine = Engine::new(options, vantage, subject.families, surroundings.owned);
    engine.set_local_addresses(&surroundings.traffic.local_addresses(assigned));
    Synchronizer::new(engine, kernel)
}

/// Kernels that cannot keep others off the table tell at least when they touch it.
fn start_monitor(mut monitor: Monitor, inbox: Arc<Inbox>) -> Result<JoinHandle<()>, AgentError> {
    spawn("monitor", move || {
        loop {
            match monitor.wait(MONITOR_WAIT) {
                Ok(None) => {}
                Ok(Some(Notice::Overflow)) => {
                    Family::BOTH.into_iter().for_each(|family| inbox.foreign_change(family));
                }
                Ok(Some(Notice::Foreign { family, changes, by })) => {
                    let what = changes.into_iter().collect::<Vec<_>>().join(", ");
                    warn!(%family, what, by, "Someone else changed the table; it is repaired");
                    inbox.foreign_change(family);
                }
                Err(reason) => {
                    error!(reason = with_causes(&reason), "A foreign change may be missed");
                    Family::BOTH.into_iter().for_each(|family| inbox.foreign_change(family));
                    std::thread::sleep(MONITOR_RETRY);
                }
            }
        }
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, AgentError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(AgentError::Thread)
}
