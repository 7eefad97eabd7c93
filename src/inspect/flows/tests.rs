//! Which flows are whose, as values.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::conntrack::{Change, Counts, Tuple};
use crate::model::Protocol;
use crate::program::ListScope;

fn at(text: &str) -> SocketAddr {
    text.parse().expect("a literal address")
}

fn entry(client: &str, frontend: &str, endpoint: &str) -> Entry {
    let (client, frontend, endpoint) = (at(client), at(frontend), at(endpoint));
    Entry {
        protocol: Protocol::Tcp,
        original: Tuple { source: client, destination: frontend },
        reply: Tuple { source: endpoint, destination: client },
        zone: None,
        replied: true,
        assured: true,
        tcp: Some("ESTABLISHED"),
        started: None,
        counts: None,
        id: None,
    }
}

const CLIENT: &str = "10.1.0.9:4000";

/// `shop/web:http` at 10.96.0.10:80 and on NodePort 30080, and `shop/dns` at 10.96.0.11:53, with an
/// endpoint each.
fn names() -> Names {
    let frontend = |label: &str, endpoint: &str| Frontend {
        label: Some(Arc::from(label)),
        endpoints: [(ListScope::Cluster, BTreeSet::from([at(endpoint)]))].into(),
        ..Frontend::default()
    };
    let key = |at, port| FrontendKey { at, protocol: Protocol::Tcp, port };
    let address = |text: &str| FrontendAt::Address(text.parse().expect("a literal address"));
    let frontends = Frontends::from([
        (key(address("10.96.0.10"), 80), frontend("shop/web:http", "10.1.0.2:8080")),
        (key(FrontendAt::NodePort, 30080), frontend("shop/web:http", "10.1.0.2:8080")),
        (key(address("10.96.0.11"), 53), frontend("shop/dns", "10.1.0.3:5353")),
    ]);
    let node = Environment { local_addresses: ["192.0.2.1".parse().expect("literal")].into() };
    Names::new([frontends], node)
}

fn selected(selector: &str, entry: &Entry) -> bool {
    names().selects(&Selector::parse(selector).expect(selector), entry)
}

#[test]
fn what_somebody_may_write() {
    let service = |name, port: Option<&str>| {
        Some(Selector::Service(ObjectName::new("shop", name), port.map(str::to_owned)))
    };
    for (text, expected) in [
        ("shop/web", service("web", None)),
        ("shop/web:http", service("web", Some("http"))),
        ("shop/web:80", service("web", Some("80"))),
        ("10.1.0.2", Some(Selector::Address("10.1.0.2".parse().expect("literal")))),
        ("fd00::2", Some(Selector::Address("fd00::2".parse().expect("literal")))),
        ("10.1.0.2:80", Some(Selector::Socket(at("10.1.0.2:80")))),
        ("[fd00::2]:80", Some(Selector::Socket(at("[fd00::2]:80")))),
        ("web", None),
        ("shop/", None),
        ("shop/Web", None),
        ("shop/web:", None),
        ("a/b/c", None),
        ("", None),
    ] {
        assert_eq!(Selector::parse(text), expected, "{text:?}");
    }
}

#[test]
fn flows_of_a_service_by_every_frontend() {
    let by_cluster_ip = entry(CLIENT, "10.96.0.10:80", "10.1.0.2:8080");
    let by_node_port = entry(CLIENT, "192.0.2.1:30080", "10.1.0.2:8080");
    let elsewhere = entry(CLIENT, "192.0.2.99:30080", "10.1.0.2:8080");
    let dns = entry(CLIENT, "10.96.0.11:53", "10.1.0.3:5353");
    for (selector, expected) in [
        ("shop/web", [true, true, false, false]),
        ("shop/web:http", [true, true, false, false]),
        ("shop/web:80", [true, false, false, false]),
        ("shop/web:other", [false; 4]),
        ("shop/dns", [false, false, false, true]),
        ("other/web", [false; 4]),
    ] {
        let found =
            [&by_cluster_ip, &by_node_port, &elsewhere, &dns].map(|e| selected(selector, e));
        assert_eq!(found, expected, "{selector}");
    }
    assert!(names().knows(&ObjectName::new("shop", "web"), Some("http")));
    assert!(!names().knows(&ObjectName::new("shop", "web"), Some("https")));
    assert!(!names().knows(&ObjectName::new("shop", "we"), None));
}

