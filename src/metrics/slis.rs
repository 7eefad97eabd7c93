//! The registry behind `/metrics/slis` (KEP-3466): start time, and results of the health checks of
//! the metrics port once somebody asked for them.
//!
//! Place in the flow: [`super::server`] records and serves it. It knows no check.

use prometheus::{Gauge, GaugeVec, IntCounterVec, Registry};

use super::Exposition;
use super::definition::{MetricDoc, Mode, Registrar, Spec, Stability};

/// Service-level indicators.
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
