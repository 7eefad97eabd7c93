//! kube-proxy 1.37's own metrics, as its documentation and a scrape of it give them.

use kubeweir::metrics::Mode;

/// One row of upstream's table of metrics (section 9.2).
pub struct Row {
    pub name: &'static str,
    pub kind: &'static str,
    pub labels: &'static [&'static str],
    /// Upper bounds as exported, without `+Inf`.
    pub buckets: &'static str,
    pub modes: &'static [Mode],
}

const A: &[Mode] = &Mode::ALL;
const I: &[Mode] = &[Mode::Iptables];
const N: &[Mode] = &[Mode::Nftables];
const I_N: &[Mode] = &[Mode::Iptables, Mode::Nftables];
const I_V: &[Mode] = &[Mode::Iptables, Mode::Ipvs];

const FAMILY: &[&str] = &["ip_family"];
const E15: &str =
    "0.001 0.002 0.004 0.008 0.016 0.032 0.064 0.128 0.256 0.512 1.024 2.048 4.096 8.192 16.384";
const PROGRAMMING: &str = "0.25 0.5 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 \
     25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 \
     57 58 59 60 65 70 75 80 85 90 95 100 105 110 115 120 150 180 210 240 270 300";

const fn row(
    name: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    modes: &'static [Mode],
) -> Row {
    Row { name, kind, labels, buckets: "", modes }
}

const fn histogram(name: &'static str, buckets: &'static str, modes: &'static [Mode]) -> Row {
    Row { name, kind: "histogram", labels: FAMILY, buckets, modes }
}

#[rustfmt::skip]
pub const UPSTREAM: &[Row] = &[
    histogram("kubeproxy_sync_proxy_rules_duration_seconds", E15, A),
    histogram("kubeproxy_sync_full_proxy_rules_duration_seconds", E15, I_N),
    histogram("kubeproxy_sync_partial_proxy_rules_duration_seconds", E15, I_N),
    row("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", FAMILY, A),
    row("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge", FAMILY, A),
    histogram("kubeproxy_network_programming_duration_seconds", PROGRAMMING, A),
    row("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge", &[], A),
    row("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter", &[], A),
    row("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge", &[], A),
    row("kubeproxy_sync_proxy_rules_service_changes_total", "counter", &[], A),
    row("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge", &["traffic_policy", "ip_family"], A),
    row("kubeproxy_proxy_healthz_total", "counter", &["code"], A),
    row("kubeproxy_proxy_livez_total", "counter", &["code"], A),
    row("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "counter", FAMILY, N),
    row("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", "counter", FAMILY, N),
    histogram("kubeproxy_conntrack_reconciler_sync_duration_seconds", E15, A),
    row("kubeproxy_conntrack_reconciler_deleted_entries_total", "counter", FAMILY, A),
    row("kubeproxy_nftables_localhost_nodeport_listeners", "gauge", FAMILY, N),
    row(
        "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total",
        "counter",
        FAMILY,
        N,
    ),
    row(
        "kubeproxy_nftables_localhost_nodeport_rejected_packets_total",
        "counter",
        &["ip_family", "protocol"],
        N,
    ),
    row("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "counter", FAMILY, I_V),
    row("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", "counter", FAMILY, I),
    row("kubeproxy_sync_proxy_rules_iptables_total", "gauge", &["table", "ip_family"], I),
    row("kubeproxy_sync_proxy_rules_iptables_last", "gauge", &["table", "ip_family"], I),
    row("kubeproxy_iptables_ct_state_invalid_dropped_packets_total", "counter", &[], I),
    row("kubeproxy_iptables_localhost_nodeports_accepted_packets_total", "counter", &[], I),
];