#[test]
fn flows_of_an_endpoint_and_of_a_client() {
    let flow = entry(CLIENT, "10.96.0.10:80", "10.1.0.2:8080");
    for (selector, expected) in [
        ("10.1.0.9", true),
        ("10.1.0.2", true),
        ("10.96.0.10", true),
        ("10.1.0.3", false),
        ("10.1.0.2:8080", true),
        ("10.1.0.2:8081", false),
        ("10.96.0.10:80", true),
        (CLIENT, false),
    ] {
        assert_eq!(selected(selector, &flow), expected, "{selector}");
    }
    let between_pods = entry(CLIENT, "10.1.0.2:8080", "10.1.0.2:8080");
    assert!(!selected("10.1.0.9", &between_pods), "no Service has to do with it");
    assert!(!names().selects(&Selector::All, &between_pods));
    let untranslated = entry(CLIENT, "10.96.0.10:80", "10.96.0.10:80");
    assert!(names().selects(&Selector::All, &untranslated));
}

#[test]
fn the_kernel_is_asked_for_no_more_than_needed() {
    let questions = |text: &str| {
        let selector = Selector::parse(text).expect(text);
        names().questions(&selector, Family::V4)
    };
    let ip = |text: &str| text.parse::<IpAddr>().expect("literal");
    assert_eq!(questions("shop/dns"), [Within::To(ip("10.96.0.11"))]);
    assert_eq!(questions("shop/web:80"), [Within::To(ip("10.96.0.10"))]);
    assert_eq!(questions("shop/web"), [Within::All], "a NodePort is on every address");
    let (endpoint, to) = (Within::AnsweredBy(ip("10.1.0.2")), Within::To(ip("10.1.0.2")));
    assert_eq!(questions("10.1.0.2:80"), [endpoint, to]);
    assert_eq!(questions("10.1.0.2"), [Within::From(ip("10.1.0.2")), endpoint, to]);
    assert_eq!(names().questions(&Selector::All, Family::V6), [Within::All]);
    // What the kernel leaves out is nothing that is selected.
    let flow = entry(CLIENT, "10.96.0.10:80", "10.1.0.2:8080");
    for selector in ["shop/web", "10.1.0.9", "10.1.0.2", "10.1.0.2:8080", "10.96.0.10:80"] {
        let asked = questions(selector).iter().any(|question| question.contains(&flow));
        assert!(asked && selected(selector, &flow), "{selector}");
    }
}

#[test]
fn a_flow_is_told_with_what_is_known() {
    const SECOND: u64 = 1_000_000_000;
    let names = names();
    let plain = entry(CLIENT, "10.96.0.10:80", "10.1.0.2:8080");
    let flow = names.tell(&plain, 0);
    assert_eq!((flow.service.as_deref(), flow.in_list), (Some("shop/web:http"), Some(true)));
    assert_eq!((flow.age_seconds, flow.packets, flow.seen_as), (None, None, None));
    let (header, rows_of_one) = rows(&[flow]);
    let row = ["tcp", CLIENT, "10.96.0.10:80", "shop/web:http", "10.1.0.2:8080", "ESTABLISHED", ""];
    assert_eq!(rows_of_one, [row]);
    assert_eq!(header, Flow::COLUMNS);

    let mut known = entry(CLIENT, "10.96.0.10:80", "10.1.0.7:8080");
    known.reply.destination = at("192.0.2.1:999");
    known.started = Some(5 * SECOND);
    known.counts = Some(Counts { packets: [3, 2], bytes: [300, 200] });
    let flow = names.tell(&known, 70 * SECOND);
    assert_eq!(flow.seen_as, Some(at("192.0.2.1:999")));
    assert_eq!((flow.age_seconds, flow.in_list), (Some(65), Some(false)));
    let (header, rows) = rows(&[names.tell(&plain, 0), flow]);
    assert_eq!(header[6..], ["AGE", "PACKETS", "BYTES", "NOTE"]);
    assert_eq!(rows[0][6..], ["", "", "", ""]);
    assert_eq!(rows[1][6..], ["1m5s", "3/2", "300/200", "endpoint not in the list any more"]);
}

