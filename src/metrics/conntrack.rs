//! The kernel's figures about its conntrack table, read at scrape time.
//!
//! Place in the flow: the caller hands in a closure that asks the kernel; nothing is kept here.

use std::fmt;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, IntGauge};

use super::definition::{MetricKind, Spec};
use crate::conntrack::Statistics;

/// Asks the kernel; `None` if it does not answer. Called at each scrape, on a thread that may block.
pub type ConntrackSource = Box<dyn Fn() -> Option<Statistics> + Send + Sync>;

/// One figure as it is exported.
struct Figure {
    name: &'static str,
    help: &'static str,
    kind: MetricKind,
    value: fn(&Statistics) -> u64,
}

const fn figure(
    name: &'static str,
    kind: MetricKind,
    value: fn(&Statistics) -> u64,
    help: &'static str,
) -> Figure {
    Figure { name, help, kind, value }
}

const FIGURES: [Figure; 9] = [
    figure(
        "kubeweir_conntrack_entries",
        MetricKind::Gauge,
        |s| s.entries,
        "Flows in the kernel's conntrack table.",
    ),
    figure(
        "kubeweir_conntrack_entries_limit",
        MetricKind::Gauge,
        |s| s.limit,
        "Flows that the conntrack table takes (nf_conntrack_max).",
    ),
    figure(
        "kubeweir_conntrack_insert_failures_total",
        MetricKind::Counter,
        |s| s.insert_failed,
        "Flows that could not be tracked because another one has their addresses and ports.",
    ),
    figure(
        "kubeweir_conntrack_drops_total",
        MetricKind::Counter,
        |s| s.drop,
        "Packets dropped because they could not be tracked.",
    ),
    figure(
        "kubeweir_conntrack_early_drops_total",
        MetricKind::Counter,
        |s| s.early_drop,
        "Flows pushed out of a full conntrack table.",
    ),
    figure(
        "kubeweir_conntrack_invalid_packets_total",
        MetricKind::Counter,
        |s| s.invalid,
        "Packets that belong to no flow.",
    ),
    figure(
        "kubeweir_conntrack_search_restarts_total",
        MetricKind::Counter,
        |s| s.search_restart,
        "Lookups in the conntrack table that had to begin again.",
    ),
    figure(
        "kubeweir_conntrack_clashes_resolved_total",
        MetricKind::Counter,
        |s| s.clash_resolve,
        "Flows that lost a race to an equal one and went on with it.",
    ),
    figure(
        "kubeweir_conntrack_chains_too_long_total",
        MetricKind::Counter,
        |s| s.chain_too_long,
        "Flows not tracked because their hash chain was too long.",
    ),
];

impl Figure {
    fn spec(&self) -> Spec {
        Spec::new(self.name, &[], self.help)
    }

    fn metric(&self, value: u64) -> Box<dyn Collector> {
        let opts = self.spec().opts();
        match self.kind {
            MetricKind::Counter => {
                let counter = IntCounter::with_opts(opts).expect("a valid literal");
                counter.inc_by(value);
                Box::new(counter)
            }
            MetricKind::Gauge | MetricKind::Histogram => {
                let gauge = IntGauge::with_opts(opts).expect("a valid literal");
                gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
                Box::new(gauge)
            }
        }
    }
}

/// What is exported, for the documentation.
pub(super) fn specs() -> impl Iterator<Item = (Spec, MetricKind)> {
    FIGURES.iter().map(|figure| (figure.spec(), figure.kind))
}

/// Exports what the source reads.
pub(super) struct ConntrackCollector {
    source: ConntrackSource,
    descs: Vec<Desc>,
}

impl fmt::Debug for ConntrackCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConntrackCollector").finish_non_exhaustive()
    }
}

impl ConntrackCollector {
    pub fn new(source: ConntrackSource) -> Self {
        let metrics = FIGURES.iter().map(|figure| figure.metric(0));
        let descs = metrics.flat_map(|m| m.desc().into_iter().cloned().collect::<Vec<_>>());
        ConntrackCollector { source, descs: descs.collect() }
    }
}

impl Collector for ConntrackCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Some(statistics) = (self.source)() else { return Vec::new() };
        let exported = |figure: &Figure| figure.metric((figure.value)(&statistics)).collect();
        FIGURES.iter().flat_map(exported).collect()
    }
}
