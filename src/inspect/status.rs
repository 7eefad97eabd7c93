//! The agent's state as rows and sentences.
//!
//! Place in the flow: `kubeweir status` reads a [`Status`] from the metrics port and prints this.
//! Pure.

use crate::conntrack::Statistics;
use crate::engine::UnservedReason;
use crate::program::CounterId;
use crate::status::{Endings, FamilyStatus, LastSync, Status, UnservedPorts};

/// Names of the columns of [`syncs`].
pub const SYNC_COLUMNS: [&str; 6] =
    ["LAST SYNCS", "FAMILY", "TOOK", "IN KERNEL", "ELEMENTS", "BYTES"];

/// Names of the columns of [`drops`].
pub const DROP_COLUMNS: [&str; 4] = ["PACKETS NOT LET THROUGH", "FAMILY", "LAST MINUTE", "SO FAR"];

/// How many syncs are shown, of all families together.
const SHOWN_SYNCS: usize = 5;

/// The figures: a column for each family, which fits every terminal.
///
/// Shape: the header, empty above the figures' names; then a row for each figure.
pub fn figures(status: &Status) -> (Vec<&str>, Vec<Vec<String>>) {
    type Figure = (&'static str, fn(&FamilyStatus) -> String);
    let figures: [Figure; 13] = [
        ("table owned", |family| if family.owned { "yes" } else { "no" }.to_owned()),
        ("program", |family| family.program.clone()),
        ("services", |family| family.summary.totals.services.to_string()),
        ("service ports", |family| family.summary.totals.ports.to_string()),
        ("frontends", |family| family.summary.totals.frontends.to_string()),
        ("endpoints", |family| family.summary.totals.endpoints.to_string()),
        ("list classes", |family| family.summary.classes.to_string()),
        ("pending services", |family| family.summary.dirty.to_string()),
        ("quarantined", |family| family.quarantine.len().to_string()),
        ("conflicts", |family| family.contested.len().to_string()),
        ("syncs", |family| family.syncs.to_string()),
        ("failed syncs", |family| family.failed_syncs.to_string()),
        ("repairs", |family| family.repairs.to_string()),
    ];
    let header = std::iter::once("").chain(status.families.keys().map(String::as_str)).collect();
    let row = |(name, figure): &Figure| {
        let values = status.families.values().map(figure);
        std::iter::once((*name).to_owned()).chain(values).collect()
    };
    (header, figures.iter().map(row).collect())
}

/// The last syncs of all families, newest first, in the order of [`SYNC_COLUMNS`].
pub fn syncs(status: &Status) -> Vec<Vec<String>> {
    let of_family = |(name, family): (&'_ String, &FamilyStatus)| -> Vec<(LastSync, String)> {
        let syncs = family.last_sync.iter().chain(&family.earlier_syncs);
        syncs.map(|sync| (sync.clone(), name.clone())).collect()
    };
    let mut syncs: Vec<(LastSync, String)> = status.families.iter().flat_map(of_family).collect();
    let time = |sync: &LastSync| sync.at.parse::<jiff::Timestamp>().ok();
    syncs.sort_by_key(|(sync, _)| std::cmp::Reverse(time(sync)));
    let row = |(sync, family): (LastSync, String)| {
        let elements = format!("+{} -{}", sync.added, sync.deleted);
        let (took, kernel) = (duration(sync.took_us), duration(sync.kernel_us));
        vec![whole_seconds(&sync.at), family, took, kernel, elements, sync.bytes.to_string()]
    };
    syncs.into_iter().take(SHOWN_SYNCS).map(row).collect()
}

/// What the rules refused or dropped, by reason, in the order of [`DROP_COLUMNS`]; no row without packets.
pub fn drops(status: &Status) -> Vec<Vec<String>> {
    let of_reason = |id: CounterId| {
        status.families.iter().filter_map(move |(name, family)| {
            let dropped = family.dropped.get(id.as_str()).filter(|dropped| dropped.packets > 0)?;
            let counts = [dropped.last_minute, dropped.packets].map(|count| count.to_string());
            Some([vec![id.meaning().to_owned(), name.clone()], counts.to_vec()].concat())
        })
    };
    CounterId::REASONS.into_iter().flat_map(of_reason).collect()
}

/// In the unit that leaves one to three digits before the point.
fn duration(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros} us"),
        1_000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// A time in RFC 3339 without its fraction.
fn whole_seconds(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) => format!("{seconds}Z"),
        None => time.to_owned(),
    }
}

/// What is not as it should be, a sentence each.
pub fn problems(status: &Status) -> Vec<String> {
    if status.families.is_empty() {
        return vec![
            "no family has been synced yet: the agent waits for its lists of Services and EndpointSlices"
                .to_owned(),
        ];
    }
    let conntrack = status.conntrack.filter(Statistics::is_nearly_full).map(|statistics| {
        format!("the conntrack table has {statistics}: when it is full, new connections fail")
    });
    let families = status.families.iter().flat_map(|(name, family)| of_family(name, family));
    conntrack.into_iter().chain(families).collect()
}

