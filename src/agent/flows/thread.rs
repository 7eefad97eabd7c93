//! The thread that deletes stale flows.
//!
//! A job stays due until it was done: what fails waits, merged with what comes after it, and is
//! tried again (`world.md`, C7).

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tracing::{error, info, warn};

use super::Job;
use crate::agent::note::Note;
use crate::backoff::Backoff;
use crate::conntrack::{Endings, Entry, Flow, Reconciliation, ServedPort};
use crate::metrics::Metrics;
use crate::model::{Family, PerFamily, Protocol};
use crate::netlink::conntrack::{Cleaned, Conntrack, ConntrackError};
use crate::program::ended;
use crate::status::SharedStatus;
use crate::sync::{Inbox, Refusal};
use crate::sysctl;
use crate::text::with_causes;

/// Pauses before a job that failed is tried again.
const RETRIES: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60));

/// From one look at TCP flows to the next. Nearly every change concerns a TCP port, and a client
/// repeats its first packet after a second at the earliest.
const TCP_PAUSE: Duration = Duration::from_secs(1);

/// A look at all connections of IPv6 takes a while where there are many. So many times as long as the last
/// one took, none is made.
const REST: u32 = 4;

/// How long the rules may take that refuse late packets, before connections are ended without them.
const REFUSAL: Duration = Duration::from_secs(2);

/// How long a turn may take to tell what it committed, before flows are judged without.
const CATCH_UP: Duration = Duration::from_secs(1);

/// How long an answer to a packet may take that passed before its flow was deleted.
const ECHO: Duration = Duration::from_secs(1);

/// The kernel's flows.
pub trait FlowTable {
    /// Deletes what a reconciliation calls stale and `confirm` leaves.
    ///
    /// Errors: if they could not be read; nothing was deleted.
    fn reconcile(
        &mut self,
        family: Family,
        reconciliation: &Reconciliation<'_>,
        confirm: &mut dyn FnMut(&mut Vec<Flow>),
    ) -> Result<Cleaned, ConntrackError>;

    /// Deletes these flows if they are there.
    fn delete(&mut self, flows: &[Flow]);

    /// Ends some of the TCP connections with an endpoint that `which` names, after `before` was told of
    /// them: how many, and whether there may be more.
    ///
    /// Errors: if they could not be read.
    fn end(
        &mut self,
        endpoint: IpAddr,
        which: &dyn Fn(&Entry) -> bool,
        before: &dyn Fn(&[Flow]),
    ) -> Result<(usize, bool), ConntrackError>;
}

impl FlowTable for Conntrack {
    fn reconcile(
        &mut self,
        family: Family,
        reconciliation: &Reconciliation<'_>,
        confirm: &mut dyn FnMut(&mut Vec<Flow>),
    ) -> Result<Cleaned, ConntrackError> {
        Conntrack::reconcile(self, family, reconciliation, confirm)
    }

    fn delete(&mut self, flows: &[Flow]) {
        // They are hardly ever there, and no worse than before if they stay.
        let _ = Conntrack::delete(self, flows);
    }

    fn end(
        &mut self,
        endpoint: IpAddr,
        which: &dyn Fn(&Entry) -> bool,
        before: &dyn Fn(&[Flow]),
    ) -> Result<(usize, bool), ConntrackError> {
        Conntrack::end(self, endpoint, which, before)
    }
}

/// Who is told what the thread did.
pub struct Told {
    /// Counts.
    pub metrics: Arc<Metrics>,
    /// Tells of it.
    pub notes: UnboundedSender<Note>,
    /// Shows it.
    pub status: SharedStatus,
    /// Has packets refused.
    pub inbox: Arc<Inbox>,
}

/// Starts the thread; it ends when the sender is dropped. Jobs are done one after the other, in the
/// network namespace of the caller.
pub fn start(node: Arc<str>, told: Told) -> std::io::Result<Sender<Job>> {
    let (sender, jobs) = channel();
    std::thread::Builder::new()
        .name("conntrack".to_owned())
        .spawn(move || work(&jobs, node, &told, Conntrack::open))?;
    Ok(sender)
}

