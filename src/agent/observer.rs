//! What the rest of the agent learns from the worker: metrics, health, conntrack, Events, status.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::flows::Job;
use super::status::{
    Contested, FamilyStatus, LastSync, QuarantinedService, SharedStatus, UnservedPorts,
};
use super::traffic::Traffic;
use crate::conntrack::UdpPort;
use crate::engine::{Conflict, Effect};
use crate::health::Health;
use crate::health::service::{ListenAddresses, ServiceHealth};
use crate::metrics::{Metrics, NoLocalEndpoints};
use crate::model::{Change, Families, Family, Kind, NodeAddresses, Object, ObjectName, PerFamily};
use crate::netlink::heap;
use crate::node::object::pod_cidrs_differ;
use crate::program::{FrontendAt, FrontendKey, NodePortMatch};
use crate::sync::{Observer, Report, Synchronizer, Timing};
use crate::transaction::{CommitError, Kernel};

/// Something for an Event, or for the end of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Occurrence {
    /// The kernel refused a service.
    Quarantined {
        /// The service.
        service: ObjectName,
        /// Why.
        reason: String,
    },
    /// The node's podCIDRs are not what they were at start, in NodeCIDR mode (B-058).
    PodCidrsChanged,
}

/// How many syncs before the last one the status shows.
const SHOWN_EARLIER_SYNCS: usize = 4;

/// How many service ports the status names for each reason why they are not served.
const SHOWN_UNSERVED: usize = 5;

/// What the health-check node ports are to serve.
pub type HealthChecks = (BTreeMap<ObjectName, ServiceHealth>, ListenAddresses);

/// Before the first sync nothing listens.
pub fn no_health_checks() -> HealthChecks {
    (BTreeMap::new(), ListenAddresses::Only(Vec::new()))
}

/// The observer's surroundings.
pub struct Surroundings {
    /// Configuration and node.
    pub traffic: Traffic,
    /// Tables are owned.
    pub owned: bool,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Health of the proxy.
    pub health: Health,
    /// For `kubeweir status`.
    pub status: SharedStatus,
    /// Stale flows to delete.
    pub flows: Sender<Job>,
    /// Health-check node ports.
    pub health_checks: watch::Sender<HealthChecks>,
    /// Events and fatal changes.
    pub occurrences: mpsc::UnboundedSender<Occurrence>,
    /// podCIDR changes end the process.
    pub node_cidr_mode: bool,
}

/// Services of one sync, a full one as a rule, after which free memory is worth returning.
const BULK: usize = 1000;

/// The observer.
pub struct AgentObserver {
    around: Surroundings,
    started: Timestamp,
    addresses: NodeAddresses,
    /// Trigger times of slices whose services are not in force yet, nanoseconds since 1970.
    triggers: HashMap<(Family, ObjectName), Vec<i64>>,
    /// UDP ports of services at their last reconciliation.
    udp: PerFamily<HashMap<ObjectName, Vec<UdpPort>>>,
    udp_due: PerFamily<BTreeSet<ObjectName>>,
    health_services: BTreeMap<ObjectName, ServiceHealth>,
    health_changed: bool,
    node_changed: bool,
    reported_conflicts: PerFamily<usize>,
    elements: PerFamily<usize>,
    /// So much was synced that the heap has holes.
    bulky: bool,
}

impl AgentObserver {
    /// An observer that has seen nothing; `addresses` are those the engine was made with.
    pub fn new(around: Surroundings, addresses: NodeAddresses) -> Self {
        AgentObserver {
            around,
            started: Timestamp::now(),
            addresses,
            triggers: HashMap::new(),
            udp: PerFamily::default(),
            udp_due: PerFamily::default(),
            health_services: BTreeMap::new(),
            health_changed: true,
            node_changed: false,
            reported_conflicts: PerFamily::default(),
            elements: PerFamily::default(),
            bulky: false,
        }
    }

    fn count_change(&self, change: &Change, effect: &Effect, families: Families) {
        let proxy = &self.around.metrics.proxy;
        let effective = !effect.is_empty();
        let (kind, events) = match change {
            Change::Apply(object) => (object.kind(), 1),
            Change::Delete(kind, _) => (*kind, 1),
            Change::Replace(kind, objects) => (*kind, objects.len()),
        };
        for _ in 0..events {
            match kind {
                Kind::EndpointSlice => proxy.endpoint_change(effective),
                // Once per family, as upstream's two proxiers each count it.
                Kind::Service => {
                    families.iter().for_each(|_| proxy.service_change(effect.service_objects.len()))
                }
                Kind::Node | Kind::ServiceCidr => {}
            }
        }
    }