/// The conntrack table in one line; none if its figures are not known.
pub fn conntrack(status: &Status) -> Option<String> {
    let statistics = status.conntrack?;
    let Statistics { insert_failed, drop, early_drop, .. } = statistics;
    Some(format!(
        "conntrack: {statistics}; so far {drop} packets dropped, {early_drop} flows pushed out, \
         {insert_failed} not inserted"
    ))
}

fn of_family(name: &str, family: &FamilyStatus) -> Vec<String> {
    let mut problems = Vec::new();
    if !family.summary.attached {
        problems.push("the rules are not in force yet".to_owned());
    }
    if let Some(error) = family.last_sync.as_ref().and_then(|last| last.error.as_ref()) {
        problems.push(format!("the last sync failed: {error}"));
    }
    for service in &family.quarantine {
        problems.push(format!(
            "{} is set aside, refused {} times so far: {}",
            service.service, service.refusals, service.reason
        ));
    }
    for contested in &family.contested {
        problems.push(format!(
            "{} belongs to {}, but {} claims it too and does not get it",
            contested.frontend,
            contested.owner,
            contested.others.join(", ")
        ));
    }
    problems.into_iter().map(|problem| format!("{name}: {problem}")).collect()
}

/// What is worth knowing and may be meant so, a sentence each.
pub fn remarks(status: &Status) -> Vec<String> {
    let of_family = |(name, family): (&String, &FamilyStatus)| {
        let unowned = (!family.owned).then(|| {
            "other programs can change the table; what they change is repaired".to_owned()
        });
        let unserved = family.unserved.iter().map(|(reason, ports)| unserved(*reason, ports));
        let remarks = unowned.into_iter().chain(unserved);
        remarks.map(|remark| format!("{name}: {remark}")).collect::<Vec<String>>()
    };
    let held = (status.endings.held > 0).then(|| held(status.endings.held));
    held.into_iter().chain(status.families.iter().flat_map(of_family)).collect()
}

fn held(endpoints: usize) -> String {
    format!(
        "connections to {endpoints} endpoints are not ended, for these went together with all others of \
         their Services: they are when a Service has an endpoint again"
    )
}

/// What was ended on request, in one line; none if nothing was and nothing waits.
pub fn endings(status: &Status) -> Option<String> {
    let Endings { ended, draining, .. } = status.endings;
    (status.endings != Endings::default()).then(|| {
        format!("connections to endpoints that are gone: {ended} ended so far, {draining} endpoints drain")
    })
}

