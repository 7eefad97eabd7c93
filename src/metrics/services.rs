//! Figures per service port, read from the kernel's counters at scrape time (opt-in).
//!
//! Place in the flow: the caller hands in a closure that reads the counters; nothing is kept here, and
//! each series is written as it comes. Their number is bounded, whatever the closure says.

use std::fmt;

use super::definition::{MetricKind, Spec};
use super::exposition::{Exposition, FamilyWriter};
use super::proxy::label;
use crate::model::{Family, Protocol};

/// What was counted for one service port since its counter exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceCount<'a> {
    pub namespace: &'a str,
    pub service: &'a str,
    /// Empty for a port without a name.
    pub port_name: &'a str,
    pub protocol: Protocol,
    pub family: Family,
    /// Why packets were not let through; none of connections.
    pub reason: Option<&'static str>,
    pub count: u64,
}

/// Reads the counters and says each service port's once (for each reason), in an order that is the same at each scrape.
/// Called at each scrape, on a thread that may block.
pub type ServiceSource = Box<dyn Fn(&mut dyn FnMut(ServiceCount<'_>)) + Send + Sync>;

/// Two metrics: the series, and how many of them are left out to bound their number.
type Specs = [(Spec, MetricKind); 2];

/// Connections by service port.
pub(super) fn connections() -> Specs {
    let series = Spec::new(
        "kubeweir_service_connections_total",
        &["namespace", "service", "port_name", "protocol", "ip_family"],
        "New connections per service port; only with service counters switched on.",
    );
    let omitted = Spec::new(
        "kubeweir_service_connections_omitted",
        &[],
        "Service ports left out of kubeweir_service_connections_total to bound its size.",
    );
    [(series, MetricKind::Counter), (omitted, MetricKind::Gauge)]
}

/// What was not let through to a service port.
pub(super) fn drops() -> Specs {
    let series = Spec::new(
        "kubeweir_service_dropped_packets_total",
        &["namespace", "service", "port_name", "protocol", "ip_family", "reason"],
        "Packets to a service port that the rules refused (no-endpoints) or dropped (the other \
         reasons), as long as it has the reason; only with service counters switched on.",
    );
    let omitted = Spec::new(
        "kubeweir_service_dropped_packets_omitted",
        &[],
        "Series left out of kubeweir_service_dropped_packets_total to bound its size.",
    );
    [(series, MetricKind::Counter), (omitted, MetricKind::Gauge)]
}

/// Exports at most `limit` series: the first ones.
pub(super) struct ServiceFamily {
    pub specs: Specs,
    pub source: ServiceSource,
    pub limit: usize,
}

impl fmt::Debug for ServiceFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceFamily").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl ServiceFamily {
    /// Writes the series and how many were left out.
    pub fn write(&self, exposition: Exposition, body: &mut Vec<u8>) {
        let [series, omitted] = self.specs;
        let mut series = FamilyWriter::new(exposition, series, body);
        let mut found = 0;
        (self.source)(&mut |count| {
            found += 1;
            if found <= self.limit {
                write_series(&mut series, &count);
            }
        });
        series.end();
        let mut omitted = FamilyWriter::new(exposition, omitted, body);
        omitted.add(&[], found.saturating_sub(self.limit) as u64);
        omitted.end();
    }
}

fn write_series(series: &mut FamilyWriter<'_>, count: &ServiceCount<'_>) {
    let family = ("ip_family", label(count.family));
    let namespace = ("namespace", count.namespace);
    let port = ("port_name", count.port_name);
    let protocol = ("protocol", count.protocol.as_str());
    let service = ("service", count.service);
    match count.reason {
        None => series.add(&[family, namespace, port, protocol, service], count.count),
        Some(reason) => {
            let reason = ("reason", reason);
            series.add(&[family, namespace, port, protocol, reason, service], count.count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_bounded_and_those_left_out_are_counted() {
        let source = |each: &mut dyn FnMut(ServiceCount<'_>)| {
            for service in ["a", "b", "c"] {
                each(ServiceCount {
                    namespace: "ns",
                    service,
                    port_name: "http",
                    protocol: Protocol::Tcp,
                    family: Family::V4,
                    reason: None,
                    count: 7,
                });
            }
        };
        let mut body = Vec::new();
        let family = ServiceFamily { specs: connections(), source: Box::new(source), limit: 2 };
        family.write(Exposition::Text, &mut body);
        let page = String::from_utf8(body).expect("text");
        let samples: Vec<&str> = page.lines().filter(|line| !line.starts_with('#')).collect();
        let series = |service: &str| {
            format!(
                "kubeweir_service_connections_total{{ip_family=\"IPv4\",namespace=\"ns\",\
                 port_name=\"http\",protocol=\"tcp\",service=\"{service}\"}} 7"
            )
        };
        let omitted = "kubeweir_service_connections_omitted 1";
        assert_eq!(samples, [&*series("a"), &*series("b"), omitted]);
    }
}
