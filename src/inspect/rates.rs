//! New connections a second by service, and packets that were not let through, from two scrapes.
//!
//! Place in the flow: `kubeweir top` scrapes the agent twice and prints this. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::program::CounterId;

/// The counter of what is refused and dropped.
pub const DROPS: &str = "kubeweir_dropped_packets_total";

pub const COUNTER: &str = "kubeweir_service_connections_total";

/// The counter of what is not let through by service port.
const SERVICE_DROPS: &str = "kubeweir_service_dropped_packets_total";

/// Connections so far by `namespace/service:port/protocol`, or packets by reason; both families together.
pub type Counts = BTreeMap<String, u64>;

/// The rate of a service port, or of a reason.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// `namespace/service:port/protocol`; a reason in words.
    pub port: String,
    pub per_second: f64,
    /// Connections or packets since the counter exists.
    pub total: u64,
    /// Packets to a service port that were not let through: a second, and as long as it has the reason.
    #[serde(default)]
    pub dropped_per_second: f64,
    #[serde(default)]
    pub dropped: u64,
}

/// Reads the counters of a scrape in the text format; `None` if the agent does not export them.
pub fn connections(scrape: &str) -> Option<Counts> {
    // The gauge of omitted series is there whenever counters are exported.
    let mut lines = scrape.lines();
    let exported = lines.any(|line| line.starts_with("kubeweir_service_connections"));
    exported.then(|| by_service(scrape, COUNTER))
}

/// Reads what was not let through to each service port.
pub fn service_drops(scrape: &str) -> Counts {
    by_service(scrape, SERVICE_DROPS)
}

fn by_service(scrape: &str, metric: &str) -> Counts {
    let mut counts = Counts::new();
    for (labels, value) in scrape.lines().filter_map(|line| sample(line, metric)) {
        let label = |name| label(labels, name);
        let (Some(namespace), Some(service), Some(port), Some(protocol)) =
            (label("namespace"), label("service"), label("port_name"), label("protocol"))
        else {
            continue;
        };
        let colon = if port.is_empty() { "" } else { ":" };
        let name = format!("{namespace}/{service}{colon}{port}/{protocol}");
        *counts.entry(name).or_default() += value;
    }
    counts
}

/// Reads what was refused and dropped of a scrape in the text format, by reason.
pub fn drops(scrape: &str) -> Counts {
    let mut drops = Counts::new();
    for (labels, packets) in scrape.lines().filter_map(|line| sample(line, DROPS)) {
        let reason = label(labels, "reason").unwrap_or_default();
        let words = CounterId::from_name(reason).map_or(reason, |id| id.meaning());
        *drops.entry(words.to_owned()).or_default() += packets;
    }
    drops
}

/// The labels and the value of a line that is a sample of a metric with labels.
fn sample<'a>(line: &'a str, metric: &str) -> Option<(&'a str, u64)> {
    let (labels, value) = line.strip_prefix(metric)?.strip_prefix('{')?.split_once("} ")?;
    Some((labels, value.parse::<f64>().ok()? as u64))
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = labels.split_once(&format!("{name}=\""))?;
    after.split('"').next()
}

/// What is compared of two scrapes.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    /// Connections by service port, or packets by reason.
    pub counts: Counts,
    /// Packets to a service port that were not let through.
    pub drops: Counts,
}

/// The rates between two scrapes, busiest first, then by name. A counter that went back was made
/// anew and counts from zero.
pub fn rates(before: &Sample, after: &Sample, elapsed: Duration) -> Vec<Rate> {
    let count = |counts: &Counts, port: &str| counts.get(port).copied().unwrap_or(0);
    let per_second = |before: &Counts, after: &Counts, port: &str| {
        let (start, total) = (count(before, port), count(after, port));
        let grown = if start <= total { total - start } else { total };
        grown as f64 / elapsed.as_secs_f64()
    };
    let ports: BTreeSet<&String> = after.counts.keys().chain(after.drops.keys()).collect();
    let rate = |port: &String| Rate {
        per_second: per_second(&before.counts, &after.counts, port),
        total: count(&after.counts, port),
        dropped_per_second: per_second(&before.drops, &after.drops, port),
        dropped: count(&after.drops, port),
        port: port.clone(),
    };
    let mut rates: Vec<Rate> = ports.into_iter().map(rate).collect();
    rates.sort_by(|a, b| b.per_second.total_cmp(&a.per_second).then_with(|| a.port.cmp(&b.port)));
    rates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrape(web: u64, dns: u64) -> String {
        format!(
            "# TYPE {COUNTER} counter\n\
             {COUNTER}{{ip_family=\"IPv4\",namespace=\"a\",port_name=\"http\",protocol=\"tcp\",service=\"web\"}} {web}\n\
             {COUNTER}{{ip_family=\"IPv6\",namespace=\"a\",port_name=\"http\",protocol=\"tcp\",service=\"web\"}} 5\n\
             {COUNTER}{{ip_family=\"IPv4\",namespace=\"b\",port_name=\"\",protocol=\"udp\",service=\"dns\"}} {dns}\n"
        )
    }

    #[test]
    fn rates_are_the_difference_by_time() {
        let sample = |scrape: &str, drops: u64| Sample {
            counts: connections(scrape).expect("exported"),
            drops: Counts::from([("b/dns/udp".to_owned(), drops)]),
        };
        let (before, after) = (sample(&scrape(10, 100), 1), sample(&scrape(30, 60), 9));
        let rates = rates(&before, &after, Duration::from_secs(2));
        let rows: Vec<_> = rates
            .iter()
            .map(|r| (&*r.port, r.per_second, r.total, r.dropped_per_second, r.dropped))
            .collect();
        assert_eq!(rows, [("b/dns/udp", 30.0, 60, 4.0, 9), ("a/web:http/tcp", 10.0, 35, 0.0, 0)]);
    }

    #[test]
    fn drops_of_a_service_port_are_added_up() {
        let series = |reason: &str, family: &str, packets: u64| {
            format!(
                "{SERVICE_DROPS}{{ip_family=\"{family}\",namespace=\"a\",port_name=\"http\",\
                 protocol=\"tcp\",reason=\"{reason}\",service=\"web\"}} {packets}\n"
            )
        };
        let scrape = series("no-endpoints", "IPv4", 3) + &series("source-ranges", "IPv6", 4);
        assert_eq!(service_drops(&scrape), Counts::from([("a/web:http/tcp".to_owned(), 7)]));
    }

    #[test]
    fn drops_are_told_by_reason() {
        let scrape = format!(
            "{DROPS}{{ip_family=\"IPv4\",reason=\"no-endpoints\"}} 3\n\
             {DROPS}{{ip_family=\"IPv6\",reason=\"no-endpoints\"}} 4\n\
             {DROPS}{{ip_family=\"IPv6\",reason=\"of a later version\"}} 1\n"
        );
        let words = "refused, no usable endpoint anywhere".to_owned();
        assert_eq!(drops(&scrape), Counts::from([(words, 7), ("of a later version".into(), 1)]));
    }

    #[test]
    fn without_counters_there_is_nothing_to_say() {
        assert_eq!(connections("kubeproxy_sync_proxy_rules_last_timestamp_seconds 1\n"), None);
        let none = connections("kubeweir_service_connections_omitted_series 0\n");
        assert_eq!(none, Some(Counts::new()));
    }
}
