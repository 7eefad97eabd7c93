//! What a metric is: name, type, labels, help; and the registration that keeps account of it.
//!
//! Place in the flow: the groups of metrics ([`super::proxy`], [`super::agent`], [`super::client`],
//! [`super::process`]) register through [`Registrar`], so that [`super::reference`] cannot differ from
//! what is exported. It must not know what is measured.

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};
use serde::Serialize;

/// The configured proxy mode: which of upstream's metrics exist (section 9.2, column Modes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    Nftables,
    Iptables,
    Ipvs,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 3] = [Mode::Nftables, Mode::Iptables, Mode::Ipvs];
}

/// Type of a metric, as in `# TYPE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Distribution over buckets.
    Histogram,
}

/// Kubernetes' stability levels of metrics (KEP-1209), shown at the start of the help text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Stability {
    /// May change or go.
    Alpha,
    /// Changes are announced.
    Beta,
    /// Stays.
    Stable,
}

impl Stability {
    /// As in the help text and the label `stability_level`.
    pub fn as_str(self) -> &'static str {
        match self {
            Stability::Alpha => "ALPHA",
            Stability::Beta => "BETA",
            Stability::Stable => "STABLE",
        }
    }
}

/// One exported metric, for documentation and for checks of dashboards.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MetricDoc {
    /// Full name; a histogram's series add `_bucket`, `_sum` and `_count`.
    pub name: String,
    /// Type.
    #[serde(rename = "type")]
    pub kind: MetricKind,
    /// Label names in order of definition.
    pub labels: Vec<String>,
    /// Stability; `None` for the `process_*` metrics, which no Kubernetes policy covers.
    pub stability: Option<Stability>,
    /// Help text without the stability.
    pub help: String,
    /// Upper bounds of a histogram's buckets, ascending, without `+Inf`.
    pub buckets: Vec<f64>,
    /// Modes in which it is exported, ascending.
    pub modes: Vec<Mode>,
}

/// Name, labels and meaning of a metric to be registered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Spec {
    pub name: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
    stability: Stability,
    modes: &'static [Mode],
}

impl Spec {
    /// An ALPHA metric of every mode.
    pub const fn new(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
    ) -> Self {
        Spec { name, labels, help, stability: Stability::Alpha, modes: &Mode::ALL }
    }

    pub fn stability(self, stability: Stability) -> Self {
        Spec { stability, ..self }
    }

    pub fn only(self, modes: &'static [Mode]) -> Self {
        Spec { modes, ..self }
    }

    pub fn opts(&self) -> Opts {
        Opts::new(self.name, format!("[{}] {}", self.stability.as_str(), self.help))
    }
}

/// Registers metrics and notes what they are. A metric of another mode is made but not exported.
pub(super) struct Registrar<'a> {
    registry: &'a Registry,
    mode: Mode,
    docs: Vec<MetricDoc>,
}

/// Why the constructors below cannot fail.
const VALID: &str = "names, labels and buckets are valid literals, each name used once";

impl<'a> Registrar<'a> {
    pub fn new(registry: &'a Registry, mode: Mode) -> Self {
        Registrar { registry, mode, docs: Vec::new() }
    }

    /// What was registered, in order of registration.
    pub fn into_docs(self) -> Vec<MetricDoc> {
        self.docs
    }

    /// What was registered so far.
    pub fn docs(&self) -> &[MetricDoc] {
        &self.docs
    }

    pub fn counter(&mut self, spec: Spec) -> IntCounter {
        let metric = IntCounter::with_opts(spec.opts()).expect(VALID);
        self.register(spec, MetricKind::Counter, &[], metric)
    }

    pub fn counters(&mut self, spec: Spec) -> IntCounterVec {
        let metric = IntCounterVec::new(spec.opts(), spec.labels).expect(VALID);
        self.register(spec, MetricKind::Counter, &[], metric)
    }

    pub fn gauge(&mut self, spec: Spec) -> IntGauge {
        let metric = IntGauge::with_opts(spec.opts()).expect(VALID);
        self.register(spec, MetricKind::Gauge, &[], metric)
    }

    pub fn gauges(&mut self, spec: Spec) -> IntGaugeVec {
        let metric = IntGaugeVec::new(spec.opts(), spec.labels).expect(VALID);
        self.register(spec, MetricKind::Gauge, &[], metric)
    }

    pub fn float_gauge(&mut self, spec: Spec) -> Gauge {
        let metric = Gauge::with_opts(spec.opts()).expect(VALID);
        self.register(spec, MetricKind::Gauge, &[], metric)
    }

    pub fn float_gauges(&mut self, spec: Spec) -> GaugeVec {
        let metric = GaugeVec::new(spec.opts(), spec.labels).expect(VALID);
        self.register(spec, MetricKind::Gauge, &[], metric)
    }

    pub fn histograms(&mut self, spec: Spec, buckets: &[f64]) -> HistogramVec {
        let opts = HistogramOpts::from(spec.opts()).buckets(buckets.to_vec());
        let metric = HistogramVec::new(opts, spec.labels).expect(VALID);
        self.register(spec, MetricKind::Histogram, buckets, metric)
    }

    /// Registers a collector of a library, which says itself what it exports.
    pub fn foreign(&mut self, collector: impl Collector + 'static) {
        for desc in collector.desc() {
            let counter = desc.fq_name.ends_with("_total");
            self.docs.push(MetricDoc {
                name: desc.fq_name.clone(),
                kind: if counter { MetricKind::Counter } else { MetricKind::Gauge },
                labels: desc.variable_labels.clone(),
                stability: None,
                help: desc.help.clone(),
                buckets: Vec::new(),
                modes: vec![self.mode],
            });
        }
        self.registry.register(Box::new(collector)).expect(VALID);
    }

    /// Notes a metric whose collector is registered later, if at all.
    pub fn announce(&mut self, spec: Spec, kind: MetricKind) {
        if spec.modes.contains(&self.mode) {
            self.note(spec, kind, &[]);
        }
    }

    fn register<M>(&mut self, spec: Spec, kind: MetricKind, buckets: &[f64], metric: M) -> M
    where
        M: Collector + Clone + 'static,
    {
        if spec.modes.contains(&self.mode) {
            self.registry.register(Box::new(metric.clone())).expect(VALID);
            self.note(spec, kind, buckets);
        }
        metric
    }

    fn note(&mut self, spec: Spec, kind: MetricKind, buckets: &[f64]) {
        self.docs.push(MetricDoc {
            name: spec.name.to_owned(),
            kind,
            labels: spec.labels.iter().map(|&label| label.to_owned()).collect(),
            stability: Some(spec.stability),
            help: spec.help.to_owned(),
            buckets: buckets.to_vec(),
            modes: vec![self.mode],
        });
    }
}
