//! The thread that deletes stale flows.
//!
//! A job stays due until it was done: what fails waits, merged with what comes after it, and is
//! tried again (`world.md`, C7).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::Job;
use crate::backoff::Backoff;
use crate::conntrack::{Flow, Reconciliation, ServedPort};
use crate::logging::with_causes;
use crate::metrics::Metrics;
use crate::model::{Family, PerFamily, Protocol};
use crate::netlink::conntrack::{Cleaned, Conntrack, ConntrackError};

/// Pauses before a job that failed is tried again.
const RETRIES: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));

/// From one look at TCP flows to the next. Nearly every change concerns a TCP port, and a client
/// repeats its first packet after a second at the earliest.
const TCP_PAUSE: Duration = Duration::from_secs(1);

/// How long an answer to a packet may take that passed before its flow was deleted.
const ECHO: Duration = Duration::from_secs(1);

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

    /// Deletes these flows if they are there.
    fn delete(&mut self, flows: &[Flow]);
}

impl FlowTable for Conntrack {
    fn reconcile(
        &mut self,
        family: Family,
        reconciliation: &Reconciliation<'_>,
    ) -> Result<Cleaned, ConntrackError> {
        Conntrack::reconcile(self, family, reconciliation)
    }

    fn delete(&mut self, flows: &[Flow]) {
        // They are hardly ever there, and no worse than before if they stay.
        let _ = Conntrack::delete(self, flows);
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

pub(super) fn work<T: FlowTable>(
    jobs: &Receiver<Job>,
    metrics: &Metrics,
    mut open: impl FnMut() -> Result<T, ConntrackError>,
) {
    let mut due = Due::new(Instant::now());
    let mut table: Option<T> = None;
    let mut failures = 0;
    while due.wait(jobs) {
        let now = Instant::now();
        if let (Some(table), Some(echoes)) = (&mut table, due.echoes(now)) {
            table.delete(&echoes);
        }
        let taken = due.take(now);
        if taken.is_empty() {
            continue;
        }
        let mut failed = false;
        for job in taken {
            let outcome = attempt(&mut table, &mut open, &job, metrics, &mut due);
            if let Err(reason) = outcome {
                error!(family = %job.family, reason, "Failed to clean up stale flows, trying again");
                due.put_back(job);
                failed = true;
            }
        }
        failures = if failed { failures + 1 } else { 0 };
        due.from = Instant::now() + RETRIES.pause(failures);
    }
}

/// One job; `Err` says why it stays due.
fn attempt<T: FlowTable>(
    table: &mut Option<T>,
    open: &mut impl FnMut() -> Result<T, ConntrackError>,
    job: &Job,
    metrics: &Metrics,
    due: &mut Due,
) -> Result<(), String> {
    let started = Instant::now();
    let tcp = job.tcp.values().flatten().flat_map(|s| s.ports(job.family, Protocol::Tcp));
    let udp = job.udp.values().flat_map(|ports| &ports.current).cloned();
    let current: Vec<ServedPort> = udp.chain(tcp).collect();
    let previous: Vec<ServedPort> =
        job.udp.values().flat_map(|ports| &ports.previous).cloned().collect();
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
    let took = (!job.udp.is_empty()).then(|| started.elapsed());
    metrics.proxy.conntrack_reconciled(job.family, took, deleted);
    if deleted > 0 {
        info!(v = 2, family = %job.family, deleted, "Deleted stale flows");
    }
    due.expect_echoes(&cleaned.untranslated, Instant::now());
    match cleaned.failed.first() {
        Some((flow, reason)) => {
            Err(format!("{} flows could not be deleted, {flow:?}: {reason}", cleaned.failed.len()))
        }
        None if cleaned.partial => Err("the table changed while it was read".to_owned()),
        None => Ok(()),
    }
}

/// What waits, at most one job a family.
struct Due {
    jobs: PerFamily<Option<Job>>,
    /// When flows may be looked at, after a failure.
    from: Instant,
    /// When those of TCP may.
    tcp_from: Instant,
    /// See [`Flow::echo`]; and when the last of them has come.
    echoes: Option<(Instant, Vec<Flow>)>,
}

impl Due {
    fn new(now: Instant) -> Self {
        Due { jobs: PerFamily::default(), from: now, tcp_from: now, echoes: None }
    }

    fn expect_echoes(&mut self, deleted: &[Flow], now: Instant) {
        if !deleted.is_empty() {
            let (end, flows) = self.echoes.get_or_insert((now, Vec::new()));
            *end = now + ECHO;
            flows.extend(deleted.iter().map(Flow::echo));
        }
    }

    fn echoes(&mut self, now: Instant) -> Option<Vec<Flow>> {
        self.echoes.take_if(|(end, _)| *end <= now).map(|(_, flows)| flows)
    }

    /// When there is something to do.
    fn next(&self) -> Option<Instant> {
        let waiting = || Family::BOTH.iter().filter_map(|family| self.jobs[*family].as_ref());
        let udp = waiting().any(|job| !job.udp.is_empty()).then_some(self.from);
        let tcp = waiting().any(|job| !job.tcp.is_empty());
        let tcp = tcp.then(|| self.from.max(self.tcp_from));
        let echoes = self.echoes.as_ref().map(|(end, _)| *end);
        [udp, tcp, echoes].into_iter().flatten().min()
    }

    /// Waits until there is something to do; what waits then is done in one go, for reading the table
    /// costs the same for one job as for many. False when the sender is gone.
    fn wait(&mut self, jobs: &Receiver<Job>) -> bool {
        loop {
            let job = match self.next() {
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(next) => jobs.recv_timeout(next.saturating_duration_since(Instant::now())),
            };
            match job {
                Ok(job) => self.add(job),
                Err(RecvTimeoutError::Timeout) => return true,
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn take(&mut self, now: Instant) -> Vec<Job> {
        if now < self.from {
            return Vec::new();
        }
        if self.tcp_from <= now {
            self.tcp_from = now + TCP_PAUSE;
            return Family::BOTH.iter().filter_map(|family| self.jobs[*family].take()).collect();
        }
        let mut taken = Vec::new();
        for family in Family::BOTH {
            let Some(job) = &mut self.jobs[family] else { continue };
            let udp = std::mem::take(&mut job.udp);
            let node_port_addresses = job.node_port_addresses.clone();
            if !udp.is_empty() {
                taken.push(Job { family, udp, tcp: BTreeMap::new(), node_port_addresses });
            }
        }
        taken
    }

    fn add(&mut self, job: Job) {
        match &mut self.jobs[job.family] {
            Some(waiting) => waiting.follow(job),
            empty => *empty = Some(job),
        }
    }

    /// A job that failed goes before whatever came meanwhile.
    fn put_back(&mut self, mut job: Job) {
        if let Some(later) = self.jobs[job.family].take() {
            job.follow(later);
        }
        let family = job.family;
        self.jobs[family] = Some(job);
    }
}

impl Job {
    /// Takes in a later job, with the effect of both in their order.
    fn follow(&mut self, later: Job) {
        for (service, ports) in later.udp {
            let waiting = self.udp.entry(service).or_default();
            waiting.current = ports.current;
            // What was current in between may have been translated to, too.
            let new = ports.previous.into_iter();
            let new: Vec<ServedPort> =
                new.filter(|port| !waiting.previous.contains(port)).collect();
            waiting.previous.extend(new);
        }
        self.tcp.extend(later.tcp);
        self.node_port_addresses = later.node_port_addresses;
    }
}
