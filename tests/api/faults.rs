//! Everything a server can do wrong, and its absence.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kubeweir::model::Kind;
use kubeweir::testing::ApiServer;
use kubeweir::testing::api_server::{Answer, Ask, Signal};
use socket2::{Domain, Socket, Type};

use super::setup::*;

/// A watch of this age ends for no fault of the server's.
const OLD: Duration = Duration::from_millis(1100);

#[test]
fn an_expired_continue_token_restarts_the_list() {
    let setup = Setup::new();
    setup.server.refuse_streaming_lists();
    setup.server.page_size(1);
    setup.server.put(&service("a"));
    setup.server.put(&service("b"));
    setup.server.fail(fault(Kind::Service, Ask::ListPage, 1, refuse(410, "Expired", None)));
    let setup = setup.watching(&[Kind::Service]);
    setup.wait_for(Kind::Service, &["shop/a", "shop/b"]);
    assert_eq!(setup.replaced(Kind::Service), 1, "half a list is never delivered");
}

#[test]
fn a_stream_cut_within_an_event_is_resumed_without_a_list() {
    let setup = Setup::new();
    setup.server.put(&service("a"));
    let setup = setup.watching(&[Kind::Service]);
    setup.server.put(&service("b"));
    setup.server.signal(Kind::Service, Signal::Cut);
    setup.wait("the next watch", || setup.server.count(Kind::Service, Ask::Watch) == 1);
    setup.server.put(&service("c"));
    setup.wait_for(Kind::Service, &["shop/a", "shop/b", "shop/c"]);
    assert_eq!(setup.lists(Kind::Service), 1);
    assert_eq!(setup.watched_from(Kind::Service), ["2"]);
}

// A balancer cuts silent streams: pauses of 0.9, 1.7, 6.2 ... seconds followed, as if the server failed.
#[test]
fn a_watch_that_lasted_is_opened_again_at_once_after_every_cut() {
    for signal in [Signal::Cut, Signal::End] {
        quick(Duration::from_millis(700), &format!("{signal:?}"), || {
            let setup = Setup::new();
            setup.server.put(&service("a"));
            let setup = setup.watching(&[Kind::Service]);
            let pauses = (1..=3).map(|round| {
                let opened = Instant::now();
                setup.wait("a watch of more than a second", || opened.elapsed() > OLD);
                let cut = Instant::now();
                setup.server.signal(Kind::Service, signal.clone());
                setup.wait("the next watch", || {
                    setup.server.count(Kind::Service, Ask::Watch) == round
                        && setup.server.open_streams(Kind::Service) == 1
                });
                cut.elapsed()
            });
            let longest = pauses.max().unwrap();
            assert_eq!(setup.lists(Kind::Service), 1);
            longest
        });
    }
}

#[test]
fn loss_of_the_server_loses_nothing_and_its_return_needs_no_list() {
    let setup = Setup::new();
    fill(&setup.server);
    let mut setup = setup.watching(&Kind::ALL);
    wait_for_everything(&setup);
    setup.server.stop();
    setup.server.put(&service("new"));
    setup.server.delete(Kind::EndpointSlice, "shop", "cart-1");
    let before = setup.failures();
    setup.wait("two more attempts per kind", || setup.failures() >= before + 8);
    assert_eq!(setup.names(Kind::EndpointSlice), ["shop/cart-1"], "kept while away");
    setup.server.resume().unwrap();
    setup.wait_for(Kind::Service, &["shop/cart", "shop/new"]);
    setup.wait_for(Kind::EndpointSlice, &[]);
    for kind in Kind::ALL {
        setup.wait("every watch", || setup.server.open_streams(kind) == 1);
        assert_eq!(setup.lists(kind), 1, "{kind} was listed again");
        assert_eq!(setup.watched_from(kind), ["8"], "{kind}: one watch, from where it was");
    }
}

#[test]
fn a_start_without_a_server_waits_for_it() {
    let mut setup = Setup::new();
    let options = setup.options();
    setup.server.stop();
    let client = setup.client(options);
    setup.watch(&client, Kind::Service);
    setup.wait("a failed attempt", || !setup.exchanges.lock().unwrap().is_empty());
    assert_eq!(setup.exchanges.lock().unwrap()[0].code, None);
    setup.server.put(&service("a"));
    setup.server.resume().unwrap();
    setup.wait_for(Kind::Service, &["shop/a"]);
    assert_eq!(setup.server.requests().len(), 1);
}