fn unserved(reason: UnservedReason, ports: &UnservedPorts) -> String {
    let what = match reason {
        UnservedReason::NoEndpoints => "refused, no usable endpoint anywhere",
        UnservedReason::InternalLocal => {
            "ClusterIP dropped, internalTrafficPolicy: Local and no endpoint here"
        }
        UnservedReason::ExternalLocal => {
            "dropped from outside, externalTrafficPolicy: Local and no endpoint here"
        }
    };
    let more = match ports.count.saturating_sub(ports.first.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{what}: {}{more}", ports.first.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{Contested, Dropped, LastSync, QuarantinedService};

    fn family() -> FamilyStatus {
        let mut family = FamilyStatus { owned: true, ..FamilyStatus::default() };
        family.summary.attached = true;
        family
    }

    fn problems_of(change: impl FnOnce(&mut FamilyStatus)) -> Vec<String> {
        let mut family = family();
        change(&mut family);
        let families = [("IPv4".to_owned(), family)].into();
        problems(&Status { families, ..Status::default() })
    }

    #[test]
    fn every_family_has_its_column() {
        let mut family = family();
        family.summary.totals.services = 7;
        family.summary.classes = 2;
        let families = [("IPv4".to_owned(), FamilyStatus::default()), ("IPv6".to_owned(), family)];
        let status = Status { families: families.into(), ..Status::default() };
        let (header, rows) = figures(&status);
        assert_eq!(header, ["", "IPv4", "IPv6"]);
        for expected in
            [["table owned", "no", "yes"], ["services", "0", "7"], ["list classes", "0", "2"]]
        {
            assert!(rows.iter().any(|row| *row == expected), "{expected:?} in {rows:?}");
        }
        assert_eq!(syncs(&status), [[""; 0]; 0]);
    }

    #[test]
    fn the_last_syncs_of_all_families_newest_first() {
        let sync = |at: &str, took_us| LastSync {
            at: format!("2026-11-21T07:08:{at}Z"),
            took_us,
            kernel_us: 7,
            added: 3,
            ..LastSync::default()
        };
        let mut v4 = family();
        v4.last_sync = Some(sync("05.9", 950));
        v4.earlier_syncs = vec![sync("04", 1_250), sync("03", 2_000_000)];
        let mut v6 = family();
        v6.last_sync = Some(sync("04.5", 45));
        let families = [("IPv4".to_owned(), v4), ("IPv6".to_owned(), v6)].into();
        let shown = syncs(&Status { families, ..Status::default() });
        let brief: Vec<String> = shown.iter().map(|row| row[..4].join(" ")).collect();
        assert_eq!(
            brief,
            [
                "2026-11-21T07:08:05Z IPv4 950 us 7 us",
                "2026-11-21T07:08:04Z IPv6 45 us 7 us",
                "2026-11-21T07:08:04Z IPv4 1.2 ms 7 us",
                "2026-11-21T07:08:03Z IPv4 2.0 s 7 us",
            ]
        );
        assert_eq!(shown[0][4..], ["+3 -0", "0"]);
    }

    #[test]
    fn what_was_not_let_through_has_a_row_for_each_reason_and_family() {
        let mut v4 = family();
        v4.dropped = [
            ("unused-port".to_owned(), Dropped { packets: 3, last_minute: 0 }),
            ("no-endpoints".to_owned(), Dropped { packets: 500, last_minute: 412 }),
            ("invalid".to_owned(), Dropped::default()),
        ]
        .into();
        let mut v6 = family();
        v6.dropped = [("no-endpoints".to_owned(), Dropped { packets: 1, last_minute: 1 })].into();
        let families = [("IPv4".to_owned(), v4), ("IPv6".to_owned(), v6)].into();
        assert_eq!(
            drops(&Status { families, ..Status::default() }),
            [
                ["refused, no usable endpoint anywhere", "IPv4", "412", "500"],
                ["refused, no usable endpoint anywhere", "IPv6", "1", "1"],
                ["refused, a port that the ClusterIP does not have", "IPv4", "0", "3"],
            ]
        );
    }

    #[test]
    fn a_conntrack_table_that_is_nearly_full_is_a_problem() {
        let full_by = |entries| Status {
            conntrack: Some(Statistics { entries, limit: 1000, drop: 7, ..Statistics::default() }),
            families: [("IPv4".to_owned(), family())].into(),
            ..Status::default()
        };
        assert_eq!(problems(&full_by(899)), [""; 0]);
        assert_eq!(
            problems(&full_by(900)),
            [
                "the conntrack table has 900 of 1000 entries (90 %): when it is full, new connections \
              fail"
            ]
        );
        assert_eq!(
            conntrack(&full_by(899)).expect("figures"),
            "conntrack: 899 of 1000 entries (89 %); so far 7 packets dropped, 0 flows pushed out, \
             0 not inserted"
        );
        assert_eq!(conntrack(&Status::default()), None);
    }

    #[test]
    fn ended_connections_are_told_where_there_are_any() {
        let of = |ended, draining, held| Status {
            endings: Endings { ended, draining, held },
            ..Status::default()
        };
        assert_eq!((endings(&of(0, 0, 0)), remarks(&of(0, 0, 0))), (None, vec![]));
        assert_eq!(
            endings(&of(7, 2, 0)).expect("a line"),
            "connections to endpoints that are gone: 7 ended so far, 2 endpoints drain"
        );
        assert_eq!(remarks(&of(7, 2, 0)), [""; 0]);
        let [held] = &remarks(&of(0, 0, 3))[..] else { panic!("no remark") };
        assert!(held.starts_with("connections to 3 endpoints are not ended"), "{held}");
    }

    #[test]
    fn what_is_not_served_is_remarked_on() {
        let mut family = family();
        let ports = |count, first: &[&str]| UnservedPorts {
            count,
            first: first.iter().map(|&port| port.to_owned()).collect(),
        };
        family.unserved = [
            (UnservedReason::NoEndpoints, ports(1, &["a/b:c"])),
            (UnservedReason::ExternalLocal, ports(7, &["a/d", "a/e"])),
        ]
        .into();
        let families = [("IPv4".to_owned(), family)].into();
        let status = Status { families, ..Status::default() };
        assert_eq!(
            remarks(&status),
            [
                "IPv4: refused, no usable endpoint anywhere: a/b:c",
                "IPv4: dropped from outside, externalTrafficPolicy: Local and no endpoint here: \
                 a/d, a/e and 5 more",
            ]
        );
        assert_eq!(problems(&status), [""; 0]);
    }

    #[test]
    fn each_problem_has_its_sentence() {
        assert_eq!(problems_of(|_| ()), [""; 0]);
        let quarantined = problems_of(|family| {
            family.quarantine.push(QuarantinedService {
                service: "default/web".into(),
                reason: "add element endpoints-4: No space left".into(),
                refusals: 3,
            });
        });
        assert_eq!(
            quarantined,
            ["IPv4: default/web is set aside, refused 3 times so far: add element \
              endpoints-4: No space left"]
        );
        let contested = problems_of(|family| {
            family.contested.push(Contested {
                frontend: "192.0.2.1:80/tcp".into(),
                owner: "a/old".into(),
                others: vec!["b/new".into()],
            });
        });
        assert_eq!(
            contested,
            [
                "IPv4: 192.0.2.1:80/tcp belongs to a/old, but b/new claims it too and does not get it"
            ]
        );
        let failed = problems_of(|family| {
            let error = Some("Operation not permitted".to_owned());
            family.last_sync = Some(LastSync { error, ..LastSync::default() });
        });
        assert_eq!(failed, ["IPv4: the last sync failed: Operation not permitted"]);
        assert!(problems(&Status::default())[0].contains("waits for its lists"));
    }
}
