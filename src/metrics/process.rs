//! Metrics about the program and its process (section 9.4).
//!
//! Place in the flow: set once at start, except for `process_*`, which the library reads at each
//! scrape. It must not know what the program does.

use prometheus::process_collector::ProcessCollector;
use prometheus::{Gauge, GaugeVec, IntCounterVec, IntGaugeVec, Registry};

use super::Exposition;
use super::definition::{MetricDoc, Mode, Registrar, Spec, Stability};

/// What `kubernetes_build_info` and `/statusz` tell about the build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BuildInfo {
    /// Major version of the Kubernetes release whose behaviour is followed: `1`.
    pub major: String,
    /// Minor version of it: `37`.
    pub minor: String,
    /// Version of this program, as upstream spells one: `v1.37.0+kubeweir.0.1.0`.
    pub git_version: String,
    /// Commit it was built from.
    pub git_commit: String,
    /// `clean` or `dirty`.
    pub git_tree_state: String,
    /// RFC 3339.
    pub build_date: String,
    /// The compiler's version, in the place of Go's.
    pub compiler_version: String,
    /// `linux/amd64`.
    pub platform: String,
}

/// Stage of a feature gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeatureStage {
    /// Off by default, may go.
    Alpha,
    /// Mostly on by default.
    Beta,
    /// Always on; upstream labels it with an empty string.
    Ga,
    /// About to go.
    Deprecated,
}

/// Metrics about the program.
#[derive(Debug)]
pub struct ProcessMetrics {
    features: IntGaugeVec,
}

impl ProcessMetrics {
    pub(super) fn register(r: &mut Registrar<'_>, build: &BuildInfo) -> Self {
        let features = r.gauges(
            Spec::new("kubernetes_feature_enabled", &["name", "stage"], "1 if the gate is on.")
                .stability(Stability::Beta),
        );
        let labels = &[
            "major",
            "minor",
            "git_version",
            "git_commit",
            "git_tree_state",
            "build_date",
            "go_version",
            "compiler",
            "platform",
        ];
        let info =
            r.gauges(Spec::new("kubernetes_build_info", labels, "Always 1; see the labels."));
        info.with_label_values(&[
            build.major.as_str(),
            &build.minor,
            &build.git_version,
            &build.git_commit,
            &build.git_tree_state,
            &build.build_date,
            &build.compiler_version,
            "rustc",
            &build.platform,
        ])
        .set(1);
        r.foreign(ProcessCollector::for_self());
        count_registered(r);
        ProcessMetrics { features }
    }

    /// A feature gate is on or off.
    pub fn feature(&self, name: &str, stage: FeatureStage, enabled: bool) {
        let stage = match stage {
            FeatureStage::Alpha => "ALPHA",
            FeatureStage::Beta => "BETA",
            FeatureStage::Ga => "",
            FeatureStage::Deprecated => "DEPRECATED",
        };
        self.features.with_label_values(&[name, stage]).set(i64::from(enabled));
    }
}

/// Registers the counts of metrics; call last, so that they count all.
fn count_registered(r: &mut Registrar<'_>) {
    let labels = &["stability_level", "deprecated_version"];
    let registered: IntCounterVec = r.counters(
        Spec::new("registered_metrics_total", labels, "Metrics that can be exported.")
            .stability(Stability::Beta),
    );
    let disabled = Spec::new("disabled_metrics_total", &[], "Metrics switched off: none can be.");
    r.counter(disabled.stability(Stability::Beta));
    let hidden = Spec::new("hidden_metrics_total", &[], "Metrics hidden as deprecated: none are.");
    r.counter(hidden.stability(Stability::Beta));
    for level in r.docs().iter().filter_map(|doc| doc.stability) {
        registered.with_label_values(&[level.as_str(), ""]).inc();
    }
}

/// The registry behind `/metrics/slis` (KEP-3466): start time, and results of the health checks of the
/// metrics port once somebody asked for them. [`super::server`] records and serves it.
#[derive(Debug)]
pub struct Slis {
    registry: Registry,
    pub(super) docs: Vec<MetricDoc>,
    health: GaugeVec,
    checks: IntCounterVec,
}

impl Slis {
    pub(super) fn new(mode: Mode, started: f64) -> Self {
        let registry = Registry::new();
        let mut r = Registrar::new(&registry, mode);
        let start: Gauge = r.float_gauge(
            Spec::new("process_start_time_seconds", &[], "Start of the process since 1970.")
                .stability(Stability::Stable),
        );
        start.set(started);
        let health = r.float_gauges(
            Spec::new("kubernetes_healthcheck", &["name", "type"], "1 if the check last passed.")
                .stability(Stability::Stable),
        );
        let labels = &["name", "status", "type"];
        let checks = r.counters(
            Spec::new("kubernetes_healthchecks_total", labels, "Results of the health checks.")
                .stability(Stability::Stable),
        );
        let docs = r.into_docs();
        Slis { registry, docs, health, checks }
    }

    pub(super) fn scrape(&self, exposition: Exposition) -> Result<Vec<u8>, prometheus::Error> {
        exposition.encode(&self.registry.gather())
    }

    /// A check of endpoint `healthz` passed.
    pub(super) fn passed(&self, check: &str) {
        self.health.with_label_values(&[check, "healthz"]).set(1.0);
        self.checks.with_label_values(&[check, "success", "healthz"]).inc();
    }

    /// Forgets all results.
    pub(super) fn reset(&self) {
        self.health.reset();
        self.checks.reset();
    }
}
