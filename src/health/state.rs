//! When the proxy is healthy, a state machine without a clock, and in which words `/healthz` says it.
//!
//! Place in the flow: behind [`super::Health`]; [`super::serve`] sends the words. It must not know HTTP
//! or where the time comes from.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

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

// The bodies of `/healthz` and `/livez`.

/// Go's zero time, shown while no family has reported: 0001-01-01T00:00:00Z.
const ZERO_TIME: Timestamp = Timestamp::constant(-62_135_596_800, 0);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// 200 or 503.
    pub ok: bool,
    /// A JSON object on one line, keys in upstream's order (section 8.1), times in RFC 3339.
    pub body: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: Timestamp,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Families>,
}

#[derive(Serialize)]
struct Families {
    #[serde(rename = "IPv4", skip_serializing_if = "Option::is_none")]
    v4: Option<FamilyBody>,
    #[serde(rename = "IPv6", skip_serializing_if = "Option::is_none")]
    v6: Option<FamilyBody>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyBody {
    last_updated: Timestamp,
    healthy: bool,
}

impl HealthStatus {
    /// The answer of `/healthz`: the proxy is healthy and the node stays (B-229, B-230).
    pub fn healthz(&self) -> Report {
        self.report(self.healthy && self.node_eligible, Some(self.node_eligible))
    }

    /// The answer of `/livez`: the proxy is healthy, whatever becomes of the node (B-237).
    pub fn livez(&self) -> Report {
        self.report(self.healthy, None)
    }

    fn report(&self, ok: bool, node_eligible: Option<bool>) -> Report {
        let body = Body {
            last_updated: if ok { self.now } else { self.newest_update() },
            current_time: self.now,
            node_eligible,
            healthy: self.healthy,
            status: self.family_bodies(),
        };
        let body = serde_json::to_string(&body).expect("a struct of times and flags serialises");
        Report { ok, body }
    }

    fn newest_update(&self) -> Timestamp {
        let updates = Family::BOTH.iter().filter_map(|&f| self.families[f]).map(|h| h.updated);
        updates.max().unwrap_or(ZERO_TIME)
    }

    fn family_bodies(&self) -> Option<Families> {
        let body = |family| {
            let FamilyHealth { updated, healthy } = self.families[family]?;
            Some(FamilyBody { last_updated: updated, healthy })
        };
        let families = Families { v4: body(Family::V4), v6: body(Family::V6) };
        (families.v4.is_some() || families.v6.is_some()).then_some(families)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ObjectName, PerFamily};

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

    const NOW: Timestamp = Timestamp::constant(1_700_000_000, 123_456_789);

    fn family(second: i64, healthy: bool) -> Option<FamilyHealth> {
        Some(FamilyHealth { updated: Timestamp::from_second(second).unwrap(), healthy })
    }

    // B-229, B-230, B-232, B-236, B-237: status, keys in order, and which time is shown.
    #[test]
    fn bodies_have_upstreams_keys_and_times() {
        let both = PerFamily { v4: family(1_699_999_000, true), v6: family(1_699_999_500, true) };
        let late = PerFamily { v4: family(1_699_999_000, true), v6: family(1_699_999_500, false) };
        let cases = [
            (
                "healthy",
                HealthStatus { now: NOW, healthy: true, node_eligible: true, families: both },
                (
                    true,
                    r#"{"lastUpdated":"2023-11-14T22:13:20.123456789Z","currentTime":"2023-11-14T22:13:20.123456789Z","nodeEligible":true,"healthy":true,"status":{"IPv4":{"lastUpdated":"2023-11-14T21:56:40Z","healthy":true},"IPv6":{"lastUpdated":"2023-11-14T22:05:00Z","healthy":true}}}"#,
                ),
                (
                    true,
                    r#"{"lastUpdated":"2023-11-14T22:13:20.123456789Z","currentTime":"2023-11-14T22:13:20.123456789Z","healthy":true,"status":{"IPv4":{"lastUpdated":"2023-11-14T21:56:40Z","healthy":true},"IPv6":{"lastUpdated":"2023-11-14T22:05:00Z","healthy":true}}}"#,
                ),
            ),
            (
                "one family late",
                HealthStatus { now: NOW, healthy: false, node_eligible: true, families: late },
                (
                    false,
                    r#"{"lastUpdated":"2023-11-14T22:05:00Z","currentTime":"2023-11-14T22:13:20.123456789Z","nodeEligible":true,"healthy":false,"status":{"IPv4":{"lastUpdated":"2023-11-14T21:56:40Z","healthy":true},"IPv6":{"lastUpdated":"2023-11-14T22:05:00Z","healthy":false}}}"#,
                ),
                (
                    false,
                    r#"{"lastUpdated":"2023-11-14T22:05:00Z","currentTime":"2023-11-14T22:13:20.123456789Z","healthy":false,"status":{"IPv4":{"lastUpdated":"2023-11-14T21:56:40Z","healthy":true},"IPv6":{"lastUpdated":"2023-11-14T22:05:00Z","healthy":false}}}"#,
                ),
            ),
            (
                "nothing reported, node never seen",
                HealthStatus {
                    now: NOW,
                    healthy: true,
                    node_eligible: false,
                    families: PerFamily::default(),
                },
                (
                    false,
                    r#"{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2023-11-14T22:13:20.123456789Z","nodeEligible":false,"healthy":true}"#,
                ),
                (
                    true,
                    r#"{"lastUpdated":"2023-11-14T22:13:20.123456789Z","currentTime":"2023-11-14T22:13:20.123456789Z","healthy":true}"#,
                ),
            ),
        ];
        for (name, status, healthz, livez) in cases {
            let expected = |(ok, body): (bool, &str)| Report { ok, body: body.to_owned() };
            assert_eq!(status.healthz(), expected(healthz), "{name}: /healthz");
            assert_eq!(status.livez(), expected(livez), "{name}: /livez");
        }
    }
}
