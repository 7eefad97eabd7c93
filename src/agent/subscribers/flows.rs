//! Stale UDP flows: what each sync makes due, and the thread that deletes them.
//!
//! A job stays due until it was done: what fails waits, merged with what comes after it, and is
//! tried again (`world.md`, C7).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tracing::{error, info};

use crate::backoff::Backoff;
use crate::conntrack::{Reconciliation, UdpPort};
use crate::logging::with_causes;
use crate::metrics::Metrics;
use crate::model::{Family, ObjectName, PerFamily};
use crate::netlink::conntrack::{Cleaned, Conntrack, ConntrackError};
use crate::program::Surroundings;
use crate::sync::{InForce, Subscriber, Turn};

/// Pauses before a job that failed is tried again.
const RETRIES: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));

/// What to reconcile: only services whose UDP ports changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// The family.
    pub family: Family,
    /// By service, so that what comes later replaces what waits.
    pub services: BTreeMap<ObjectName, Ports>,
    /// Addresses on which NodePorts are served.
    pub node_port_addresses: HashSet<IpAddr>,
}

/// A service's UDP ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// Now.
    pub current: Vec<UdpPort>,
    /// At the last reconciliation.
    pub previous: Vec<UdpPort>,
}

/// Says which services' flows are due.
pub struct Flows {
    jobs: Sender<Job>,
    node_port_addresses: PerFamily<HashSet<IpAddr>>,
    /// UDP ports of services at their last job; no service without one.
    known: PerFamily<HashMap<ObjectName, Vec<UdpPort>>>,
}

impl Flows {
    /// Nothing is in force yet; `surroundings` are those of the start.
    pub fn new(jobs: Sender<Job>, surroundings: &Surroundings) -> Self {
        let node_port_addresses = node_ports(surroundings);
        Flows { jobs, node_port_addresses, known: PerFamily::default() }
    }

    /// UDP ports of services at their last job.
    #[cfg(test)]
    pub fn known(&self, family: Family) -> &HashMap<ObjectName, Vec<UdpPort>> {
        &self.known[family]
    }

    /// The services among those in force whose UDP ports are not what they were.
    fn due(&mut self, family: Family, in_force: &[InForce]) -> BTreeMap<ObjectName, Ports> {
        let mut due = BTreeMap::new();
        for service in in_force {
            let slices: Vec<_> = service.slices.iter().map(|slice| &**slice).collect();
            let object = service.service.as_ref();
            let current = object.map(|object| UdpPort::of_service(object, &slices, family));
            let current = current.unwrap_or_default();
            let known = &mut self.known[family];
            if known.get(&service.name).map_or(&[][..], Vec::as_slice) == current {
                continue;
            }
            let previous = match current.is_empty() {
                true => known.remove(&service.name),
                false => known.insert(service.name.clone(), current.clone()),
            };
            let ports = Ports { current, previous: previous.unwrap_or_default() };
            due.insert(service.name.clone(), ports);
        }
        due
    }
}

impl Subscriber for Flows {
    fn turn(&mut self, turn: &Turn) {
        if let Some(surroundings) = &turn.surroundings {
            self.node_port_addresses = node_ports(surroundings);
        }
        for sync in &turn.syncs {
            let family = sync.report.family;
            let services = self.due(family, &sync.in_force);
            if !services.is_empty() {
                let node_port_addresses = self.node_port_addresses[family].clone();
                // The thread ends only with the process.
                let _ = self.jobs.send(Job { family, services, node_port_addresses });
            }
        }
    }
}

fn node_ports(surroundings: &Surroundings) -> PerFamily<HashSet<IpAddr>> {
    let local = &surroundings.local_addresses;
    PerFamily::from_fn(|family| local[family].iter().copied().collect())
}

/// The kernel's flows.
pub trait FlowTable {
    /// Deletes what a reconciliation calls stale.
    ///
    /// # Errors
    /// If they could not be read; nothing was deleted.
    fn reconcile(
        &mut self,
        family: Family,
        reconciliation: &Reconciliation<'_>,
    ) -> Result<Cleaned, ConntrackError>;
}

impl FlowTable for Conntrack {
    fn reconcile(
        &mut self,
        family: Family,
        reconciliation: &Reconciliation<'_>,
    ) -> Result<Cleaned, ConntrackError> {
        Conntrack::reconcile(self, family, reconciliation)
    }
}