#[test]
fn odd_flows_are_noted() {
    let note = |frontend, endpoint| names().tell(&entry(CLIENT, frontend, endpoint), 0).note();
    assert_eq!(note("10.96.0.10:80", "10.1.0.2:8080"), "");
    assert_eq!(note("10.96.0.10:80", "10.1.0.7:8080"), "endpoint not in the list any more");
    assert_eq!(note("10.96.0.10:80", "10.96.0.10:80"), "sent to nobody");
    assert_eq!(note("10.96.0.99:80", "10.1.0.2:8080"), "frontend of no Service");
}

#[test]
fn states_of_protocols_without_any() {
    let state = |replied, assured| {
        let entry = entry(CLIENT, "10.96.0.11:53", "10.1.0.3:5353");
        names().tell(&Entry { tcp: None, replied, assured, ..entry }, 0).state
    };
    assert_eq!(
        [state(false, false), state(true, false), state(true, true)],
        ["UNREPLIED", "REPLIED", "ASSURED"]
    );
}

#[test]
fn ages_have_two_units() {
    let ages = [0, 59, 60, 3599, 3600, 86_399, 90_000].map(age);
    assert_eq!(ages, ["0s", "59s", "1m0s", "59m59s", "1h0m", "23h59m", "1d1h"]);
}

#[test]
fn changes_are_told_once_and_keep_what_they_leave_out() {
    let mut live = Live::default();
    let opening = |tcp| Entry { tcp, ..entry(CLIENT, "10.96.0.10:80", "10.1.0.2:8080") };
    let new = Entry { started: Some(7), ..opening(Some("SYN_SENT")) };
    assert_eq!(live.hear(Change::New, new.clone()), Some((Change::New, new.clone())));
    let established = opening(Some("ESTABLISHED"));
    let told = live.hear(Change::Updated, established).expect("another state");
    assert_eq!(
        (told.0, told.1.tcp, told.1.started),
        (Change::Updated, Some("ESTABLISHED"), Some(7))
    );
    assert_eq!(live.hear(Change::Updated, opening(None)), None, "the state is not in the message");
    let (change, ended) = live.hear(Change::Ended, opening(None)).expect("it was there");
    assert_eq!((change, ended.tcp), (Change::Ended, Some("ESTABLISHED")));
    assert_eq!(live.hear(Change::Ended, opening(None)), None, "nobody knew it");
}

#[test]
fn a_list_puts_right_what_was_lost() {
    let mut live = Live::default();
    let flow = |port: u16| entry(&format!("10.1.0.9:{port}"), "10.96.0.10:80", "10.1.0.2:8080");
    live.relist(vec![flow(1), flow(2)]);
    let closing = Entry { tcp: Some("TIME_WAIT"), ..flow(2) };
    let counted = Entry { counts: Some(Counts::default()), ..closing.clone() };
    let told = live.relist(vec![closing.clone(), flow(3)]);
    let expected = [(Change::Updated, closing), (Change::New, flow(3)), (Change::Ended, flow(1))];
    assert_eq!(told, expected);
    assert_eq!(live.relist(vec![counted, flow(3)]), [], "counts alone are no change");
}
