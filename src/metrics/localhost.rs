//! Metrics about NodePorts on loopback addresses (KEP-6032): upstream's three, and our own.
//!
//! Place in the flow: the proxy counts listeners and failures; what the rules refused is read from the
//! kernel's counters at scrape time, through a closure that the caller hands in.

use std::fmt;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, IntGaugeVec};

use super::definition::{Mode, Registrar, Spec};
use super::proxy::{gauge_value, label};
use crate::model::{Family, Protocol};

const FAMILY: &[&str] = &["ip_family"];
const NFTABLES: &[Mode] = &[Mode::Nftables];

/// Metrics of the proxy.
#[derive(Debug)]
pub struct LocalhostMetrics {
    listeners: IntGaugeVec,
    not_opened: IntCounterVec,
    connections: IntGaugeVec,
    failures: IntCounterVec,
}

/// One connection, while it lives.
#[derive(Debug)]
pub struct OpenConnection(IntGauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl LocalhostMetrics {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        let spec = |name, labels, help| Spec::new(name, labels, help).only(NFTABLES);
        LocalhostMetrics {
            listeners: r.gauges(spec(
                "kubeproxy_nftables_localhost_nodeport_listeners",
                FAMILY,
                "Listeners for NodePorts on loopback addresses.",
            )),
            not_opened: r.counters(spec(
                "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total",
                FAMILY,
                "Listeners for NodePorts on loopback addresses that could not be opened.",
            )),
            connections: r.gauges(spec(
                "kubeweir_localhost_nodeport_connections",
                FAMILY,
                "TCP connections open through NodePorts on loopback addresses.",
            )),
            failures: r.counters(spec(
                "kubeweir_localhost_nodeport_failures_total",
                &["ip_family", "reason"],
                "Clients of NodePorts on loopback addresses that were not served (dial), that had to \
                 wait or were dropped because there are too many (limit), and failed accepts (accept).",
            )),
        }
    }

    /// This many listeners are open.
    pub fn listeners(&self, family: Family, count: usize) {
        self.listeners.with_label_values(&[label(family)]).set(gauge_value(count));
    }

    /// A listener could not be opened.
    pub fn not_opened(&self, family: Family) {
        self.not_opened.with_label_values(&[label(family)]).inc();
    }

    /// A connection is open until the result is dropped.
    pub fn opened(&self, family: Family) -> OpenConnection {
        let gauge = self.connections.with_label_values(&[label(family)]);
        gauge.inc();
        OpenConnection(gauge)
    }

    /// A client was not served, or not at once. The reason is a literal.
    pub fn failed(&self, family: Family, reason: &'static str) {
        self.failures.with_label_values(&[label(family), reason]).inc();
    }
}

/// Packets that the rules refused, by family and protocol. Called at each scrape.
pub type RefusedSource = Box<dyn Fn() -> Vec<(Family, Protocol, u64)> + Send + Sync>;

const LABELS: &[&str] = &["ip_family", "protocol"];

pub(super) fn refused_spec() -> Spec {
    Spec::new(
        "kubeproxy_nftables_localhost_nodeport_rejected_packets_total",
        LABELS,
        "Packets refused to NodePorts on loopback addresses.",
    )
    .only(NFTABLES)
}

/// Exports what the source reads.
pub(super) struct RefusedCollector {
    source: RefusedSource,
    descs: Vec<Desc>,
}

impl fmt::Debug for RefusedCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RefusedCollector").finish_non_exhaustive()
    }
}

impl RefusedCollector {
    pub fn new(source: RefusedSource) -> Self {
        RefusedCollector { source, descs: series().desc().into_iter().cloned().collect() }
    }
}

impl Collector for RefusedCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let series = series();
        for (family, protocol, packets) in (self.source)() {
            let protocol = protocol.to_string().to_uppercase();
            series.with_label_values(&[label(family), &protocol]).inc_by(packets);
        }
        series.collect()
    }
}

fn series() -> IntCounterVec {
    IntCounterVec::new(refused_spec().opts(), LABELS).expect("names and labels are valid literals")
}
