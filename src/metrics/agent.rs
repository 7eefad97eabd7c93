//! Kubeweir's own metrics, `kubeweir_*`: what upstream has no name for.
//!
//! Place in the flow: the engine's shell and the sources record here. It must not know when or why
//! something is recorded. Every label comes from a closed set, except those of the optional
//! counters of service ports ([`super::services`]), which are bounded in number.

use prometheus::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec};

use super::definition::{Registrar, Spec};
use super::proxy::{gauge_value, label};
use crate::kernel::{CommitError, Committed};
use crate::model::{Family, Skip, SkipLevel};

const FAMILY: &[&str] = &["ip_family"];

/// The metrics of Kubeweir itself.
#[derive(Debug)]
pub struct AgentMetrics {
    commits: CommitMetrics,
    elements: IntGaugeVec,
    repairs: IntCounterVec,
    quarantined: IntGauge,
    conflicts: IntGauge,
    pending: IntGauge,
    skips: IntCounterVec,
    ended: IntCounterVec,
}

#[derive(Debug)]
struct CommitMetrics {
    duration: HistogramVec,
    bytes: IntCounterVec,
    messages: IntCounterVec,
    rejected: IntCounterVec,
    unknown: IntCounterVec,
    unsent: IntCounterVec,
}

/// 10 us doubling, 20 buckets, up to 5.2 s.
fn commit_buckets() -> Vec<f64> {
    (0..20).map(|n| 0.000_01 * f64::from(1 << n)).collect()
}

impl AgentMetrics {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        let spec = Spec::new;
        AgentMetrics {
            commits: CommitMetrics::register(r),
            elements: r.gauges(spec(
                "kubeweir_elements",
                &["ip_family", "set"],
                "Elements in force, by what their set or map is for.",
            )),
            repairs: r.counters(spec(
                "kubeweir_table_repairs_total",
                FAMILY,
                "Foreign changes to the table that were put right.",
            )),
            quarantined: r.gauge(spec(
                "kubeweir_quarantined_services",
                &[],
                "Services set aside because the kernel refuses their rules.",
            )),
            conflicts: r.gauge(spec(
                "kubeweir_frontend_conflicts",
                &[],
                "Frontends claimed by more than one service.",
            )),
            pending: r.gauge(spec(
                "kubeweir_pending_services",
                &[],
                "Services whose changes are not in force yet.",
            )),
            ended: r.counters(spec(
                "kubeweir_ended_connections_total",
                FAMILY,
                "Connections to endpoints that are gone that were ended on request.",
            )),
            skips: r.counters(spec(
                "kubeweir_decode_skips_total",
                &["kind", "level"],
                "Parts of API objects left out because they cannot be used.",
            )),
        }
    }

    /// A transaction is in force.
    pub fn committed(&self, family: Family, figures: &Committed) {
        let of_family = &[label(family)];
        let commits = &self.commits;
        commits.duration.with_label_values(of_family).observe(figures.elapsed.as_secs_f64());
        commits.bytes.with_label_values(of_family).inc_by(figures.bytes as u64);
        commits.messages.with_label_values(of_family).inc_by(figures.messages as u64);
    }

    /// A transaction failed, or nobody knows.
    pub fn commit_failed(&self, family: Family, error: &CommitError) {
        match error {
            CommitError::Rejected(rejection) => {
                let labels = &[label(family), errno_label(rejection.errno)];
                self.commits.rejected.with_label_values(labels).inc();
            }
            CommitError::Owned { .. } => {
                let labels = &[label(family), errno_label(libc::EPERM)];
                self.commits.rejected.with_label_values(labels).inc();
            }
            CommitError::Unknown(_) => {
                self.commits.unknown.with_label_values(&[label(family)]).inc();
            }
            CommitError::Unsent { .. } => {
                self.commits.unsent.with_label_values(&[label(family)]).inc();
            }
        }
    }

    /// Number of elements in force in a kind of set: `endpoints`, not `endpoints-16`. The name is a
    /// literal, so that no per-service set can become a series.
    pub fn elements(&self, family: Family, set: &'static str, count: usize) {
        self.elements.with_label_values(&[label(family), set]).set(gauge_value(count));
    }

    /// A foreign change to a family's table was repaired.
    pub fn repaired(&self, family: Family) {
        self.repairs.with_label_values(&[label(family)]).inc();
    }

    /// Services now in quarantine.
    pub fn quarantined_services(&self, count: usize) {
        self.quarantined.set(gauge_value(count));
    }

    /// Frontends now claimed more than once.
    pub fn frontend_conflicts(&self, count: usize) {
        self.conflicts.set(gauge_value(count));
    }

    /// Services now dirty.
    pub fn pending_services(&self, count: usize) {
        self.pending.set(gauge_value(count));
    }

    /// Connections to an endpoint that is gone were ended.
    pub fn connections_ended(&self, family: Family, count: usize) {
        self.ended.with_label_values(&[label(family)]).inc_by(count as u64);
    }

    /// A part of an object was left out.
    pub fn skipped(&self, skip: &Skip) {
        let level = match skip.level {
            SkipLevel::Error => "error",
            SkipLevel::Info => "info",
        };
        self.skips.with_label_values(&[skip.kind.to_string().as_str(), level]).inc();
    }
}

impl CommitMetrics {
    fn register(r: &mut Registrar<'_>) -> Self {
        let spec = Spec::new;
        CommitMetrics {
            duration: r.histograms(
                spec(
                    "kubeweir_commit_duration_seconds",
                    FAMILY,
                    "Time a transaction spent in the kernel, in seconds.",
                ),
                &commit_buckets(),
            ),
            bytes: r.counters(spec(
                "kubeweir_commit_bytes_total",
                FAMILY,
                "Bytes of the transactions that were applied.",
            )),
            messages: r.counters(spec(
                "kubeweir_commit_messages_total",
                FAMILY,
                "Netlink messages of the transactions that were applied.",
            )),
            rejected: r.counters(spec(
                "kubeweir_rejected_commits_total",
                &["ip_family", "errno"],
                "Transactions that the kernel refused.",
            )),
            unknown: r.counters(spec(
                "kubeweir_unknown_outcomes_total",
                FAMILY,
                "Transactions whose outcome only reading back could tell.",
            )),
            unsent: r.counters(spec(
                "kubeweir_unsent_commits_total",
                FAMILY,
                "Transactions that could not be sent to the kernel.",
            )),
        }
    }
}

/// Symbol of an errno that nf_tables is known to answer with, or `other`: a closed set of labels.
fn errno_label(errno: i32) -> &'static str {
    match errno {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EINTR => "EINTR",
        libc::E2BIG => "E2BIG",
        libc::ENOMEM => "ENOMEM",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EINVAL => "EINVAL",
        libc::ENFILE => "ENFILE",
        libc::EMFILE => "EMFILE",
        libc::ENOSPC => "ENOSPC",
        libc::EMLINK => "EMLINK",
        libc::ERANGE => "ERANGE",
        libc::ELOOP => "ELOOP",
        libc::ENOBUFS => "ENOBUFS",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EAFNOSUPPORT => "EAFNOSUPPORT",
        libc::EOVERFLOW => "EOVERFLOW",
        _ => "other",
    }
}
