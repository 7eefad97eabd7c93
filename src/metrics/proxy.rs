//! Upstream's own metrics, `kubeproxy_*` (section 9.2): names, types, labels and buckets are
//! upstream's, letter for letter.
//!
//! Place in the flow: the engine's shell and the health server record here. It must not know when or
//! why something is recorded, beyond what the metric's definition says.

use std::time::Duration;

use axum::http::StatusCode;
use jiff::Timestamp;
use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::definition::{Mode, Registrar, Spec};
use crate::model::Family;

const FAMILY: &[&str] = &["ip_family"];
const CODE: &[&str] = &["code"];
const TABLE: &[&str] = &["table", "ip_family"];

const FULL_AND_PARTIAL: &[Mode] = &[Mode::Nftables, Mode::Iptables];
const NFTABLES: &[Mode] = &[Mode::Nftables];
const IPTABLES: &[Mode] = &[Mode::Iptables];
const RESTORING: &[Mode] = &[Mode::Iptables, Mode::Ipvs];

/// The metrics of section 9.2.
#[derive(Debug)]
pub struct ProxyMetrics {
    mode: Mode,
    sync: SyncMetrics,
    changes: ChangeMetrics,
    failures: FailureMetrics,
    conntrack: ConntrackMetrics,
    iptables: IptablesMetrics,
    healthz: IntCounterVec,
    livez: IntCounterVec,
}

#[derive(Debug)]
struct SyncMetrics {
    duration: HistogramVec,
    full_duration: HistogramVec,
    partial_duration: HistogramVec,
    last: GaugeVec,
    last_queued: GaugeVec,
    network_programming: HistogramVec,
    no_local_endpoints: IntGaugeVec,
}

#[derive(Debug)]
struct ChangeMetrics {
    endpoints_pending: IntGauge,
    endpoints: IntCounter,
    services_pending: IntGauge,
    services: IntCounter,
}

#[derive(Debug)]
struct FailureMetrics {
    nftables_sync: IntCounterVec,
    nftables_cleanup: IntCounterVec,
    restore: IntCounterVec,
    partial_restore: IntCounterVec,
}

#[derive(Debug)]
struct ConntrackMetrics {
    duration: HistogramVec,
    deleted: IntCounterVec,
}

#[derive(Debug)]
struct IptablesMetrics {
    total: IntGaugeVec,
    last: IntGaugeVec,
}

/// Service ports of one family that have endpoints somewhere but none on this node (B-256).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    /// Ports with `internalTrafficPolicy: Local`.
    pub internal: usize,
    /// Ports with `externalTrafficPolicy: Local`, exposed or not.
    pub external: usize,
}

/// 1 ms doubling, 15 buckets.
pub(super) fn sync_buckets() -> Vec<f64> {
    (0..15).map(|n| 0.001 * f64::from(1 << n)).collect()
}

/// Quarter seconds, then seconds, then coarser up to five minutes (section 9.2).
pub(super) fn network_programming_buckets() -> Vec<f64> {
    let whole = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    [0.25, 0.5].into_iter().chain(whole.map(f64::from)).collect()
}

impl ProxyMetrics {
    pub(super) fn register(r: &mut Registrar<'_>, mode: Mode) -> Self {
        ProxyMetrics {
            mode,
            sync: SyncMetrics::register(r),
            changes: ChangeMetrics::register(r),
            failures: FailureMetrics::register(r),
            conntrack: ConntrackMetrics::register(r),
            iptables: IptablesMetrics::register(r),
            healthz: r.counters(Spec::new(
                "kubeproxy_proxy_healthz_total",
                CODE,
                "Answers of /healthz on the health port, by HTTP status.",
            )),
            livez: r.counters(Spec::new(
                "kubeproxy_proxy_livez_total",
                CODE,
                "Answers of /livez on the health port, by HTTP status.",
            )),
        }
    }

    /// A sync that passed the initial gate ended, well or not, after `took` (B-255).
    pub fn sync_duration(&self, family: Family, full: bool, took: Duration) {
        let of_kind = if full { &self.sync.full_duration } else { &self.sync.partial_duration };
        for histogram in [&self.sync.duration, of_kind] {
            histogram.with_label_values(&[label(family)]).observe(took.as_secs_f64());
        }
    }

