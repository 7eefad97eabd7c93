//! Bodies and streams of a real API server, in both encodings, and hostile versions of them.

use std::fmt::Debug;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use kubeweir::model::{Family, Kind, Object, ServiceType};
use kubeweir::wire::{Decoder, Encoding, Event, Frames, List, MAX_FRAME, Status, WireError};
use proptest::prelude::*;

const ENCODINGS: [(Encoding, &str); 2] = [(Encoding::Json, "json"), (Encoding::Protobuf, "pb")];

const KINDS: [(Kind, &str); 4] = [
    (Kind::Node, "nodes"),
    (Kind::ServiceCidr, "servicecidrs"),
    (Kind::Service, "services"),
    (Kind::EndpointSlice, "endpointslices"),
];

fn data(name: &str) -> Bytes {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/wire").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()
}

fn list(kind: Kind, plural: &str, (encoding, ending): (Encoding, &str)) -> List {
    let body = data(&format!("list-{plural}.{ending}"));
    Decoder::new(true).list(kind, encoding, &body).expect("a list")
}

/// All events of a stream that arrives in chunks of a size.
fn events(kind: Kind, encoding: Encoding, body: &[u8], chunk: usize) -> Vec<Event> {
    let mut decoder = Decoder::new(true);
    let mut frames = Frames::new(encoding, MAX_FRAME);
    let mut events = Vec::new();
    for chunk in body.chunks(chunk) {
        frames.push(chunk);
        while let Some(frame) = frames.next_frame().expect("frames within the limit") {
            events.push(decoder.event(kind, encoding, &frame).expect("an event"));
        }
    }
    assert!(frames.is_empty(), "bytes left over");
    events
}

fn watchlist(kind: Kind, plural: &str, (encoding, ending): (Encoding, &str)) -> Vec<Event> {
    events(kind, encoding, &data(&format!("watchlist-{plural}.{ending}")), usize::MAX)
}

#[test]
fn lists_are_the_same_in_both_encodings() {
    for ((kind, plural), count) in KINDS.into_iter().zip([1, 1, 15, 15]) {
        let json = list(kind, plural, ENCODINGS[0]);
        let protobuf = list(kind, plural, ENCODINGS[1]);
        assert_eq!(json, protobuf, "{kind}");
        assert_eq!(json.resource_version, "400", "{kind}");
        assert_eq!(json.continue_token, None, "{kind}");
        assert_eq!(json.objects.len(), count, "{kind}");
        assert_eq!(json.skips, [], "{kind}");
        assert!(json.objects.iter().all(|object| object.kind() == kind), "{kind}");
    }
}

#[test]
fn streaming_lists_are_the_same_in_both_encodings() {
    for (kind, plural) in KINDS {
        let json = watchlist(kind, plural, ENCODINGS[0]);
        let protobuf = watchlist(kind, plural, ENCODINGS[1]);
        assert_eq!(json, protobuf, "{kind}");
    }
}

#[test]
fn the_initial_events_are_the_list() {
    for (kind, plural) in KINDS {
        let mut initial = Vec::new();
        let events = watchlist(kind, plural, ENCODINGS[1]);
        let end = events.iter().position(|event| match event {
            Event::Applied(decoded) => {
                initial.extend(decoded.object.clone());
                false
            }
            Event::Bookmark { initial_events_end, resource_version } => {
                assert_eq!((*initial_events_end, resource_version.as_str()), (true, "400"));
                true
            }
            other => panic!("{kind}: {other:?} among the initial events"),
        });
        assert!(end.is_some(), "{kind}: no end of the initial events");
        let mut listed = list(kind, plural, ENCODINGS[1]).objects;
        for objects in [&mut initial, &mut listed] {
            objects.sort_by(|a, b| a.name().cmp(b.name()));
        }
        assert_eq!(initial, listed, "{kind}");
    }
}

/// What happened after the initial events, in words.
fn later(kind: Kind, plural: &str) -> Vec<String> {
    let events = watchlist(kind, plural, ENCODINGS[1]);
    let is_end = |event: &Event| matches!(event, Event::Bookmark { initial_events_end: true, .. });
    let later = events.into_iter().skip_while(|event| !is_end(event)).skip(1);
    let word = |event| match event {
        Event::Applied(decoded) => Some(format!("applied {}", decoded.name)),
        Event::Deleted { name, resource_version } => {
            assert!(!resource_version.is_empty());
            Some(format!("deleted {name}"))
        }
        Event::Bookmark { resource_version, .. } => {
            assert!(!resource_version.is_empty());
            None
        }
        Event::Error(status) => Some(format!("error {status}")),
    };
    later.filter_map(word).collect()
}