    fn note_triggers(&mut self, effect: &Effect) {
        for service in &effect.slices_removed {
            for family in Family::BOTH {
                self.triggers.remove(&(family, service.clone()));
            }
        }
        let started = self.started.as_nanosecond();
        for (family, service, time) in &effect.triggers {
            if i128::from(*time) > started {
                self.triggers.entry((*family, service.clone())).or_default().push(*time);
            }
        }
    }

    fn note_health_checks<K: Kernel>(
        &mut self,
        synchronizer: &Synchronizer<K>,
        services: &foldhash::HashSet<ObjectName>,
    ) {
        let engine = &synchronizer.engine;
        for name in services {
            let service = engine.store().service(name);
            let wanted = service.and_then(|service| {
                let port = service.health_check_node_port?;
                let served = |f| engine.families().contains(f) && service.cluster_ip(f).is_some();
                let families = Families { v4: served(Family::V4), v6: served(Family::V6) };
                let local_endpoints = PerFamily::from_fn(|f| engine.local_ready(f, name));
                Some(ServiceHealth { port, families, local_endpoints })
            });
            let before = self.health_services.get(name).copied();
            if before != wanted {
                self.health_changed = true;
                match wanted {
                    Some(wanted) => self.health_services.insert(name.clone(), wanted),
                    None => self.health_services.remove(name),
                };
            }
        }
    }

    fn clean_flows<K: Kernel>(&mut self, synchronizer: &Synchronizer<K>, report: &Report) {
        let family = report.family;
        let engine = &synchronizer.engine;
        let done: Vec<ObjectName> =
            self.udp_due[family].intersection(&report.services).cloned().collect();
        let mut job = Job {
            family,
            current: Vec::new(),
            previous: Vec::new(),
            node_port_addresses: self.around.traffic.local_addresses(&self.addresses)[family]
                .iter()
                .copied()
                .collect(),
        };
        for name in done {
            self.udp_due[family].remove(&name);
            let slices: Vec<_> =
                engine.store().slices(&name).iter().map(|slice| &**slice).collect();
            let current = engine
                .store()
                .service(&name)
                .map(|service| UdpPort::of_service(service, &slices, family))
                .unwrap_or_default();
            job.current.extend(current.iter().cloned());
            let previous = if current.is_empty() {
                self.udp[family].remove(&name)
            } else {
                self.udp[family].insert(name, current)
            };
            job.previous.extend(previous.unwrap_or_default());
        }
        if !job.current.is_empty() || !job.previous.is_empty() {
            // The thread ends only with the process.
            let _ = self.around.flows.send(job);
        }
    }

    /// Only the newest Node counts: at the start older ones come first, which may lack podCIDRs.
    fn judge_pod_cidrs<K: Kernel>(&mut self, synchronizer: &Synchronizer<K>) {
        let changed = std::mem::take(&mut self.node_changed) && self.around.node_cidr_mode;
        let Some(node) = synchronizer.engine.store().node().filter(|_| changed) else { return };
        if pod_cidrs_differ(&self.around.traffic.pod_cidrs, node) {
            let _ = self.around.occurrences.send(Occurrence::PodCidrsChanged);
        }
    }

    fn observe_latency(&mut self, report: &Report) {
        let now = Timestamp::now().as_nanosecond();
        for service in &report.services {
            let times = self.triggers.remove(&(report.family, service.clone()));
            for time in times.into_iter().flatten() {
                let nanos = u64::try_from(now - i128::from(time)).unwrap_or(0);
                let latency = std::time::Duration::from_nanos(nanos);
                self.around.metrics.proxy.network_programming(report.family, latency);
            }
        }
    }

    fn log_outcome(&self, report: &Report, timing: Timing) {
        let family = report.family;
        for trouble in &report.troubles {
            warn!(%family, error = %with_causes(trouble), "Commit did not go through at once");
            self.around.metrics.agent.commit_failed(family, trouble);
        }
        for (service, rejection) in &report.refused {
            let reason = format!(
                "{}: {}",
                rejection.object,
                std::io::Error::from_raw_os_error(rejection.errno)
            );
            error!(%family, %service, reason, "The kernel refused a service; it is set aside");
            let refusal = CommitError::Rejected(rejection.clone());
            self.around.metrics.agent.commit_failed(family, &refusal);
            let occurrence = Occurrence::Quarantined { service: service.clone(), reason };
            let _ = self.around.occurrences.send(occurrence);
        }
        match &report.result {
            Ok(()) => info!(
                v = 2,
                %family,
                services = report.services.len(),
                commits = report.commits.len(),
                full = report.full,
                repair = timing.repair,
                elapsed = ?timing.elapsed,
                "Synced"
            ),
            Err(reason) => {
                error!(%family, reason = %with_causes(reason), "Sync failed, trying again");
            }
        }
        if let Some(adoption) = report.adoption {
            info!(v = 1, %family, ?adoption, "Read the table");
        }
    }

