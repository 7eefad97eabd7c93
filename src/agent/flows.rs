//! The thread that deletes stale UDP flows after a sync.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use tracing::{error, info};

use crate::conntrack::kernel::Conntrack;
use crate::conntrack::{Reconciliation, UdpPort};
use crate::metrics::Metrics;
use crate::model::Family;

/// What to reconcile: only the services that changed.
#[derive(Debug)]
pub struct Job {
    /// The family.
    pub family: Family,
    /// Their UDP ports now.
    pub current: Vec<UdpPort>,
    /// Their UDP ports at the last reconciliation.
    pub previous: Vec<UdpPort>,
    /// Addresses on which NodePorts are served.
    pub node_port_addresses: HashSet<IpAddr>,
}

/// Starts the thread; it ends when the sender is dropped. Jobs are done one after the other, in the
/// network namespace of the caller.
pub fn start(metrics: Arc<Metrics>) -> std::io::Result<Sender<Job>> {
    let (sender, jobs) = channel();
    std::thread::Builder::new()
        .name("conntrack".to_owned())
        .spawn(move || work(&jobs, &metrics))?;
    Ok(sender)
}

fn work(jobs: &Receiver<Job>, metrics: &Metrics) {
    let mut conntrack = None;
    while let Ok(first) = jobs.recv() {
        // What waits is done in one go: reading conntrack costs the same for one job as for many.
        let waiting = std::iter::once(first).chain(jobs.try_iter());
        for job in merged(waiting) {
            let started = Instant::now();
            let kernel = match &mut conntrack {
                Some(kernel) => kernel,
                None => match Conntrack::open() {
                    Ok(kernel) => conntrack.insert(kernel),
                    Err(reason) => {
                        error!(%reason, "Failed to clean up stale flows");
                        continue;
                    }
                },
            };
            let reconciliation =
                Reconciliation::new(&job.current, &job.previous, &job.node_port_addresses);
            match kernel.reconcile(job.family, &reconciliation) {
                Ok(cleaned) => {
                    let deleted = cleaned.deleted as u64;
                    metrics.proxy.conntrack_reconciled(job.family, started.elapsed(), deleted);
                    if deleted > 0 {
                        info!(v = 2, family = %job.family, deleted, "Deleted stale UDP flows");
                    }
                    for (flow, reason) in cleaned.failed {
                        error!(?flow, %reason, "Failed to delete a stale UDP flow");
                    }
                }
                Err(reason) => {
                    error!(family = %job.family, %reason, "Failed to clean up stale flows");
                    conntrack = None;
                }
            }
        }
    }
}

/// At most one job per family, with the effect of all of them in their order.
fn merged(jobs: impl Iterator<Item = Job>) -> Vec<Job> {
    let mut merged: Vec<Job> = Vec::new();
    for job in jobs {
        match merged.iter_mut().find(|known| known.family == job.family) {
            Some(known) => {
                // What an earlier job left as current is this one's previous.
                known.current.retain(|port| !job.previous.contains(port));
                known.current.extend(job.current);
                known.previous.extend(job.previous);
                known.node_port_addresses = job.node_port_addresses;
            }
            None => merged.push(job),
        }
    }
    merged
}
