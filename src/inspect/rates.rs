//! New connections a second by service, and packets that were not let through, from two scrapes.
//!
//! Place in the flow: `kubeweir top` scrapes the agent twice and prints this. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::program::CounterId;

/// The counter of what is refused and dropped.
pub const DROPS: &str = "kubeweir_dropped_packets_total";

pub const COUNTER: &str = "kubeweir_service_connections_total";

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
}

/// Reads the counters of a scrape in the text format; `None` if the agent does not export them.
pub fn connections(scrape: &str) -> Option<Counts> {
    let mut connections = Counts::new();
    let mut exported = false;
    for line in scrape.lines() {
        // The gauge of omitted series is there whenever counters are exported.
        exported |= line.starts_with("kubeweir_service_connections");
        let Some((labels, value)) = sample(line, COUNTER) else { continue };
        let label = |name| label(labels, name);
        let (Some(namespace), Some(service), Some(port), Some(protocol)) =
            (label("namespace"), label("service"), label("port_name"), label("protocol"))
        else {
            continue;
        };
        let colon = if port.is_empty() { "" } else { ":" };
        let name = format!("{namespace}/{service}{colon}{port}/{protocol}");
        *connections.entry(name).or_default() += value;
    }
    exported.then_some(connections)
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

/// The rates between two scrapes, busiest first, then by name. A counter that went back was made
/// anew and counts from zero.
pub fn rates(before: &Counts, after: &Counts, elapsed: Duration) -> Vec<Rate> {
    let rate = |(port, &total): (&String, &u64)| {
        let start = before.get(port).copied().filter(|&start| start <= total).unwrap_or(0);
        let per_second = (total - start) as f64 / elapsed.as_secs_f64();
        Rate { port: port.clone(), per_second, total }
    };
    let mut rates: Vec<Rate> = after.iter().map(rate).collect();
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
        let before = connections(&scrape(10, 100)).expect("exported");
        let after = connections(&scrape(30, 60)).expect("exported");
        let rates = rates(&before, &after, Duration::from_secs(2));
        let rows: Vec<_> = rates.iter().map(|r| (&*r.port, r.per_second, r.total)).collect();
        assert_eq!(rows, [("b/dns/udp", 30.0, 60), ("a/web:http/tcp", 10.0, 35)]);
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