    fn log_conflicts<K: Kernel>(&mut self, synchronizer: &Synchronizer<K>, family: Family) {
        let count = synchronizer.engine.summary(family).conflicts;
        if count == self.reported_conflicts[family] {
            return;
        }
        self.reported_conflicts[family] = count;
        for conflict in synchronizer.engine.conflicts(family).iter().map(contested) {
            warn!(
                %family,
                frontend = conflict.frontend,
                owner = conflict.owner,
                others = conflict.others.join(","),
                "Several services claim one frontend; the oldest has it"
            );
        }
    }

    fn update_metrics<K: Kernel>(&mut self, synchronizer: &Synchronizer<K>, report: &Report) {
        let family = report.family;
        let metrics = &self.around.metrics;
        for commit in &report.commits {
            metrics.agent.committed(family, &commit.committed);
            let elements = &mut self.elements[family];
            *elements = (*elements + commit.counts.elements_added)
                .saturating_sub(commit.counts.elements_deleted);
        }
        if report.adoption.is_some() {
            self.elements[family] = synchronizer.engine.element_count(family);
        }
        metrics.agent.elements(family, "all", self.elements[family]);
        let summaries = Family::BOTH.map(|family| synchronizer.engine.summary(family));
        let sum = |of: fn(&crate::engine::FamilySummary) -> usize| -> usize {
            summaries.iter().map(of).sum()
        };
        metrics.agent.frontend_conflicts(sum(|s| s.conflicts));
        metrics.agent.pending_services(sum(|s| s.dirty));
        let quarantined =
            Family::BOTH.iter().map(|f| synchronizer.quarantined(*f).len()).sum::<usize>();
        metrics.agent.quarantined_services(quarantined);
    }

    fn update_status<K: Kernel>(
        &self,
        synchronizer: &Synchronizer<K>,
        report: &Report,
        timing: Timing,
    ) {
        let family = report.family;
        let engine = &synchronizer.engine;
        let last = last_sync(report, timing);
        let contested = engine.conflicts(family).iter().map(contested).collect();
        let quarantine = synchronizer.quarantined(family).iter().map(|(service, quarantined)| {
            let errno = std::io::Error::from_raw_os_error(quarantined.rejection.errno);
            QuarantinedService {
                service: service.to_string(),
                reason: format!("{}: {errno}", quarantined.rejection.object),
                refusals: quarantined.refusals,
            }
        });
        let quarantine = quarantine.collect();
        let unserved = engine.unserved(family).iter().map(|(reason, labels)| {
            let first = labels.iter().take(SHOWN_UNSERVED).map(|label| label.to_string()).collect();
            (*reason, UnservedPorts { count: labels.len(), first })
        });
        let unserved = unserved.collect();
        self.around.status.update(|status| {
            let entry = status.families.entry(family.to_string()).or_default();
            let mut earlier_syncs = std::mem::take(&mut entry.earlier_syncs);
            earlier_syncs.splice(..0, entry.last_sync.take());
            earlier_syncs.truncate(SHOWN_EARLIER_SYNCS);
            *entry = FamilyStatus {
                summary: engine.summary(family),
                program: engine.program(family).mark.clone(),
                owned: engine.ownership(family).is_ours(),
                syncs: entry.syncs + 1,
                failed_syncs: entry.failed_syncs + u64::from(report.result.is_err()),
                repairs: entry.repairs + u64::from(timing.repair),
                last_sync: Some(last),
                earlier_syncs,
                contested,
                unserved,
                quarantine,
            };
        });
    }
}

impl<K: Kernel> Observer<K> for AgentObserver {
    fn changed(&mut self, synchronizer: &mut Synchronizer<K>, change: &Change, effect: &Effect) {
        let families = synchronizer.engine.families();
        self.count_change(change, effect, families);
        self.note_triggers(effect);
        self.note_health_checks(synchronizer, &effect.services);
        for family in families.iter() {
            for service in &effect.slices {
                let slices = synchronizer.engine.store().slices(service);
                let udp = |ports: &[crate::model::SlicePort]| {
                    ports.iter().any(|port| port.protocol == crate::model::Protocol::Udp)
                };
                if slices.iter().any(|slice| udp(&slice.ports))
                    || self.udp[family].contains_key(service)
                {
                    self.udp_due[family].insert(service.clone());
                }
            }
        }
        if effect.node
            && let Some(node) = synchronizer.engine.store().node()
        {
            self.around.health.observe_node(node);
            self.node_changed = true;
        }
        if let Change::Apply(Object::Node(_)) = change
            && effect.zone
        {
            let zone = synchronizer.engine.vantage().zone.as_deref().unwrap_or_default();
            info!(zone, "The node's zone changed");
        }
    }

