//! What the rest of the agent makes of each turn of the worker.
//!
//! Place in the flow: behind [`crate::sync`]; each file here, and [`super::flows`], takes a
//! [`crate::sync::Turn`] and keeps one thing up to date. They know each other as little as they know
//! engine or kernel; what acts only on success looks at the reports itself. The order is fixed: figures
//! first, so that whoever hears of an event finds them moved.

mod events;
mod health;
mod metrics;
mod status;

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};

use super::flows::{Flows, Job};
use super::note::Note;
use crate::health::Health;
use crate::localhost::Desired;
use crate::metrics::Metrics;
use crate::netlink::heap;
use crate::program::NodeAddressing;
use crate::status::SharedStatus;
use crate::sync::{Subscriber, Turn};

pub use events::{Events, Fatal};
pub use health::{HealthChecks, Healthy, no_health_checks};
pub use metrics::Figures;
pub use status::Shown;

/// Where the subscribers write.
pub struct Outlets {
    pub metrics: Arc<Metrics>,
    /// Health of the proxy.
    pub health: Health,
    /// For `kubeweir status`.
    pub status: SharedStatus,
    /// Stale flows to delete.
    pub flows: Sender<Job>,
    /// Health-check node ports.
    pub health_checks: watch::Sender<HealthChecks>,
    /// NodePorts on loopback addresses.
    pub localhost: Desired,
    /// Events and fatal changes.
    pub notes: mpsc::UnboundedSender<Note>,
    /// Which changes of the Node end the process.
    pub fatal: Fatal,
    /// After which time connections to endpoints that are gone are ended.
    pub end_connections_after: Option<Duration>,
    /// Large syncs, for [`return_memory`].
    pub bulk: Arc<Notify>,
}

/// All of them, in order; `addressing` are those of the start.
pub fn all(outlets: Outlets, addressing: &NodeAddressing) -> Vec<Box<dyn Subscriber>> {
    let Outlets { metrics, health, status, flows, health_checks, localhost, notes, fatal, .. } =
        outlets;
    vec![
        Box::new(Figures::new(metrics)),
        Box::new(Shown::new(status)),
        Box::new(Healthy::new(health, health_checks, addressing)),
        Box::new(Localhost(localhost)),
        Box::new(Flows::new(flows, addressing, outlets.end_connections_after)),
        Box::new(Events::new(notes, fatal)),
        Box::new(Heap(outlets.bulk)),
    ]
}

/// Services of one sync, a full one as a rule, after which free memory is worth returning.
const BULK: usize = 1000;

/// How long after it: what others keep of the turn, to judge flows, is let go by then.
const AFTER_BULK: Duration = Duration::from_secs(2);

/// Tells of a sync that leaves holes in the heap.
struct Heap(Arc<Notify>);

impl Subscriber for Heap {
    fn turn(&mut self, turn: &Turn) {
        if turn.syncs.iter().any(|sync| sync.in_force.len() >= BULK) {
            self.0.notify_one();
        }
    }
}

/// Gives free memory back to the kernel after each such sync, until the process ends.
pub async fn return_memory(bulk: Arc<Notify>) {
    loop {
        bulk.notified().await;
        while tokio::time::timeout(AFTER_BULK, bulk.notified()).await.is_ok() {}
        let _ = tokio::task::spawn_blocking(heap::return_free_memory).await;
    }
}

#[cfg(test)]
pub(crate) mod tests;

/// Tells the proxy of localhost NodePorts what to serve: what is in force, as everywhere else.
pub struct Localhost(pub Desired);

impl Subscriber for Localhost {
    fn turn(&mut self, turn: &Turn) {
        for sync in &turn.syncs {
            for service in &sync.in_force {
                self.0.set(sync.report.family, &service.name, service.localhost.clone());
            }
        }
        self.0.publish();
    }
}