    /// A sync succeeded (B-258).
    pub fn sync_success(&self, family: Family, now: Timestamp) {
        self.sync.last.with_label_values(&[label(family)]).set(seconds(now));
    }

    /// A sync was requested, or the family's loop starts (B-258).
    pub fn queued(&self, family: Family, now: Timestamp) {
        self.sync.last_queued.with_label_values(&[label(family)]).set(seconds(now));
    }

    /// A sync failed; counted where the mode's operators look for it (B-259).
    pub fn sync_failed(&self, family: Family, full: bool) {
        let of_family = &[label(family)];
        match self.mode {
            Mode::Nftables => self.failures.nftables_sync.with_label_values(of_family).inc(),
            Mode::Iptables | Mode::Ipvs => {
                self.failures.restore.with_label_values(of_family).inc();
                if !full {
                    self.failures.partial_restore.with_label_values(of_family).inc();
                }
            }
        }
    }

    /// Objects that nothing needs any more could not be deleted.
    pub fn cleanup_failed(&self, family: Family) {
        self.failures.nftables_cleanup.with_label_values(&[label(family)]).inc();
    }

    /// `latency` from the trigger time of an endpoint change to its rules being in force (B-257).
    pub fn network_programming(&self, family: Family, latency: Duration) {
        let histogram = self.sync.network_programming.with_label_values(&[label(family)]);
        histogram.observe(latency.as_secs_f64());
    }

    /// Counted after each successful sync (B-256).
    pub fn no_local_endpoints(&self, family: Family, ports: NoLocalEndpoints) {
        let gauge =
            |policy| self.sync.no_local_endpoints.with_label_values(&[policy, label(family)]);
        gauge("internal").set(gauge_value(ports.internal));
        gauge("external").set(gauge_value(ports.external));
    }

    /// A slice event of a handled family arrived; `effective` if it changes anything.
    pub fn endpoint_change(&self, effective: bool) {
        self.changes.endpoints.inc();
        if effective {
            self.changes.endpoints_pending.inc();
        }
    }

    /// A sync took the endpoint changes.
    pub fn endpoint_changes_taken(&self) {
        self.changes.endpoints_pending.set(0);
    }

    /// A Service event arrived; `pending` services now wait. Called once per family.
    pub fn service_change(&self, pending: usize) {
        self.changes.services.inc();
        self.changes.services_pending.set(gauge_value(pending));
    }

    /// A sync took the service changes.
    pub fn service_changes_taken(&self) {
        self.changes.services_pending.set(0);
    }

    /// A conntrack reconciliation ended with `deleted` flows removed, after `took` if it was about UDP:
    /// upstream's is about nothing else.
    pub fn conntrack_reconciled(&self, family: Family, took: Option<Duration>, deleted: u64) {
        let of_family = &[label(family)];
        if let Some(took) = took {
            self.conntrack.duration.with_label_values(of_family).observe(took.as_secs_f64());
        }
        // Also by 0: the series is there from the first reconciliation, as upstream's.
        self.conntrack.deleted.with_label_values(of_family).inc_by(deleted);
    }

    /// What we own and write in the tables of iptables: nothing, in every mode.
    pub fn no_iptables_rules(&self, family: Family) {
        for table in ["filter", "nat"] {
            let labels = &[table, label(family)];
            self.iptables.total.with_label_values(labels).set(0);
            self.iptables.last.with_label_values(labels).set(0);
        }
    }

    /// `/healthz` answered.
    pub fn healthz_answered(&self, status: StatusCode) {
        self.healthz.with_label_values(&[status.as_str()]).inc();
    }

    /// `/livez` answered.
    pub fn livez_answered(&self, status: StatusCode) {
        self.livez.with_label_values(&[status.as_str()]).inc();
    }
}