    fn addresses(&mut self, addresses: NodeAddresses) -> Option<PerFamily<Vec<IpAddr>>> {
        self.addresses = addresses;
        self.health_changed = true;
        Some(self.around.traffic.local_addresses(&self.addresses))
    }

    fn queued(&mut self, family: Family) {
        self.around.health.queued(family);
        self.around.metrics.proxy.queued(family, Timestamp::now());
    }

    fn synced(&mut self, synchronizer: &Synchronizer<K>, report: &Report, timing: Timing) {
        let family = report.family;
        self.bulky |= report.services.len() >= BULK;
        let metrics = self.around.metrics.clone();
        metrics.proxy.sync_duration(family, report.full, timing.elapsed);
        metrics.proxy.endpoint_changes_taken();
        metrics.proxy.service_changes_taken();
        if timing.repair {
            metrics.agent.repaired(family);
        }
        self.log_outcome(report, timing);
        self.log_conflicts(synchronizer, family);
        self.update_metrics(synchronizer, report);
        self.update_status(synchronizer, report, timing);
        if report.garbage_stays {
            metrics.proxy.cleanup_failed(family);
        }
        if report.result.is_err() {
            metrics.proxy.sync_failed(family, report.full);
            return;
        }
        self.observe_latency(report);
        let totals = synchronizer.engine.summary(family).totals;
        metrics.proxy.no_local_endpoints(
            family,
            NoLocalEndpoints {
                internal: totals.internal_without_local,
                external: totals.external_without_local,
            },
        );
        metrics.proxy.no_iptables_rules(family);
        self.around.health.updated(family);
        metrics.proxy.sync_success(family, Timestamp::now());
        self.clean_flows(synchronizer, report);
    }

    fn settled(&mut self, synchronizer: &Synchronizer<K>, backlog: usize) {
        self.around.status.update(|status| status.backlog = backlog);
        if std::mem::take(&mut self.bulky) {
            heap::return_free_memory();
        }
        self.judge_pod_cidrs(synchronizer);
        if !self.health_changed || !synchronizer.engine.is_ready() {
            return;
        }
        self.health_changed = false;
        let (options, _) = self.around.traffic.options(&self.addresses);
        let mut chosen = Vec::new();
        let mut any = false;
        for family in Family::BOTH {
            match &options.node_ports[family] {
                NodePortMatch::AnyLocal => any = true,
                NodePortMatch::Addresses(addresses) => chosen.extend(addresses.iter().copied()),
            }
        }
        let listen = if any { ListenAddresses::Any } else { ListenAddresses::Only(chosen) };
        self.around.health_checks.send_replace((self.health_services.clone(), listen));
    }
}

fn last_sync(report: &Report, timing: Timing) -> LastSync {
    let commits = &report.commits;
    LastSync {
        at: Timestamp::now().to_string(),
        took_us: timing.elapsed.as_micros() as u64,
        kernel_us: commits.iter().map(|c| c.committed.elapsed.as_micros() as u64).sum(),
        bytes: commits.iter().map(|c| c.committed.bytes).sum(),
        added: commits.iter().map(|c| c.counts.elements_added).sum(),
        deleted: commits.iter().map(|c| c.counts.elements_deleted).sum(),
        full: report.full,
        error: report.result.as_ref().err().map(|error| with_causes(error)),
    }
}

fn contested(conflict: &Conflict) -> Contested {
    Contested {
        frontend: frontend_text(&conflict.frontend),
        owner: conflict.owner.port.to_string(),
        others: conflict.others.iter().map(|claim| claim.port.to_string()).collect(),
    }
}

/// `10.0.0.1:80/tcp`, or `nodePort 30080/tcp`.
fn frontend_text(key: &FrontendKey) -> String {
    match key.at {
        FrontendAt::Address(address) => {
            format!("{}/{}", std::net::SocketAddr::new(address, key.port), key.protocol)
        }
        FrontendAt::NodePort => format!("nodePort {}/{}", key.port, key.protocol),
    }
}

/// An error and its causes in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
