//! New connections a second by service, from two scrapes.
//!
//! Place in the flow: `kubeweir top` scrapes the agent twice and prints this. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// The counter of connections.
pub const COUNTER: &str = "kubeweir_service_connections_total";

/// Connections so far by `namespace/service:port/protocol`, both families together.
pub type Connections = BTreeMap<String, u64>;

/// A service port's rate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    /// `namespace/service:port/protocol`.
    pub port: String,
    pub per_second: f64,
    /// Connections since the counter exists.
    pub total: u64,
}

/// Reads the counters of a scrape in the text format; `None` if the agent does not export them.
pub fn connections(scrape: &str) -> Option<Connections> {
    let mut connections = Connections::new();
    let mut exported = false;
    for line in scrape.lines() {
        // The gauge of omitted series is there whenever counters are exported.
        exported |= line.starts_with("kubeweir_service_connections");
        let Some(rest) = line.strip_prefix(COUNTER) else { continue };
        let Some((labels, value)) = rest.trim_start_matches('{').split_once("} ") else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let label = |name: &str| {
            let (_, after) = labels.split_once(&format!("{name}=\""))?;
            after.split('"').next()
        };
        let (Some(namespace), Some(service), Some(port), Some(protocol)) =
            (label("namespace"), label("service"), label("port_name"), label("protocol"))
        else {
            continue;
        };
        let colon = if port.is_empty() { "" } else { ":" };
        let name = format!("{namespace}/{service}{colon}{port}/{protocol}");
        *connections.entry(name).or_default() += value as u64;
    }
    exported.then_some(connections)
}

/// The rates between two scrapes, busiest first, then by name. A counter that went back was made
/// anew and counts from zero.
pub fn rates(before: &Connections, after: &Connections, elapsed: Duration) -> Vec<Rate> {
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
    fn without_counters_there_is_nothing_to_say() {
        assert_eq!(connections("kubeproxy_sync_proxy_rules_last_timestamp_seconds 1\n"), None);
        let none = connections("kubeweir_service_connections_omitted_series 0\n");
        assert_eq!(none, Some(Connections::new()));
    }
}
