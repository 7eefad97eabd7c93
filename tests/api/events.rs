//! What is written to the API, and what may be asked of it.

use kubeweir::api::{Event, Reason, Recorder, Regarding};
use kubeweir::model::{Kind, ObjectName};
use kubeweir::testing::api_server::{Ask, Fault, Signal, text};

use super::setup::*;

// B-072: in every phase only what system:node-proxier may: list and watch, and writing Events.
#[test]
fn only_permitted_requests_are_made() {
    let setup = Setup::new();
    setup.server.refuse_streaming_lists();
    fill(&setup.server);
    let setup = setup.watching(&Kind::ALL);
    let client = setup.client(setup.options());
    let _runtime = setup.runtime.enter();
    let recorder = Recorder::start(client, "node-a");
    recorder.record(starting());
    recorder.record(starting());
    setup.wait("the Event and its series", || setup.server.count_events() == 2);
    setup.server.signal(Kind::Service, Signal::End);
    setup.wait("the next watch", || setup.server.count(Kind::Service, Ask::Watch) == 2);
    for request in setup.server.requests() {
        assert_ne!(request.ask, Ask::Other, "{request:#?}");
        assert_ne!(request.answered, Some(403), "{request:#?}");
    }
}

fn starting() -> Event {
    Event { reason: Reason::Starting, regarding: Regarding::Node, note: String::new() }
}

// B-248: the Event of a start, as upstream writes it.
#[test]
fn a_start_is_an_event_on_the_node() {
    let setup = Setup::new();
    // A server that is not ready for it yet gets it later.
    let busy = refuse(503, "ServiceUnavailable", Some(1));
    setup.server.fail(Fault { kind: None, ask: Ask::Event, times: 1, answer: busy });
    let _runtime = setup.runtime.enter();
    let recorder = Recorder::start(setup.client(setup.options()), "node-a");
    recorder.record(starting());
    setup.wait("the Event", || !setup.server.events().is_empty());
    let event = &setup.server.events()[0];
    for (pointer, want) in [
        ("/reason", "Starting"),
        ("/type", "Normal"),
        ("/action", "StartKubeProxy"),
        ("/regarding/kind", "Node"),
        ("/regarding/name", "node-a"),
        ("/reportingController", "kube-proxy"),
        ("/reportingInstance", "kube-proxy-node-a"),
        ("/metadata/namespace", "default"),
    ] {
        assert_eq!(text(event, pointer), want, "{pointer}");
    }
    assert!(event.get("note").is_none());
}

#[test]
fn repeated_events_become_a_series() {
    let setup = Setup::new();
    let _runtime = setup.runtime.enter();
    let recorder = Recorder::start(setup.client(setup.options()), "node-a");
    let cart = ObjectName::new("shop", "cart");
    let event = Event {
        reason: Reason::ServiceQuarantined,
        regarding: Regarding::Service(cart),
        note: "the kernel says no".into(),
    };
    recorder.record(event.clone());
    recorder.record(event);
    recorder.record(starting());
    setup.wait("both Events", || setup.server.events().len() == 2);
    let events = setup.server.events();
    assert_eq!(events[0]["series"]["count"], 2);
    assert_eq!(text(&events[0], "/regarding/namespace"), "shop");
    assert_eq!(text(&events[0], "/note"), "the kernel says no");
    assert!(events[1].get("series").is_none());
}
