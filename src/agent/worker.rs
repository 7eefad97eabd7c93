//! Starts the threads and tasks around the worker: netlink, monitor, interface addresses.
//!
//! Place in the flow: [`super::run`] calls it once the node is prepared; from then on everything
//! reaches the worker through the inbox.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{error, info, warn};

use super::observer::{AgentObserver, Surroundings, with_causes};
use super::{AgentError, Launch};
use crate::engine::Engine;
use crate::model::{Families, Family, Node, NodeAddresses};
use crate::netlink::{Monitor, NetlinkKernel, Notice};
use crate::node::addresses;
use crate::sync::{Inbox, Limits, Synchronizer, Worker};
use crate::topology::Vantage;

/// How long the monitor sleeps between two looks at whether the process still runs.
const MONITOR_WAIT: Duration = Duration::from_secs(60);

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
/// Returns the one that programs: it ends when the inbox is closed, and leaves tables that anyone
/// may take over. The others end with the process.
pub async fn start(
    launch: &Launch,
    subject: Subject,
    surroundings: Surroundings,
    inbox: &Arc<Inbox>,
) -> Result<JoinHandle<()>, AgentError> {
    let mut addresses = follow_addresses().await?;
    let assigned = addresses.borrow_and_update().clone();
    let programming = start_threads(launch, subject, surroundings, inbox, assigned)?;
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
    let (sender, receiver) = watch::channel(addresses::read().await?);
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

fn start_threads(
    launch: &Launch,
    subject: Subject,
    surroundings: Surroundings,
    inbox: &Arc<Inbox>,
    assigned: NodeAddresses,
) -> Result<JoinHandle<()>, AgentError> {
    let owned = surroundings.owned;
    let (options, hints) = surroundings.traffic.options(&assigned);
    for hint in hints {
        error!("{hint}");
    }
    let zone = subject.object.as_ref().and_then(|node| node.zone.clone());
    let vantage = Vantage { node: subject.node, zone };
    let mut engine = Engine::new(options, vantage, subject.families, owned);
    engine.set_local_addresses(&surroundings.traffic.local_addresses(&assigned));
    let kernel = NetlinkKernel::open()?;
    if !owned {
        start_monitor(Monitor::open(kernel.portid())?, inbox.clone())?;
    }
    let limits = Limits {
        min_interval: launch.config.min_sync_period,
        retry: launch.config.sync_period,
        audit: Limits::AUDIT,
    };
    let observer = AgentObserver::new(surroundings, assigned);
    let synchronizer = Synchronizer::new(engine, kernel);
    let worker = Worker::new(synchronizer, inbox.clone(), observer, limits);
    spawn("netlink", move || {
        let mut synchronizer = worker.run();
        if owned {
            for family in subject.families.iter() {
                release(&mut synchronizer, family);
            }
        }
    })
}

fn release(synchronizer: &mut Synchronizer<NetlinkKernel>, family: Family) {
    match synchronizer.release(family) {
        Ok(()) => info!(%family, "The rules stay; the table is no longer owned"),
        Err(reason) => error!(
            %family,
            reason = with_causes(&reason),
            "The rules stay in an owned table; before another kube-proxy, run --cleanup"
        ),
    }
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
                    error!(reason = with_causes(&reason), "Foreign changes are no longer noticed");
                    return;
                }
            }
        }
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, AgentError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map_err(AgentError::Thread)
}