/// Starts the thread; it ends when the sender is dropped. Jobs are done one after the other, in the
/// network namespace of the caller.
pub fn start(metrics: Arc<Metrics>) -> std::io::Result<Sender<Job>> {
    let (sender, jobs) = channel();
    std::thread::Builder::new()
        .name("conntrack".to_owned())
        .spawn(move || work(&jobs, &metrics, Conntrack::open))?;
    Ok(sender)
}

fn work<T: FlowTable>(
    jobs: &Receiver<Job>,
    metrics: &Metrics,
    mut open: impl FnMut() -> Result<T, ConntrackError>,
) {
    let mut due = Due::default();
    let mut table = None;
    let mut failures = 0;
    while due.wait(jobs, RETRIES.pause(failures)) {
        let mut failed = false;
        for job in due.take() {
            let outcome = attempt(&mut table, &mut open, &job, metrics);
            if let Err(reason) = outcome {
                error!(family = %job.family, reason, "Failed to clean up stale flows, trying again");
                due.put_back(job);
                failed = true;
            }
        }
        failures = if failed { failures + 1 } else { 0 };
    }
}

/// One job; `Err` says why it stays due.
fn attempt<T: FlowTable>(
    table: &mut Option<T>,
    open: &mut impl FnMut() -> Result<T, ConntrackError>,
    job: &Job,
    metrics: &Metrics,
) -> Result<(), String> {
    let started = Instant::now();
    let current: Vec<UdpPort> = job.services.values().flat_map(|p| &p.current).cloned().collect();
    let previous: Vec<UdpPort> = job.services.values().flat_map(|p| &p.previous).cloned().collect();
    let reconciliation = Reconciliation::new(&current, &previous, &job.node_port_addresses);
    let opened = match table {
        Some(opened) => opened,
        None => table.insert(open().map_err(|reason| with_causes(&reason))?),
    };
    let cleaned = match opened.reconcile(job.family, &reconciliation) {
        Ok(cleaned) => cleaned,
        Err(reason) => {
            *table = None;
            return Err(with_causes(&reason));
        }
    };
    let deleted = cleaned.deleted as u64;
    metrics.proxy.conntrack_reconciled(job.family, started.elapsed(), deleted);
    if deleted > 0 {
        info!(v = 2, family = %job.family, deleted, "Deleted stale UDP flows");
    }
    match cleaned.failed.first() {
        Some((flow, reason)) => {
            Err(format!("{} flows could not be deleted, {flow:?}: {reason}", cleaned.failed.len()))
        }
        None if cleaned.partial => Err("the table changed while it was read".to_owned()),
        None => Ok(()),
    }
}

/// What waits, at most one job a family.
#[derive(Debug, Default)]
struct Due(PerFamily<Option<Job>>);

impl Due {
    /// Waits until there is something to do, after a failure at least for `pause`; what waits then is
    /// done in one go, for reading the table costs the same for one job as for many. False when the
    /// sender is gone.
    fn wait(&mut self, jobs: &Receiver<Job>, pause: Duration) -> bool {
        let end = Instant::now() + pause;
        loop {
            let idle = Family::BOTH.iter().all(|family| self.0[*family].is_none());
            let left = end.saturating_duration_since(Instant::now());
            let job = match (idle, left.is_zero()) {
                (true, _) => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                (false, true) => jobs.try_recv().map_err(|error| match error {
                    std::sync::mpsc::TryRecvError::Empty => RecvTimeoutError::Timeout,
                    std::sync::mpsc::TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
                }),
                (false, false) => jobs.recv_timeout(left),
            };
            match job {
                Ok(job) => self.add(job),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self) -> Vec<Job> {
        Family::BOTH.iter().filter_map(|family| self.0[*family].take()).collect()
    }

    fn add(&mut self, job: Job) {
        match &mut self.0[job.family] {
            Some(waiting) => waiting.follow(job),
            empty => *empty = Some(job),
        }
    }

    /// A job that failed goes before whatever came meanwhile.
    fn put_back(&mut self, mut job: Job) {
        if let Some(later) = self.0[job.family].take() {
            job.follow(later);
        }
        let family = job.family;
        self.0[family] = Some(job);
    }
}

impl Job {
    /// Takes in a later job, with the effect of both in their order.
    fn follow(&mut self, later: Job) {
        for (service, ports) in later.services {
            let waiting = self.services.entry(service).or_default();
            waiting.current = ports.current;
            // What was current in between may have been translated to, too.
            let new = ports.previous.into_iter();
            let new: Vec<UdpPort> = new.filter(|port| !waiting.previous.contains(port)).collect();
            waiting.previous.extend(new);
        }
        self.node_port_addresses = later.node_port_addresses;
    }
}

#[cfg(test)]
mod tests;
