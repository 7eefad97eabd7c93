//! Connections per service port, read from the kernel's counters at scrape time (opt-in).
//!
//! Place in the flow: the caller hands in a closure that reads the counters; nothing is kept here.
//! The number of series is bounded, whatever the closure returns.

use std::fmt;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, IntGauge, Opts};

use super::definition::Spec;
use crate::model::{Family, ServicePortName};

/// New connections to one service port since its counter exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConnections {
    /// The service port.
    pub port: ServicePortName,
    pub family: Family,
    pub connections: u64,
}

/// Reads the counters. Called at each scrape, on a thread that may block.
pub type ConnectionSource = Box<dyn Fn() -> Vec<ServiceConnections> + Send + Sync>;

pub(super) const LABELS: &[&str] = &["namespace", "service", "port_name", "protocol", "ip_family"];

/// The definition of the series.
pub(super) fn spec() -> Spec {
    Spec::new(
        "kubeweir_service_connections_total",
        LABELS,
        "New connections per service port; only with service counters switched on.",
    )
}

/// The definition of the count of those left out.
pub(super) fn omitted_spec() -> Spec {
    Spec::new(
        "kubeweir_service_connections_omitted",
        &[],
        "Service ports left out of kubeweir_service_connections_total to bound its size.",
    )
}

/// Exports at most `limit` series: the first ones by namespace, service, port, protocol and family,
/// so that the choice is the same at each scrape.
pub(super) struct ConnectionCollector {
    source: ConnectionSource,
    limit: usize,
    descs: Vec<Desc>,
}

impl fmt::Debug for ConnectionCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectionCollector").field("limit", &self.limit).finish_non_exhaustive()
    }
}

const VALID: &str = "names and labels are valid literals";

impl ConnectionCollector {
    pub fn new(source: ConnectionSource, limit: usize) -> Self {
        let descs = [series().desc(), omitted().desc()].into_iter().flatten().cloned().collect();
        ConnectionCollector { source, limit, descs }
    }
}

impl Collector for ConnectionCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut counts = (self.source)();
        counts.sort_by(|a, b| (&a.port, a.family).cmp(&(&b.port, b.family)));
        let (series, omitted) = (series(), omitted());
        for count in counts.iter().take(self.limit) {
            let name = &count.port;
            let protocol = name.protocol.to_string();
            let family = count.family.to_string();
            let labels: [&str; 5] =
                [&name.service.namespace, &name.service.name, &name.port, &protocol, &family];
            series.with_label_values(&labels).inc_by(count.connections);
        }
        omitted.set(counts.len().saturating_sub(self.limit) as i64);
        series.collect().into_iter().chain(omitted.collect()).collect()
    }
}

fn series() -> IntCounterVec {
    IntCounterVec::new(spec().opts(), LABELS).expect(VALID)
}

fn omitted() -> IntGauge {
    let opts: Opts = omitted_spec().opts();
    IntGauge::with_opts(opts).expect(VALID)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, Protocol};

    fn connections(name: &str, connections: u64) -> ServiceConnections {
        let service = ObjectName::new("ns", name);
        let port = ServicePortName { service, port: "http".into(), protocol: Protocol::Tcp };
        ServiceConnections { port, family: Family::V4, connections }
    }

    #[test]
    fn series_are_bounded_and_the_choice_is_stable() {
        for order in [["a", "b", "c"], ["c", "b", "a"]] {
            let source = move || order.map(|name| connections(name, 7)).to_vec();
            let families = ConnectionCollector::new(Box::new(source), 2).collect();
            let names: Vec<&str> = families[0]
                .get_metric()
                .iter()
                .flat_map(|metric| metric.get_label())
                .filter(|label| label.name() == "service")
                .map(|label| label.value())
                .collect();
            assert_eq!(names.len(), 2, "{order:?}");
            assert!(names.contains(&"a") && names.contains(&"b"), "{order:?}: {names:?}");
            assert_eq!(families[1].get_metric()[0].get_gauge().value(), 1.0, "{order:?}");
        }
    }
}
