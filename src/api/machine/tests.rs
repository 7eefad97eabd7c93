use super::*;

fn refused(code: u16, reason: &str, retry_after: Option<u64>) -> Outcome {
    let retry_after = retry_after.map(Duration::from_secs);
    Outcome::Refused(Refusal { code, reason: reason.into(), retry_after })
}

fn page(version: &str, token: Option<&str>) -> Outcome {
    Outcome::Page { resource_version: version.into(), continue_token: token.map(Into::into) }
}

fn list(version: &str) -> Request {
    Request::List { resource_version: version.into() }
}

fn watch(version: &str) -> Request {
    Request::Watch { resource_version: version.into() }
}

fn ended(ms: u64) -> Outcome {
    Outcome::Ended { lasted: Duration::from_millis(ms) }
}

fn broken(ms: u64) -> Outcome {
    Outcome::Broken { lasted: Duration::from_millis(ms) }
}

fn absent(ms: u64) -> Outcome {
    Outcome::Absent { lasted: Duration::from_millis(ms) }
}

/// A machine whose initial list is complete as of version 40.
fn watching() -> Machine {
    let mut machine = Machine::default();
    machine.listed("40");
    machine
}

/// The same on a server that refused streaming lists.
fn watching_after_pages() -> Machine {
    let mut machine = Machine::default();
    machine.next(refused(422, "Invalid", None), 0.0);
    machine.next(page("40", None), 0.0);
    machine
}

/// A machine that waits for the page after token `t`.
fn paging() -> Machine {
    let mut machine = Machine::default();
    machine.next(refused(422, "Invalid", None), 0.0);
    machine.next(page("40", Some("t")), 0.0);
    machine
}

#[test]
fn a_cold_start_tries_a_streaming_list() {
    let first = Machine::default().first();
    assert_eq!(first, Step { after: Duration::ZERO, request: Request::StreamingList });
}

// B-073: a server that refuses streaming lists is read page by page, then watched.
#[test]
fn every_outcome_leads_to_the_next_request() {
    let token = || Request::ListPage { continue_token: "t".into() };
    let start = Machine::default;
    let cases: [(&str, Machine, Outcome, Request, u64); 42] = [
        ("streaming refused: pages", start(), refused(422, "Invalid", None), list("0"), 0),
        ("streaming unknown: pages", start(), refused(400, "BadRequest", None), list("0"), 0),
        ("streaming cut: pages", start(), broken(10), list("0"), 0),
        ("streaming dropped: pages", start(), Outcome::Unanswered, list("0"), 0),
        ("streaming without end: pages", start(), ended(60_000), list("0"), 0),
        ("no server", start(), absent(0), Request::StreamingList, 500),
        ("a strange server", start(), Outcome::Unreachable, Request::StreamingList, 800),
        ("streaming throttled", start(), refused(429, "", Some(7)), Request::StreamingList, 7000),
        (
            "streaming throttled, no time",
            start(),
            refused(429, "", None),
            Request::StreamingList,
            800,
        ),
        ("streaming forbidden", start(), refused(403, "", None), list("0"), 0),
        ("streaming while starting", start(), refused(500, "", None), list("0"), 0),
        ("streaming not there", start(), refused(404, "NotFound", None), list("0"), 0),
        ("streaming not made", start(), refused(501, "", None), list("0"), 0),
        ("streaming unavailable", start(), refused(503, "", None), list("0"), 0),
        ("streaming unavailable for a time", start(), refused(503, "", Some(2)), list("0"), 2000),
        ("streaming expired", start(), refused(410, "Expired", None), list("0"), 0),
        ("a token of another server", paging(), refused(400, "BadRequest", None), list("0"), 0),
        ("a page, more to come", paging(), page("40", Some("t")), token(), 0),
        ("the last page", paging(), page("40", None), watch("40"), 0),
        ("a page broke", paging(), broken(10), token(), 0),
        ("a page throttled", paging(), refused(429, "", Some(1)), token(), 1000),
        ("the token expired", paging(), refused(410, "Expired", None), Request::FullList, 0),
        ("watch timed out", watching(), ended(300_000), watch("40"), 0),
        ("watch ended at once", watching_after_pages(), ended(10), watch("40"), 800),
        ("watch broke", watching(), broken(10), watch("40"), 800),
        ("watch cut by a balancer", watching(), broken(20_000), watch("40"), 0),
        ("watch cut after a second", watching_after_pages(), broken(1000), watch("40"), 0),
        ("a kept connection was closed", watching(), Outcome::Unanswered, watch("40"), 0),
        ("server gone", watching(), absent(300), watch("40"), 200),
        ("server gone without a word", watching(), absent(2000), watch("40"), 0),
        ("another server in its place", watching(), Outcome::Unreachable, watch("40"), 800),
        ("watch throttled", watching(), refused(429, "", Some(3)), watch("40"), 3000),
        ("token rotated", watching(), refused(401, "Unauthorized", None), watch("40"), 800),
        ("server broken", watching(), refused(500, "InternalError", None), watch("40"), 800),
        ("gateway timeout", watching(), refused(504, "", None), watch("40"), 800),
        ("expired", watching(), refused(410, "Expired", None), Request::StreamingList, 0),
        ("gone", watching(), refused(410, "Gone", None), Request::StreamingList, 0),
        (
            "state of the future",
            watching(),
            refused(504, "Timeout", None),
            Request::StreamingList,
            0,
        ),
        ("bad request", watching(), refused(400, "BadRequest", None), Request::StreamingList, 0),
        ("expired, no streaming", watching_after_pages(), refused(410, "", None), list("40"), 0),
        (
            "list of the future",
            {
                let mut machine = watching_after_pages();
                machine.next(refused(410, "Expired", None), 0.0);
                machine
            },
            refused(504, "Timeout", None),
            list(""),
            1600,
        ),
        (
            "full list done",
            {
                let mut machine = paging();
                machine.next(refused(410, "Expired", None), 0.0);
                machine
            },
            page("55", None),
            watch("55"),
            0,
        ),
    ];
    for (name, mut machine, outcome, request, after) in cases {
        let want = Step { after: Duration::from_millis(after), request };
        assert_eq!(machine.next(outcome, 0.0), want, "{name}");
    }
}