pub(super) fn work<T: FlowTable>(
    jobs: &Receiver<Job>,
    node: Arc<str>,
    told: &Told,
    mut open: impl FnMut() -> Result<T, ConntrackError>,
) {
    let mut due = Due::new(Instant::now(), node);
    let mut table: Option<T> = None;
    let mut failures = 0;
    while due.wait(jobs) {
        let now = Instant::now();
        if let (Some(table), Some(echoes)) = (&mut table, due.echoes(now)) {
            table.delete(&echoes);
        }
        end(&mut due, &mut table, &mut open, told);
        due.show(&told.status);
        let taken = due.take(now);
        if taken.is_empty() {
            continue;
        }
        let mut failed = false;
        for job in taken {
            let outcome = attempt(&mut table, &mut open, &job, jobs, told, &mut due);
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

/// Ends what is due of connections to endpoints that are gone.
fn end<T: FlowTable>(
    due: &mut Due,
    table: &mut Option<T>,
    open: &mut impl FnMut() -> Result<T, ConntrackError>,
    told: &Told,
) {
    let now = due.age();
    let Some(ending) = due.endings.due(now) else { return };
    let Some(port) = due.endings.port(&ending) else {
        due.endings.ended(now, &ending);
        return;
    };
    let (endpoint, family) = (ending.endpoint, port.family);
    let addresses = &due.node_port_addresses[family];
    let which = |entry: &Entry| port.leads(entry, endpoint, addresses);
    let opened = match table {
        Some(opened) => Ok(opened),
        None => open().map(|opened| table.insert(opened)),
    };
    let before = |flows: &[Flow]| refuse_late_packets(family, flows, &told.inbox);
    match opened.and_then(|table| table.end(endpoint.ip(), &which, &before)) {
        Ok((ended, more)) => {
            told.metrics.agent.connections_ended(family, ended);
            told.status.update(|status| status.endings.ended += ended as u64);
            if !more {
                due.endings.ended(now, &ending);
            }
            due.endings.pause(due.age(), due.age().saturating_sub(now) * REST);
            if ended > 0 {
                let service = ending.service;
                let note = format!("{ended} connections to {endpoint}, which is gone, were ended");
                info!(%service, note, "Ended connections");
                // Nobody listens any more only when the process ends.
                let _ = told.notes.send(Note::ConnectionsEnded { service, note });
            }
        }
        Err(reason) => {
            *table = None;
            let reason = with_causes(&reason);
            error!(%endpoint, reason, "Failed to end connections, trying again");
            due.endings.pause(now, RETRIES.pause(1));
        }
    }
}

/// A packet of a connection that is not tracked any more is a new one's for the kernel, and meets the
/// rules, unless it is told to make nothing of it.
fn refuse_late_packets(family: Family, flows: &[Flow], inbox: &Inbox) {
    if flows.is_empty() || sysctl::takes_connections_in_their_middle(Path::new("/")) {
        return;
    }
    let connection = |flow: &Flow| ended(flow.original.source, flow.original.destination);
    let (done, outcome) = channel();
    inbox.refuse(Refusal { family, connections: flows.iter().map(connection).collect(), done });
    let reason = match outcome.recv_timeout(REFUSAL) {
        Ok(Ok(true)) => return,
        Ok(Ok(false)) => "there are no rules yet".to_owned(),
        Ok(Err(reason)) => with_causes(&reason),
        Err(_) => "the thread that programs is at work on something else".to_owned(),
    };
    warn!(%family, reason, "Late packets of ended connections may be lost");
}

/// One job; `Err` says why it stays due.
fn attempt<T: FlowTable>(
    table: &mut Option<T>,
    open: &mut impl FnMut() -> Result<T, ConntrackError>,
    job: &Job,
    jobs: &Receiver<Job>,
    told: &Told,
    due: &mut Due,
) -> Result<(), String> {
    let started = Instant::now();
    let (current, previous) = job.ports();
    let reconciliation = Reconciliation::new(&current, &previous, &job.node_port_addresses);
    let mut confirm = |stale: &mut Vec<Flow>| {
        if !stale.is_empty() {
            due.catch_up(jobs, &told.inbox);
            due.spare(job, stale);
        }
    };
    let opened = match table {
        Some(opened) => opened,
        None => table.insert(open().map_err(|reason| with_causes(&reason))?),
    };
    let cleaned = match opened.reconcile(job.family, &reconciliation, &mut confirm) {
        Ok(cleaned) => cleaned,
        Err(reason) => {
            *table = None;
            return Err(with_causes(&reason));
        }
    };
    let deleted = cleaned.deleted as u64;
    let took = (!job.udp.is_empty()).then(|| started.elapsed());
    told.metrics.proxy.conntrack_reconciled(job.family, took, deleted);
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
    /// Connections to endpoints that are gone, by the time since the start.
    endings: Endings,
    /// What of it was shown last.
    shown: (usize, usize),
    started: Instant,
    node_port_addresses: PerFamily<HashSet<IpAddr>>,
}

impl Due {
    fn new(now: Instant, node: Arc<str>) -> Self {
        Due {
            jobs: PerFamily::default(),
            from: now,
            tcp_from: now,
            echoes: None,
            endings: Endings::new(node),
            shown: (0, 0),
            started: now,
            node_port_addresses: PerFamily::default(),
        }
    }

    /// Only what changed: without endings, nothing ever does.
    fn show(&mut self, status: &SharedStatus) {
        let waiting = self.endings.waiting();
        if std::mem::replace(&mut self.shown, waiting) != waiting {
            status.update(|status| (status.endings.draining, status.endings.held) = waiting);
        }
    }

    fn age(&self) -> Duration {
        self.started.elapsed()
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
        let endings = self.endings.next().map(|age| self.started + age);
        [udp, tcp, echoes, endings].into_iter().flatten().min()
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

    /// Takes in what is told of all that is in force now. A turn tells at its end what it committed.
    fn catch_up(&mut self, jobs: &Receiver<Job>, inbox: &Inbox) {
        let listed = Instant::now();
        let untold = || inbox.at_work().is_some_and(|time| time >= listed.elapsed());
        while untold() && listed.elapsed() < CATCH_UP {
            std::thread::sleep(Duration::from_millis(1));
        }
        while let Ok(job) = jobs.try_recv() {
            self.add(job);
        }
    }

    /// Leaves out what is not stale by what came after a job: it may be a flow to an endpoint that has just
    /// come, and a question in it that is not answered yet.
    fn spare(&self, job: &Job, stale: &mut Vec<Flow>) {
        let Some(later) = &self.jobs[job.family] else { return };
        let mut newest = job.clone();
        newest.follow(later.clone());
        let (current, previous) = newest.ports();
        let newest = Reconciliation::new(&current, &previous, &newest.node_port_addresses);
        stale.retain(|flow| newest.is_stale(flow));
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
                let (tcp, drained) = (BTreeMap::new(), Vec::new());
                taken.push(Job { family, udp, tcp, drained, node_port_addresses });
            }
        }
        taken
    }

    fn add(&mut self, mut job: Job) {
        let drained = std::mem::take(&mut job.drained);
        self.endings.told(self.age(), job.family, drained);
        self.node_port_addresses[job.family].clone_from(&job.node_port_addresses);
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
    /// All ports, now and at the last reconciliation.
    fn ports(&self) -> (Vec<ServedPort>, Vec<ServedPort>) {
        let tcp = self.tcp.values().flatten().flat_map(|s| s.ports(self.family, Protocol::Tcp));
        let udp = self.udp.values().flat_map(|ports| &ports.current).cloned();
        let previous = self.udp.values().flat_map(|ports| &ports.previous).cloned();
        (udp.chain(tcp).collect(), previous.collect())
    }

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
