//! Packets that the rules counted: what they refused or dropped, by reason, and upstream's two.
//!
//! Place in the flow: read from the table's counters at scrape time, through a closure that the caller
//! hands in; nothing is kept here, so that scrapes do not disturb each other. A value is as old as its
//! table: it starts again at 0 where a start replaces the table.

use std::fmt;
use std::sync::{Arc, OnceLock};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntCounterVec};

use super::definition::{MetricKind, Mode, Registrar, Spec};
use super::proxy::label;
use crate::model::Family;

/// What the rules counted so far, in packets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RuleCounts {
    /// Refused or dropped, by family and reason.
    pub dropped: Vec<(Family, &'static str, u64)>,
    /// Of these, forwarded ones that conntrack calls invalid.
    pub invalid: u64,
    /// Connections sent on from NodePorts on loopback addresses.
    pub accepted_on_localhost: u64,
}

/// Reads the counters; `None` if the kernel does not answer. Called at each scrape, on a thread that may
/// block.
pub type RuleSource = Box<dyn Fn() -> Option<RuleCounts> + Send + Sync>;

const LABELS: &[&str] = &["ip_family", "reason"];
const VALID: &str = "names and labels are valid literals";

fn dropped_spec() -> Spec {
    Spec::new(
        "kubeweir_dropped_packets_total",
        LABELS,
        "Packets that the rules refused (no-endpoints, unused-port, localhost) or dropped (the other reasons).",
    )
}

fn invalid_spec() -> Spec {
    Spec::new(
        "kubeproxy_iptables_ct_state_invalid_dropped_packets_total",
        &[],
        "Packets dropped because connection tracking calls them INVALID.",
    )
    .only(&[Mode::Iptables])
}

fn localhost_spec() -> Spec {
    Spec::new(
        "kubeproxy_iptables_localhost_nodeports_accepted_packets_total",
        &[],
        "Packets accepted for NodePorts dialled on localhost: the first of each connection.",
    )
    .only(&[Mode::Iptables])
}

/// Exports what the source reads; upstream's at 0 as long as there is none.
pub(super) struct RuleCollector {
    source: Arc<OnceLock<RuleSource>>,
    mode: Mode,
    descs: Vec<Desc>,
}

impl fmt::Debug for RuleCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleCollector").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl RuleCollector {
    /// The collector, noted in the registrar.
    pub fn announced(r: &mut Registrar<'_>, mode: Mode, source: Arc<OnceLock<RuleSource>>) -> Self {
        for spec in [dropped_spec(), invalid_spec(), localhost_spec()] {
            r.announce(spec, MetricKind::Counter);
        }
        let mut collector = RuleCollector { source, mode, descs: Vec::new() };
        let metrics = collector.metrics(&RuleCounts::default());
        collector.descs =
            metrics.iter().flat_map(|metric| metric.desc()).cloned().collect::<Vec<Desc>>();
        collector
    }

    fn metrics(&self, counts: &RuleCounts) -> Vec<Box<dyn Collector>> {
        let dropped = IntCounterVec::new(dropped_spec().opts(), LABELS).expect(VALID);
        for (family, reason, packets) in &counts.dropped {
            dropped.with_label_values(&[label(*family), reason]).inc_by(*packets);
        }
        let mut metrics: Vec<Box<dyn Collector>> = vec![Box::new(dropped)];
        if self.mode == Mode::Iptables {
            for (spec, packets) in
                [(invalid_spec(), counts.invalid), (localhost_spec(), counts.accepted_on_localhost)]
            {
                let metric = IntCounter::with_opts(spec.opts()).expect(VALID);
                metric.inc_by(packets);
                metrics.push(Box::new(metric));
            }
        }
        metrics
    }
}

impl Collector for RuleCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let counts = match self.source.get() {
            Some(source) => source(),
            None => Some(RuleCounts::default()),
        };
        let metrics = counts.map(|counts| self.metrics(&counts)).unwrap_or_default();
        metrics.iter().flat_map(|metric| metric.collect()).collect()
    }
}