#[test]
fn events_and_bookmarks_move_the_point_of_resumption() {
    let mut machine = watching();
    machine.advanced("41");
    machine.advanced("57");
    assert_eq!(machine.next(broken(10), 0.0).request, watch("57"));
}

// A balancer that cuts silent streams: each cut doubled the pause until no watch was open for a minute.
#[test]
fn a_watch_that_is_cut_again_and_again_is_opened_again_at_once() {
    for cut in [broken(20_000), ended(350_000), broken(1_001)] {
        let mut machine = watching();
        for _ in 0..100 {
            let step = machine.next(cut.clone(), 0.9);
            assert_eq!(step, Step { after: Duration::ZERO, request: watch("40") });
        }
    }
}

#[test]
fn a_watch_that_ends_at_once_again_and_again_is_slowed_down() {
    for (outcome, want) in [
        (broken(10), [800, 1600, 3200, 6400]),
        (ended(10), [0, 1600, 3200, 6400]),
        (Outcome::Unanswered, [0, 800, 1600, 3200]),
    ] {
        let mut machine = watching();
        let millis = [41, 42, 43, 44].map(|version| {
            let step = machine.next(outcome.clone(), 0.0);
            if outcome != Outcome::Unanswered {
                machine.advanced(&version.to_string());
            }
            step.after.as_millis()
        });
        assert_eq!(millis, want, "{outcome:?}, with an event in each");
        if outcome != Outcome::Unanswered {
            assert_eq!(machine.next(broken(5000), 0.0).after, Duration::ZERO);
            assert_eq!(machine.next(broken(10), 0.0).after.as_millis(), 800, "forgotten");
        }
    }
}

#[test]
fn a_loss_of_any_length_is_followed_by_one_watch_and_no_list() {
    let mut machine = watching();
    for _ in 0..1000 {
        assert_eq!(machine.next(Outcome::Unreachable, 0.5).request, watch("40"));
    }
}