// After a long outage the next try was up to a minute away.
#[test]
fn a_server_that_was_away_for_long_is_served_as_soon_as_it_is_there() {
    quick(Duration::from_secs(2), "after its return", || {
        let mut setup = Setup::new();
        fill(&setup.server);
        let options = setup.options();
        setup.server.stop();
        let client = setup.client(options);
        for kind in Kind::ALL {
            setup.watch(&client, kind);
        }
        setup.wait("many attempts", || setup.failures() >= 6 * Kind::ALL.len());
        setup.server.resume().unwrap();
        let back = Instant::now();
        wait_for_everything(&setup);
        let took = back.elapsed();
        assert_eq!(setup.server.connections(), 1, "whoever finds it first finds it for all");
        took
    });
}

#[test]
fn a_compacted_history_leads_to_one_fresh_list() {
    for streaming in [true, false] {
        let setup = Setup::new();
        if !streaming {
            setup.server.refuse_streaming_lists();
        }
        setup.server.put(&service("old"));
        let mut setup = setup.watching(&[Kind::Service]);
        let before = setup.lists(Kind::Service);
        setup.server.stop();
        setup.server.delete(Kind::Service, "shop", "old");
        setup.server.put(&service("new"));
        setup.server.compact();
        setup.server.resume().unwrap();
        setup.wait_for(Kind::Service, &["shop/new"]);
        assert_eq!(setup.replaced(Kind::Service), 2);
        assert_eq!(setup.lists(Kind::Service), before + 1, "one list, by the way that works");
    }
}

#[test]
fn an_error_event_ends_the_watch() {
    let setup = Setup::new();
    setup.server.put(&service("a"));
    let setup = setup.watching(&[Kind::Service]);
    let status = |code, reason: &str| kubeweir::wire::Status {
        code: Some(code),
        reason: Some(reason.to_owned()),
        ..Default::default()
    };
    setup.server.signal(Kind::Service, Signal::Error(status(500, "InternalError")));
    setup.wait("a watch", || setup.server.open_streams(Kind::Service) == 1);
    setup.wait("resumed", || setup.server.count(Kind::Service, Ask::Watch) == 1);
    assert_eq!(setup.lists(Kind::Service), 1);
    setup.wait("a watch", || setup.server.open_streams(Kind::Service) == 1);
    setup.server.signal(Kind::Service, Signal::Error(status(410, "Gone")));
    setup.wait("a fresh list", || setup.replaced(Kind::Service) == 2);
    assert_eq!(setup.server.count(Kind::Service, Ask::StreamingList), 2);
}

#[test]
fn retry_after_is_honoured() {
    let setup = Setup::new();
    let answer = refuse(429, "TooManyRequests", Some(2));
    setup.server.fail(fault(Kind::Service, Ask::StreamingList, 1, answer));
    let setup = setup.watching(&[Kind::Service]);
    let requests = setup.server.requests();
    assert_eq!(requests[0].answered, Some(429));
    let pause = requests[1].at - requests[0].at;
    assert!(pause >= Duration::from_secs(2) && pause < Duration::from_secs(6), "{pause:?}");
    assert_eq!(requests[1].ask, Ask::StreamingList, "throttling is no refusal of streaming lists");
}

// etcd 3.4 answers 500, a gateway 501 or 503, an older server 400 or 422; a proxy may hang up, or end
// or break the stream before the bookmark. Whatever it is, and for however long.
#[test]
fn any_failure_of_a_streaming_list_leads_to_a_paged_list_at_once() {
    let stream = |body: &'static [u8]| Answer::Replay {
        content_type: "application/json",
        body: bytes::Bytes::from_static(body),
    };
    let error = br#"{"type":"ERROR","object":{"kind":"Status","code":500,"reason":"InternalError"}}