impl SyncMetrics {
    fn register(r: &mut Registrar<'_>) -> Self {
        let spec = Spec::new;
        SyncMetrics {
            duration: r.histograms(
                spec(
                    "kubeproxy_sync_proxy_rules_duration_seconds",
                    FAMILY,
                    "Time a sync took, in seconds.",
                ),
                &sync_buckets(),
            ),
            full_duration: r.histograms(
                spec(
                    "kubeproxy_sync_full_proxy_rules_duration_seconds",
                    FAMILY,
                    "Time a full sync took, in seconds.",
                )
                .only(FULL_AND_PARTIAL),
                &sync_buckets(),
            ),
            partial_duration: r.histograms(
                spec(
                    "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                    FAMILY,
                    "Time a sync of only the changed services took, in seconds.",
                )
                .only(FULL_AND_PARTIAL),
                &sync_buckets(),
            ),
            last: r.float_gauges(spec(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                FAMILY,
                "When a sync last succeeded, in seconds since 1970.",
            )),
            last_queued: r.float_gauges(spec(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                FAMILY,
                "When a sync was last requested, in seconds since 1970.",
            )),
            network_programming: r.histograms(
                spec(
                    "kubeproxy_network_programming_duration_seconds",
                    FAMILY,
                    "Time from an endpoint's change in the cluster to its rules here, in seconds.",
                ),
                &network_programming_buckets(),
            ),
            no_local_endpoints: r.gauges(spec(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                &["traffic_policy", "ip_family"],
                "Service ports with policy Local and endpoints, none of them on this node.",
            )),
        }
    }
}

impl ChangeMetrics {
    fn register(r: &mut Registrar<'_>) -> Self {
        let spec = Spec::new;
        ChangeMetrics {
            endpoints_pending: r.gauge(spec(
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                &[],
                "Endpoint changes that wait for a sync.",
            )),
            endpoints: r.counter(spec(
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                &[],
                "EndpointSlice events received.",
            )),
            services_pending: r.gauge(spec(
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                &[],
                "Service changes that wait for a sync.",
            )),
            services: r.counter(spec(
                "kubeproxy_sync_proxy_rules_service_changes_total",
                &[],
                "Service events received, counted once per family.",
            )),
        }
    }
}

impl FailureMetrics {
    fn register(r: &mut Registrar<'_>) -> Self {
        let spec = Spec::new;
        FailureMetrics {
            nftables_sync: r.counters(
                spec(
                    "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
                    FAMILY,
                    "Syncs whose transaction failed.",
                )
                .only(NFTABLES),
            ),
            nftables_cleanup: r.counters(
                spec(
                    "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
                    FAMILY,
                    "Failed deletions of objects no longer used.",
                )
                .only(NFTABLES),
            ),
            restore: r.counters(
                spec(
                    "kubeproxy_sync_proxy_rules_iptables_restore_failures_total",
                    FAMILY,
                    "Syncs whose transaction failed.",
                )
                .only(RESTORING),
            ),
            partial_restore: r.counters(
                spec(
                    "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total",
                    FAMILY,
                    "Syncs of only the changed services whose transaction failed.",
                )
                .only(IPTABLES),
            ),
        }
    }
}

impl ConntrackMetrics {
    fn register(r: &mut Registrar<'_>) -> Self {
        ConntrackMetrics {
            duration: r.histograms(
                Spec::new(
                    "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                    FAMILY,
                    "Time a search for stale UDP flows took, in seconds.",
                ),
                &sync_buckets(),
            ),
            deleted: r.counters(Spec::new(
                "kubeproxy_conntrack_reconciler_deleted_entries_total",
                FAMILY,
                "Stale flows deleted from the connection tracking table.",
            )),
        }
    }
}

impl IptablesMetrics {
    fn register(r: &mut Registrar<'_>) -> Self {
        let spec = |name, labels, help| Spec::new(name, labels, help).only(IPTABLES);
        IptablesMetrics {
            total: r.gauges(spec(
                "kubeproxy_sync_proxy_rules_iptables_total",
                TABLE,
                "Rules owned in iptables' tables: none.",
            )),
            last: r.gauges(spec(
                "kubeproxy_sync_proxy_rules_iptables_last",
                TABLE,
                "Rules that the last sync wrote to iptables' tables: none.",
            )),
        }
    }
}

/// The value of label `ip_family` (B-254).
pub(super) fn label(family: Family) -> &'static str {
    match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    }
}

/// A count as a gauge's value.
pub(super) fn gauge_value(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn seconds(time: Timestamp) -> f64 {
    time.as_duration().as_secs_f64()
}
