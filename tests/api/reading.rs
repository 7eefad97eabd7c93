//! Lists and watches as they should be.

use std::collections::BTreeSet;

use kubeweir::api::Watch;
use kubeweir::model::Kind;
use kubeweir::testing::ApiServer;
use kubeweir::testing::api_server::{Answer, Ask, Signal};

use super::setup::*;

// B-052, B-069, B-070, B-071: each kind with its selectors, as a streaming list in protobuf.
#[test]
fn cold_start_reads_every_kind_by_streaming_lists() {
    let setup = Setup::new();
    fill(&setup.server);
    let setup = setup.watching(&Kind::ALL);
    wait_for_everything(&setup);
    let requests = setup.server.requests();
    assert_eq!(requests.len(), 4, "one request per kind: {requests:#?}");
    let selectors: BTreeSet<_> = requests
        .iter()
        .map(|request| {
            let parameter = |name: &str| request.query.get(name).cloned().unwrap_or_default();
            (request.kind.unwrap(), parameter("labelSelector"), parameter("fieldSelector"))
        })
        .collect();
    let want = [
        (Kind::Node, "", "metadata.name=node-a"),
        (Kind::Service, "!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None"),
        (Kind::EndpointSlice, "!service.kubernetes.io/headless", ""),
        (Kind::ServiceCidr, "", ""),
    ]
    .map(|(kind, labels, fields)| (kind, labels.to_owned(), fields.to_owned()));
    assert_eq!(selectors, BTreeSet::from(want));
    let agent = kubeweir::api::user_agent("v0.1.0", "abcdef0");
    for request in requests {
        assert_eq!(request.ask, Ask::StreamingList);
        assert_eq!(request.query["resourceVersionMatch"], "NotOlderThan");
        assert_eq!(request.query["allowWatchBookmarks"], "true");
        assert_eq!(request.headers["accept"], "application/vnd.kubernetes.protobuf, */*");
        assert_eq!(request.headers["user-agent"], agent.as_str());
        // Who did not offer to unpack is sent nothing packed.
        assert!(!request.headers.contains_key("accept-encoding"));
    }
}

#[test]
fn a_server_with_an_ipv6_address_is_read() {
    let server = ApiServer::start(std::net::Ipv6Addr::LOCALHOST.into()).unwrap();
    let setup = Setup { server, ..Setup::new() };
    fill(&setup.server);
    assert!(setup.server.url().starts_with("https://[::1]:"));
    let setup = setup.watching(&Kind::ALL);
    wait_for_everything(&setup);
}

#[test]
fn json_is_read_when_the_server_answers_so() {
    let setup = Setup::new();
    setup.server.json_only();
    fill(&setup.server);
    let setup = setup.watching(&Kind::ALL);
    wait_for_everything(&setup);
    setup.server.put(&service("later"));
    setup.wait_for(Kind::Service, &["shop/cart", "shop/later"]);
}

// B-074: the label makes the Service go, its loss brings it back.
#[test]
fn an_object_that_leaves_the_selector_is_deleted() {
    let setup = Setup::new();
    setup.server.put(&service("cart"));
    let setup = setup.watching(&[Kind::Service]);
    let other_proxy = labelled(service("cart"), "service.kubernetes.io/service-proxy-name");
    setup.server.put(&other_proxy);
    setup.wait_for(Kind::Service, &[]);
    setup.server.put(&service("cart"));
    setup.wait_for(Kind::Service, &["shop/cart"]);
    setup.server.delete(Kind::Service, "shop", "cart");
    setup.wait_for(Kind::Service, &[]);
    assert_eq!(setup.server.requests().len(), 1, "all on one stream");
}

// B-073: without streaming lists the list comes page by page, then a watch with bookmarks.
#[test]
fn a_server_without_streaming_lists_is_read_in_pages() {
    for json_only in [false, true] {
        let setup = Setup::new();
        if json_only {
            setup.server.json_only();
        }
        setup.server.refuse_streaming_lists();
        setup.server.page_size(2);
        for name in ["a", "b", "c", "d", "e"] {
            setup.server.put(&service(name));
        }
        let setup = setup.watching(&[Kind::Service]);
        setup.wait_for(Kind::Service, &["shop/a", "shop/b", "shop/c", "shop/d", "shop/e"]);
        let asked: Vec<Ask> = setup.server.requests().iter().map(|r| r.ask).collect();
        let want =
            [Ask::StreamingList, Ask::List, Ask::ListPage, Ask::ListPage, Ask::Watch].to_vec();
        assert_eq!(asked, want);
        let requests = setup.server.requests();
        assert_eq!(requests[1].query["limit"], "500");
        assert_eq!(requests[1].query["resourceVersion"], "0");
        assert!(!requests[2].query.contains_key("resourceVersion"));
        assert_eq!(requests[4].query["resourceVersion"], "5");
        assert_eq!(requests[4].query["allowWatchBookmarks"], "true");
        let timeout: u64 = requests[4].query["timeoutSeconds"].parse().unwrap();
        assert!((300..600).contains(&timeout), "{timeout}");
        setup.server.put(&service("f"));
        setup.wait("the watch", || setup.names(Kind::Service).len() == 6);
    }
}