"#;
    let answers = [
        refuse(400, "BadRequest", None),
        refuse(401, "Unauthorized", None),
        refuse(403, "Forbidden", None),
        refuse(404, "NotFound", None),
        refuse(410, "Expired", None),
        refuse(422, "Invalid", None),
        refuse(500, "InternalError", None),
        refuse(501, "", None),
        refuse(503, "ServiceUnavailable", None),
        refuse(504, "Timeout", None),
        Answer::Drop,
        stream(b""),
        stream(b"{\"type\":\"ADD"),
        stream(b"<html>not what was asked for</html>\n"),
        stream(error),
    ];
    for answer in answers {
        let what = format!("{answer:?}");
        quick(Duration::from_secs(2), &what, || {
            let setup = Setup::new();
            setup.server.put(&service("a"));
            let answer = answer.clone();
            setup.server.fail(fault(Kind::Service, Ask::StreamingList, usize::MAX, answer));
            let begun = Instant::now();
            let setup = setup.watching(&[Kind::Service]);
            let took = begun.elapsed();
            setup.wait_for(Kind::Service, &["shop/a"]);
            let asked: Vec<Ask> = setup.server.requests().iter().map(|r| r.ask).collect();
            assert_eq!(asked, [Ask::StreamingList, Ask::List, Ask::Watch], "{what}");
            took
        });
    }
}

#[test]
fn failing_requests_are_spaced_out() {
    quick(Duration::from_millis(700), "the first time", || {
        let setup = Setup::new();
        setup.server.refuse_streaming_lists();
        // The first drop may be an accident.
        let unavailable = || refuse(503, "ServiceUnavailable", None);
        for answer in [Answer::Drop, unavailable(), unavailable()] {
            setup.server.fail(fault(Kind::Service, Ask::List, 1, answer));
        }
        let setup = setup.watching(&[Kind::Service]);
        let requests = setup.server.requests();
        let lists = requests.iter().filter(|request| request.ask == Ask::List);
        let at: Vec<_> = lists.map(|request| request.at).collect();
        let pauses: Vec<Duration> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(pauses.len(), 3, "{pauses:?}");
        assert!(pauses[1] >= Duration::from_millis(800), "{pauses:?}");
        assert!(pauses[2] >= Duration::from_millis(1600), "{pauses:?}");
        pauses[0]
    });
}

#[test]
fn an_unreadable_event_costs_nothing_but_itself() {
    for json_only in [false, true] {
        let setup = Setup::new();
        if json_only {
            setup.server.json_only();
        }
        setup.server.put(&service("a"));
        let setup = setup.watching(&[Kind::Service]);
        setup.server.signal(Kind::Service, Signal::Garbage);
        setup.server.put(&service("b"));
        setup.wait_for(Kind::Service, &["shop/a", "shop/b"]);
        assert_eq!(setup.server.requests().len(), 1, "on the same stream");
    }
}

// Another test's server, or a client, could be given the port of a server that was away.
#[test]
fn a_server_that_is_away_keeps_its_port() {
    let mut server = ApiServer::start(Ipv4Addr::LOCALHOST.into()).unwrap();
    let address = server.address();
    server.stop();
    let taken = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    assert_eq!(taken.bind(&address.into()).unwrap_err().kind(), ErrorKind::AddrInUse);
    let connected = TcpStream::connect(address).unwrap_err();
    assert_eq!(connected.kind(), ErrorKind::ConnectionRefused);
    server.resume().unwrap();
    assert_eq!(server.address(), address);
    TcpStream::connect(address).unwrap();
}

// A child that another test has just forked has the listener, too, until it runs its program: the port was
// in use when the server came back.
#[test]
fn a_server_that_is_stopped_is_listened_to_by_nobody() {
    let mut server = ApiServer::start(Ipv4Addr::LOCALHOST.into()).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    Command::new("true").status().unwrap();
                }
            });
        }
        let rounds = std::panic::AssertUnwindSafe(|| {
            for _ in 0..200 {
                server.stop();
                let connected = TcpStream::connect(server.address()).unwrap_err();
                assert_eq!(connected.kind(), ErrorKind::ConnectionRefused);
                server.resume().unwrap();
            }
        });
        let outcome = std::panic::catch_unwind(rounds);
        done.store(true, Ordering::Relaxed);
        outcome.unwrap();
    });
}
