//! The bodies of `/healthz` and `/livez`.
//!
//! Place in the flow: words a [`HealthStatus`]; [`super::serve`] sends it. Pure.

use jiff::Timestamp;
use serde::Serialize;

use super::{FamilyHealth, HealthStatus};
use crate::model::Family;

/// Go's zero time, shown while no family has reported: 0001-01-01T00:00:00Z.
const ZERO_TIME: Timestamp = Timestamp::constant(-62_135_596_800, 0);

/// An answer about health.
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
    use crate::model::PerFamily;

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