// B-074: gaining the label of another proxy arrives as a deletion.
#[test]
fn changes_after_the_initial_events() {
    let services = later(Kind::Service, "services");
    assert_eq!(services, ["applied shop/svc-1", "deleted shop/email", "deleted shop/svc-1"]);
    assert_eq!(later(Kind::Node, "nodes"), ["applied node-a"]);
    assert_eq!(later(Kind::ServiceCidr, "servicecidrs"), ["applied extra"]);
}

// B-060: the changed label of the recorded node.
#[test]
fn the_node_changes_its_zone() {
    let zones: Vec<_> = watchlist(Kind::Node, "nodes", ENCODINGS[1])
        .into_iter()
        .filter_map(|event| match event {
            Event::Applied(decoded) => decoded.object,
            _ => None,
        })
        .map(|object| match object {
            Object::Node(node) => node.zone.as_deref().map(str::to_owned),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(zones.len(), 2);
    assert_eq!(zones[0].as_deref(), Some("eu-1a"));
    assert_ne!(zones[0], zones[1]);
}

#[test]
fn streams_decode_byte_by_byte() {
    for (encoding, ending) in ENCODINGS {
        let body = data(&format!("watchlist-services.{ending}"));
        let whole = events(Kind::Service, encoding, &body, usize::MAX);
        for chunk in [1, 2, 3, 5, 4096] {
            assert_eq!(
                events(Kind::Service, encoding, &body, chunk),
                whole,
                "{encoding:?} {chunk}"
            );
        }
    }
}

#[test]
fn an_expired_version_is_an_error_event() {
    for (encoding, ending) in ENCODINGS {
        let body = data(&format!("watch-expired.{ending}"));
        let events = events(Kind::Service, encoding, &body, usize::MAX);
        let [Event::Error(status)] = &events[..] else { panic!("{events:?}") };
        assert_eq!((status.code, status.reason.as_deref()), (Some(410), Some("Expired")));
    }
}

#[test]
fn a_refused_list_is_a_status() {
    for (encoding, ending) in ENCODINGS {
        let body = data(&format!("list-error.{ending}"));
        let status = Status::from_body(encoding, &body).expect("a Status");
        assert_eq!((status.code, status.reason.as_deref()), (Some(504), Some("Timeout")));
        let retry_after = status.details.and_then(|details| details.retry_after_seconds);
        assert_eq!(retry_after, Some(1));
        let refused = Decoder::new(true).list(Kind::Service, encoding, &body);
        assert!(matches!(refused, Err(WireError::Refused { source, .. }) if source == status));
        let services = data(&format!("list-services.{ending}"));
        let other = Decoder::new(true).list(Kind::Node, encoding, &services);
        assert!(
            matches!(other, Err(WireError::UnexpectedKind { found, .. }) if found == "ServiceList")
        );
    }
}

/// A few facts about the recorded shop, read with own eyes: equality of encodings alone could be
/// equality of nothing.
#[test]
fn the_recorded_frontend() {
    for encoding in ENCODINGS {
        let services = list(Kind::Service, "services", encoding).objects;
        let frontend = services.iter().find_map(|object| match object {
            Object::Service(service) if &*service.name.name == "frontend" => Some(service),
            _ => None,
        });
        let frontend = frontend.expect("the Service frontend");
        let display =
            |items: &[std::net::IpAddr]| items.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(frontend.kind, ServiceType::LoadBalancer);
        assert_eq!(frontend.created, 1_795_229_386);
        assert_eq!(display(&frontend.cluster_ips), ["10.96.179.207", "fd00:10:96::64b"]);
        assert_eq!(display(&frontend.load_balancer_ips), ["203.0.113.80", "2001:db8:80::80"]);
        assert_eq!(frontend.health_check_node_port, Some(30447));
        assert_eq!(frontend.source_ranges(Family::V4).len(), 2);
        assert_eq!(frontend.source_ranges(Family::V6).len(), 1);
        let ports: Vec<_> = frontend.ports.iter().map(|port| (port.port, port.node_port)).collect();
        assert_eq!(ports, [(80, Some(31268)), (443, Some(31581))]);
    }
}

#[test]
fn one_bad_item_does_not_spoil_a_list() {
    let body = Bytes::from_static(
        br#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"7","continue":"next","remainingItemCount":3},
        "items":[{"metadata":{"name":"bad","namespace":"a"},"spec":{"ports":{}}},
                 {"metadata":{"name":"good","namespace":"a"},"spec":{"clusterIP":"10.0.0.1"}}]}"#,
    );
    let list = Decoder::new(true).list(Kind::Service, Encoding::Json, &body).expect("a list");
    assert_eq!(
        (list.continue_token.as_deref(), list.remaining_item_count),
        (Some("next"), Some(3))
    );
    assert_eq!(list.objects.len(), 1);
    assert_eq!(list.skips.len(), 1);
    assert_eq!(list.skips[0].object.to_string(), "a/bad");
    assert_eq!(list.skips[0].field, "spec.ports");
}

#[test]
fn an_unreadable_object_of_an_event_keeps_its_name() {
    let frame = Bytes::from_static(
        br#"{"type":"MODIFIED","object":{"kind":"Service","metadata":{"name":"bad","namespace":"a","resourceVersion":"9"},"spec":5}}"#,
    );
    let event = Decoder::new(true).event(Kind::Service, Encoding::Json, &frame).expect("an event");
    let Event::Applied(decoded) = event else { panic!("{event:?}") };
    assert_eq!((decoded.name.to_string(), decoded.resource_version), ("a/bad".into(), "9".into()));
    assert_eq!((decoded.object, decoded.skips.len()), (None, 1));
}

#[test]
fn frames_are_bounded() {
    let mut json = Frames::new(Encoding::Json, 10);
    json.push(b"\n\n{\"a\":1}\r\n0123456789\n");
    assert_eq!(json.next_frame().expect("short").as_deref(), Some(&b"{\"a\":1}\r"[..]));
    assert_eq!(json.next_frame().expect("just fits").as_deref(), Some(&b"0123456789"[..]));
    json.push(b"01234567890");
    assert!(matches!(json.next_frame(), Err(WireError::FrameTooLong { length: 11, limit: 10 })));

    let mut protobuf = Frames::new(Encoding::Protobuf, 10);
    protobuf.push(&[0, 0, 0, 0, 0, 0, 0, 11]);
    assert_eq!(protobuf.next_frame().expect("empty").as_deref(), Some(&b""[..]));
    assert!(matches!(
        protobuf.next_frame(),
        Err(WireError::FrameTooLong { length: 11, limit: 10 })
    ));
}

/// Whatever comes in, an answer comes out; what it is does not matter here.
fn decode_anything(kind: Kind, encoding: Encoding, body: &Bytes) -> impl Debug + use<> {
    let mut decoder = Decoder::new(true);
    let mut frames = Frames::new(encoding, MAX_FRAME);
    frames.push(body);
    let mut events = Vec::new();
    while let Ok(Some(frame)) = frames.next_frame() {
        events.push(decoder.event(kind, encoding, &frame).is_ok());
    }
    let list = decoder.list(kind, encoding, body).is_ok();
    let event = decoder.event(kind, encoding, body).is_ok();
    (events, list, event, Status::from_body(encoding, body).is_ok())
}

fn recorded() -> impl Strategy<Value = (Kind, Encoding, Bytes)> {
    let files = prop::sample::select(vec!["list", "watchlist"]);
    let kinds = prop::sample::select(KINDS.to_vec());
    let encodings = prop::sample::select(ENCODINGS.to_vec());
    (files, kinds, encodings).prop_map(|(file, (kind, plural), (encoding, ending))| {
        (kind, encoding, data(&format!("{file}-{plural}.{ending}")))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..2000),
        magic in any::<bool>(),
        (kind, _) in prop::sample::select(KINDS.to_vec()),
        (encoding, _) in prop::sample::select(ENCODINGS.to_vec()),
    ) {
        let head: &[u8] = if magic { b"k8s\0" } else { b"" };
        decode_anything(kind, encoding, &Bytes::from([head, &bytes].concat()));
    }

    #[test]
    fn truncations_and_flips_never_panic(
        (kind, encoding, body) in recorded(),
        cut in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let mut bytes = body[..cut.index(body.len())].to_vec();
        for (at, byte) in flips {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        decode_anything(kind, encoding, &Bytes::from(bytes));
    }

    #[test]
    fn cut_anywhere_a_stream_gives_the_same_events(
        (kind, plural) in prop::sample::select(KINDS.to_vec()),
        (encoding, ending) in prop::sample::select(ENCODINGS.to_vec()),
        chunk in 1usize..5000,
    ) {
        let body = data(&format!("watchlist-{plural}.{ending}"));
        let whole = events(kind, encoding, &body, usize::MAX);
        prop_assert_eq!(events(kind, encoding, &body, chunk), whole);
    }
}