#[test]
fn delays_double_up_to_a_cap_and_jitter_spreads_them() {
    let mut machine = watching();
    let millis: Vec<u128> =
        (0..8).map(|_| machine.next(Outcome::Unreachable, 0.0).after.as_millis()).collect();
    assert_eq!(millis, [800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]);
    assert_eq!(machine.next(Outcome::Unreachable, 0.5).after, Duration::from_secs(45));
    machine.advanced("41");
    assert_eq!(machine.next(Outcome::Unreachable, 0.25).after, Duration::from_secs(1));
}

#[test]
fn a_remedy_that_keeps_failing_is_slowed_down() {
    let mut machine = watching();
    let millis: Vec<u128> = (0..4)
        .map(|_| machine.next(refused(410, "Expired", None), 0.0).after.as_millis())
        .collect();
    assert_eq!(millis, [0, 0, 1600, 3200], "the second was the streaming list's");
}

// etcd 3.4 behind a new API server: the reason is none that tells of streaming lists.
#[test]
fn a_streaming_list_is_not_tried_again_before_the_next_relist() {
    let outcomes = [
        refused(500, "InternalError", None),
        refused(503, "ServiceUnavailable", None),
        broken(10),
        ended(10),
        Outcome::Unanswered,
    ];
    for failed in outcomes {
        let mut machine = Machine::default();
        assert_eq!(machine.next(failed.clone(), 0.0).request, list("0"), "{failed:?}");
        for _ in 0..5 {
            assert_eq!(machine.next(Outcome::Unreachable, 0.0).request, list("0"), "{failed:?}");
        }
        assert_eq!(machine.next(page("40", None), 0.0).request, watch("40"));
        let relist = machine.next(refused(410, "Expired", None), 0.0);
        assert_eq!(relist.request, Request::StreamingList, "{failed:?}");
        assert_eq!(machine.next(failed.clone(), 0.0).request, list("40"), "{failed:?}");
    }
}

#[test]
fn a_machine_without_streaming_lists_never_asks_for_one() {
    let mut machine = Machine::paged();
    assert_eq!(machine.first().request, list("0"));
    machine.next(page("40", None), 0.0);
    assert_eq!(machine.next(refused(410, "Expired", None), 0.0).request, list("40"));
}

#[test]
fn lists_that_lead_to_the_same_refusal_are_slowed_down() {
    let mut machine = watching_after_pages();
    machine.advanced("41");
    let mut millis = Vec::new();
    for _ in 0..4 {
        millis.push(machine.next(refused(410, "Expired", None), 0.0).after.as_millis());
        assert_eq!(machine.next(page("41", None), 0.0).after, Duration::ZERO);
    }
    assert_eq!(millis, [0, 1600, 3200, 6400]);
}

#[test]
fn after_a_loss_a_forgotten_version_is_remedied_soon() {
    let mut machine = watching();
    for _ in 0..7 {
        machine.next(Outcome::Unreachable, 0.5);
    }
    let millis: Vec<u128> = (0..3)
        .map(|_| machine.next(refused(410, "Expired", None), 0.5).after.as_millis())
        .collect();
    assert_eq!(millis, [1200, 0, 2400], "it grows if the remedy fails as well");
}

#[test]
fn retry_after_is_kept_and_spread() {
    let step = watching().next(refused(429, "TooManyRequests", Some(5)), 0.5);
    assert_eq!(step.after, Duration::from_millis(5400));
    let step = watching().next(refused(429, "TooManyRequests", Some(1_000_000_000)), 0.5);
    assert_eq!(step.after, Duration::from_millis(60_400), "nobody stops a kind for ever");
}

// After a long outage the next try was up to a minute away.
#[test]
fn a_server_that_is_not_there_is_asked_for_once_a_second() {
    let mut machine = watching();
    for jitter in [0.0, 0.5, 1.0].repeat(100) {
        let step = machine.next(absent(0), jitter);
        assert_eq!(step.after, Duration::from_millis(500).mul_f64(1.0 + jitter));
        assert_eq!(step.request, watch("40"));
    }
    // Whoever lost it with us is not to ask for a list at the same time.
    let step = machine.next(refused(410, "Expired", None), 0.5);
    assert_eq!(step.after, Duration::from_millis(1200));
}