// Feature gate WatchListClient.
#[test]
fn without_streaming_lists_none_is_asked_for() {
    let setup = Setup::new();
    setup.server.put(&service("a"));
    let client = setup.client(setup.options());
    let watch = Watch::new(client, Kind::Service, "node-a", true, setup.sink.clone());
    setup.runtime.spawn(watch.streaming(false).run());
    setup.wait("a watch", || setup.server.open_streams(Kind::Service) == 1);
    let asked: Vec<Ask> = setup.server.requests().iter().map(|r| r.ask).collect();
    assert_eq!(asked, [Ask::List, Ask::Watch]);
}

// B-190: a kind is delivered when its list is complete and not before, whichever comes first.
#[test]
fn kinds_are_complete_in_any_order_and_never_in_parts() {
    for streaming in [true, false] {
        let setup = Setup::new();
        if !streaming {
            setup.server.refuse_streaming_lists();
        }
        fill(&setup.server);
        setup.server.hold(Kind::Service);
        let client = setup.client(setup.options());
        for kind in Kind::ALL {
            setup.watch(&client, kind);
        }
        for kind in [Kind::Node, Kind::ServiceCidr, Kind::EndpointSlice] {
            setup.wait("the other kinds", || setup.replaced(kind) == 1);
        }
        setup.wait("the request", || setup.lists(Kind::Service) >= 1);
        assert!(setup.names(Kind::Service).is_empty(), "delivered before the list's end");
        setup.server.release(Kind::Service);
        wait_for_everything(&setup);
        assert_eq!(setup.replaced(Kind::Service), 1);
    }
}

#[test]
fn a_watch_that_ends_goes_on_from_the_last_bookmark() {
    let setup = Setup::new();
    let setup = setup.watching(&[Kind::Service]);
    setup.server.age(40);
    setup.server.signal(Kind::Service, Signal::Bookmark);
    setup.server.signal(Kind::Service, Signal::End);
    setup.wait("the next watch", || setup.watched_from(Kind::Service) == ["40"]);
    assert_eq!(setup.lists(Kind::Service), 1);
}

#[test]
fn streams_in_single_bytes_are_put_together() {
    for json_only in [false, true] {
        let setup = Setup::new();
        if json_only {
            setup.server.json_only();
        }
        setup.server.chunk(1);
        setup.server.put(&service("a"));
        let setup = setup.watching(&[Kind::Service]);
        setup.server.put(&service("b"));
        setup.wait_for(Kind::Service, &["shop/a", "shop/b"]);
    }
}

#[test]
fn a_slow_consumer_slows_the_stream_down() {
    let setup = Setup::new();
    setup.server.json_only();
    let setup = setup.watching(&[Kind::Service]);
    let blocked = setup.sink.block();
    let mut large = service("large");
    large["metadata"]["annotations"]["padding"] = "x".repeat(1 << 20).into();
    for _ in 0..32 {
        setup.server.put(&large);
    }
    // The stream stalls when the socket buffers are full, long before everything is sent.
    let seen = std::cell::Cell::new((0, std::time::Instant::now()));
    setup.wait("a stall", || {
        let streamed = setup.server.streamed();
        if seen.get().0 != streamed {
            seen.set((streamed, std::time::Instant::now()));
        }
        streamed > 0 && seen.get().1.elapsed() > std::time::Duration::from_millis(300)
    });
    assert!(setup.server.streamed() < 24 << 20, "{} bytes", setup.server.streamed());
    drop(blocked);
    setup.server.put(&service("last"));
    // A debug build reads some megabytes a second, when nobody else wants the processor.
    setup.server.wait("the last one", 6 * SOON, |_| {
        setup.names(Kind::Service) == ["shop/large", "shop/last"]
    });
}

/// What Watches make of captured answers, by the way they came.
fn replayed(ask: Ask, prefix: &str, suffix: &str, content_type: &'static str) -> Setup {
    let setup = Setup::new();
    if ask == Ask::List {
        setup.server.refuse_streaming_lists();
    }
    let client = setup.client(setup.options());
    for kind in Kind::ALL {
        let path =
            format!("tests/data/wire/{prefix}-{}s.{suffix}", kind.to_string().to_lowercase());
        let body = std::fs::read(path).unwrap().into();
        setup.server.fail(fault(kind, ask, 1, Answer::Replay { content_type, body }));
        setup.watch(&client, kind);
        setup.wait("the watch after it", || setup.server.open_streams(kind) == 1);
    }
    setup
}

#[test]
fn answers_of_a_real_server_mean_the_same_in_both_encodings() {
    let stream = "application/vnd.kubernetes.protobuf;stream=watch";
    for (ask, prefix, protobuf, versions) in [
        (Ask::StreamingList, "watchlist", stream, ["414", "415", "412", "411"]),
        (Ask::List, "list", PROTOBUF, ["400"; 4]),
    ] {
        let from_json = replayed(ask, prefix, "json", "application/json");
        let from_protobuf = replayed(ask, prefix, "pb", protobuf);
        let views = [&from_json, &from_protobuf].map(|setup| {
            for (kind, version) in Kind::ALL.into_iter().zip(versions) {
                assert_eq!(setup.watched_from(kind), [version], "{prefix} {kind}");
            }
            setup.sink.block().objects.clone()
        });
        assert_eq!(views[0], views[1], "{prefix}");
        let services = from_json.names(Kind::Service);
        assert_eq!(services.len(), if ask == Ask::List { 15 } else { 14 }, "{services:?}");
        let deleted = "shop/email".to_owned();
        assert_eq!(services.contains(&deleted), ask == Ask::List, "{services:?}");
    }
}
