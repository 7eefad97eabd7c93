//! When the proxy is healthy: a state machine without a clock.
//!
//! Place in the flow: behind [`super::Health`]; [`super::report`] words the outcome. It must not know
//! HTTP or where the time comes from.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{Family, Node, PerFamily};

/// One reading of both clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Monotonic time since any fixed point; what time-outs are measured with.
    pub elapsed: Duration,
    /// Wall clock; what is shown.
    pub wall: Timestamp,
}

/// What is known about the proxy's own work and its node.
#[derive(Debug, Clone)]
pub struct ProxyHealth {
    timeout: Duration,
    /// When each family last reported an update.
    updated: PerFamily<Option<Timestamp>>,
    pending_since: PerFamily<Option<Duration>>,
    node_eligible: bool,
}

/// The health at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthStatus {
    /// The wall clock at that moment.
    pub now: Timestamp,
    /// Every family that ever reported is on time. True when none has.
    pub healthy: bool,
    /// The Node was seen, or is not needed, and is neither being deleted nor about to be.
    pub node_eligible: bool,
    /// Each family that ever reported an update.
    pub families: PerFamily<Option<FamilyHealth>>,
}

/// One family's share of a [`HealthStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyHealth {
    /// When it last reported an update.
    pub updated: Timestamp,
    /// No request waits longer than the time-out.
    pub healthy: bool,
}

impl ProxyHealth {
    /// Nothing has happened yet. A request may wait for twice `sync_period` (B-233).
    pub fn new(sync_period: Duration) -> Self {
        ProxyHealth {
            timeout: sync_period.saturating_mul(2),
            updated: PerFamily::default(),
            pending_since: PerFamily::default(),
            node_eligible: false,
        }
    }

    /// Where there may be no Node, such as among manifests, the node stays until one says otherwise.
    pub fn without_node(self) -> Self {
        ProxyHealth { node_eligible: true, ..self }
    }

    /// A sync of a family was requested. Of several requests the oldest counts.
    pub fn queued(&mut self, family: Family, now: Moment) {
        self.pending_since[family].get_or_insert(now.elapsed);
    }

    /// A sync of a family succeeded, or its loop starts: nothing is pending any more.
    pub fn updated(&mut self, family: Family, now: Moment) {
        self.updated[family] = Some(now.wall);
        self.pending_since[family] = None;
    }

    /// The Node object as last seen.
    pub fn observe_node(&mut self, node: &Node) {
        self.node_eligible = !node.deleting && !node.to_be_deleted;
    }

    /// The health at a moment at which the worker has been at one piece of work for `busy`.
    pub fn status(&self, now: Moment, busy: Option<Duration>) -> HealthStatus {
        let hangs = busy.is_some_and(|busy| busy >= self.timeout);
        let families = PerFamily::from_fn(|family| {
            let updated = self.updated[family]?;
            let late = |since| now.elapsed.saturating_sub(since) >= self.timeout;
            let healthy = !hangs && !self.pending_since[family].is_some_and(late);
            Some(FamilyHealth { updated, healthy })
        });
        let healthy = Family::BOTH.iter().all(|&f| families[f].is_none_or(|h| h.healthy));
        HealthStatus { now: now.wall, healthy, node_eligible: self.node_eligible, families }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    /// `syncPeriod` 30 s: the time-out is 60 s.
    fn fresh() -> ProxyHealth {
        ProxyHealth::new(Duration::from_secs(30))
    }

    fn at(seconds: u64) -> Moment {
        let wall = Timestamp::from_second(1_000_000_000 + seconds as i64).unwrap();
        Moment { elapsed: Duration::from_secs(seconds), wall }
    }

    fn node(deleting: bool, to_be_deleted: bool) -> Node {
        Node {
            name: ObjectName::cluster_scoped("n1"),
            zone: None,
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            deleting,
            to_be_deleted,
        }
    }

    /// Name, what happened, when it is asked, and the answer for IPv4 and IPv6.
    type Case = (&'static str, Vec<Step>, u64, [Option<bool>; 2]);

    enum Step {
        Queued(Family, u64),
        Updated(Family, u64),
    }

    // B-233, B-234, B-235, Q-18: requests have twice syncPeriod, the oldest counts, each family alone.
    #[test]
    fn families_are_judged_by_their_oldest_request() {
        use Family::{V4, V6};
        use Step::{Queued, Updated};
        let cases: [Case; 9] = [
            ("fresh process", vec![], 1_000, [None, None]),
            ("idle for a day", vec![Updated(V4, 0)], 86_400, [Some(true), None]),
            ("just in time", vec![Updated(V4, 0), Queued(V4, 10)], 69, [Some(true), None]),
            ("too late", vec![Updated(V4, 0), Queued(V4, 10)], 70, [Some(false), None]),
            (
                "the oldest request counts",
                vec![Updated(V4, 0), Queued(V4, 10), Queued(V4, 60)],
                70,
                [Some(false), None],
            ),
            (
                "a sync clears all requests",
                vec![Updated(V4, 0), Queued(V4, 10), Queued(V4, 60), Updated(V4, 100)],
                500,
                [Some(true), None],
            ),
            (
                "a request after a sync starts anew",
                vec![Updated(V4, 0), Queued(V4, 10), Updated(V4, 20), Queued(V4, 30)],
                89,
                [Some(true), None],
            ),
            (
                "one family on time does not hide the other",
                vec![Updated(V4, 0), Updated(V6, 0), Queued(V4, 1), Queued(V6, 1), Updated(V4, 90)],
                100,
                [Some(true), Some(false)],
            ),
            ("a family that never reported is not judged", vec![Queued(V6, 0)], 500, [None, None]),
        ];
        for (name, steps, now, expected) in cases {
            let mut health = fresh();
            for step in steps {
                match step {
                    Queued(family, t) => health.queued(family, at(t)),
                    Updated(family, t) => health.updated(family, at(t)),
                }
            }
            let status = health.status(at(now), None);
            let found = Family::BOTH.map(|f| status.families[f].map(|h| h.healthy));
            assert_eq!(found, expected, "{name}");
            assert_eq!(status.healthy, !expected.contains(&Some(false)), "{name}");
        }
    }

    // A commit that never ends is told of by nobody.
    #[test]
    fn a_worker_that_hangs_is_unhealthy() {
        let mut health = fresh();
        health.updated(Family::V4, at(0));
        let asked = |seconds| health.status(at(500), Some(Duration::from_secs(seconds))).healthy;
        assert_eq!([asked(59), asked(60)], [true, false]);
    }

    // B-230, B-232: the node must have been seen and stay.
    #[test]
    fn node_is_eligible_unless_it_goes() {
        let mut health = fresh();
        assert!(!health.status(at(0), None).node_eligible, "never seen");
        assert!(fresh().without_node().status(at(0), None).node_eligible, "not needed");
        let cases = [
            ("plain", node(false, false), true),
            ("deletionTimestamp", node(true, false), false),
            ("taint of the autoscaler", node(false, true), false),
            ("taint taken back", node(false, false), true),
        ];
        for (name, node, eligible) in cases {
            health.observe_node(&node);
            let status = health.status(at(1), None);
            assert_eq!(status.node_eligible, eligible, "{name}");
            assert!(status.healthy, "{name}: eligibility is not health");
        }
    }
}
