//! Section 4.9: session affinity.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kubeweir::inspect::explain::Explanation;
use kubeweir::model::{Family, Object, Protocol};
use kubeweir::testing::lab::{
    Dial, Lab, Outcome, PATIENCE, Place, PodNetwork, ServiceBuilder, external_ip, service,
};
use kubeweir::testing::slowed;

use super::case::{PROTOCOLS, To, dials_to_see_all, label, summary};
use super::explained::Explainer;
use super::rig::{Rig, Settings, both_families, web_slices};

const ALL: [Place; 6] = [
    Place::Pod(0),
    Place::Pod(1),
    Place::Pod(2),
    Place::RemotePod(0),
    Place::RemotePod(1),
    Place::RemotePod(2),
];

/// So many clients that they cannot all have the same endpoint, or all a new one, by chance: with
/// two endpoints the chance is 2^-39.
const CLIENTS: u8 = 40;

/// Ports 80 and 81, a NodePort for the former, and every kind of address.
fn sticky(n: usize, seconds: Option<u32>) -> ServiceBuilder {
    let port = 30_000 + u16::try_from(n).unwrap();
    let built = service("sticky", n).twins("http", 80, Some(port)).twins("other", 81, None);
    let built = both_families(built, |built, family| {
        built.external_ip(external_ip(n, family)).load_balancer_ip(external_ip(n + 20, family))
    });
    match seconds {
        Some(seconds) => built.sticky(seconds),
        None => built,
    }
}

fn slices(endpoints: &[Place]) -> Vec<Object> {
    let mut objects = web_slices("sticky", 8080, endpoints);
    for object in &mut objects {
        if let Object::EndpointSlice(slice) = object {
            let slice = std::sync::Arc::make_mut(slice);
            let mut more = slice.ports.clone();
            for port in &mut more {
                port.name = port.name.replace("http", "other").into();
                port.port = 8443;
            }
            slice.ports.extend(more);
        }
    }
    objects
}

fn start(n: usize, seconds: u32, endpoints: &[Place]) -> Rig {
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    let mut objects = vec![sticky(n, Some(seconds)).object()];
    objects.extend(slices(endpoints));
    rig.start(objects);
    rig
}

/// Who answers; an error if different ones do.
fn only(lab: &Lab, from: Place, to: To, protocol: Protocol, family: Family) -> String {
    let before = Explainer::of(lab);
    let dialled = (to.address(family), protocol);
    let outcomes = lab.dial(from, Dial::new(protocol, to.address(family)), 12);
    was_foretold(&before.explain(lab, from, dialled), &outcomes);
    is_remembered(&Explainer::of(lab).judge(lab, from, dialled, &outcomes).unwrap());
    let labels: BTreeSet<String> = outcomes.iter().filter_map(Outcome::answer).map(label).collect();
    let answered = outcomes.iter().all(|outcome| outcome.answer().is_some());
    assert!(answered && labels.len() == 1, "{from:?} {to:?} {protocol}: {}", summary(&outcomes));
    labels.into_iter().next().unwrap()
}

/// Who answers each of many clients, by one dial each.
fn each_client(lab: &Lab, to: To, protocol: Protocol, family: Family) -> Vec<String> {
    let dialled = (to.address(family), protocol);
    let before = Explainer::of(lab);
    let outcomes = dial_each(lab, to, protocol, family);
    let after = Explainer::of(lab);
    for (n, outcome) in (1..=CLIENTS).zip(&outcomes) {
        let (from, outcome) = (Place::OutsideAt(n), std::slice::from_ref(outcome));
        was_foretold(&before.explain(lab, from, dialled), outcome);
        is_remembered(&after.judge(lab, from, dialled, outcome).unwrap());
    }
    labels(&outcomes)
}

fn dial_each(lab: &Lab, to: To, protocol: Protocol, family: Family) -> Vec<Outcome> {
    let dial = Dial::new(protocol, to.address(family));
    (1..=CLIENTS).flat_map(|n| lab.dial(Place::OutsideAt(n), dial, 1)).collect()
}

fn labels(outcomes: &[Outcome]) -> Vec<String> {
    let name = |outcome: &Outcome| label(outcome.answer().unwrap_or_else(|| panic!("{outcome:?}")));
    outcomes.iter().map(name).collect()
}

/// `kubeweir explain` named the endpoint as one of the possible, or as the one that is remembered.
fn was_foretold(said: &Explanation, outcomes: &[Outcome]) {
    for endpoint in outcomes.iter().filter_map(Outcome::answer).map(|answer| answer.endpoint) {
        assert!(said.endpoints.iter().any(|told| told.endpoint == endpoint), "{endpoint}: {said}");
    }
}

/// `kubeweir explain` names the entry and its remaining time.
fn is_remembered(said: &Explanation) {
    let told: Vec<SocketAddr> = said.endpoints.iter().map(|told| told.endpoint).collect();
    let affinity = said.affinity.as_ref().expect("the service port has affinity");
    assert_eq!(told, Vec::from_iter(affinity.endpoint), "{said}");
    assert!(affinity.expires_ms.is_some_and(|millis| millis <= 10_800_000), "{said}");
}

fn for_all(mut check: impl FnMut(Protocol, Family)) {
    for family in Family::BOTH {
        for protocol in PROTOCOLS {
            check(protocol, family);
        }
    }
}

/// Waits until no client is remembered any more; what happens `meanwhile` must not prevent that.
fn wait_until_forgotten(rig: &Rig, mut meanwhile: impl FnMut()) {
    let start = Instant::now();
    while rig.listing().contains("expires") {
        assert!(
            start.elapsed() < slowed(Duration::from_secs(60)),
            "still remembered: {}",
            rig.listing()
        );
        meanwhile();
    }
}

// B-169: a client keeps its endpoint. B-172: at every address of a service port, and at each port
// by itself.
#[test]
fn one_endpoint_for_all_addresses_of_a_port() {
    let rig = start(60, 10_800, &ALL);
    for_all(|protocol, family| {
        let at = |to| only(&rig.lab, Place::Outside, to, protocol, family);
        let chosen = at(To::ClusterIp(60, 80));
        for to in [To::External(60, 80), To::External(80, 80), To::Node(30_060)] {
            assert_eq!(at(to), chosen, "{to:?} {protocol} {family}");
        }
        let host = |port| {
            let web = each_client(&rig.lab, To::ClusterIp(60, port), protocol, family);
            web.into_iter().map(|label| label.split(':').next().unwrap().to_owned())
        };
        let (web, other): (Vec<String>, Vec<String>) = (host(80).collect(), host(81).collect());
        assert_ne!(web, other, "both ports share their affinity");
        let again: Vec<String> = host(80).collect();
        assert_eq!(web, again);
    });
}

// B-173: a client whose endpoint goes gets another, and keeps that. B-174: others keep theirs, over
// unrelated changes of the list, changes of other services, and a restart.
#[test]
fn kept_over_changes_and_a_restart() {
    let mut rig = start(61, 10_800, &ALL);
    let to = To::External(81, 80);
    let clients = |rig: &Rig| {
        let mut all = Vec::new();
        for_all(|protocol, family| all.push(each_client(&rig.lab, to, protocol, family)));
        all.concat()
    };
    let first = clients(&rig);
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), ALL.len(), "{first:?}");

    rig.restart();
    assert_eq!(clients(&rig), first, "after a restart");

    rig.set(vec![service("bystander", 62).twins("http", 80, None).object()]);
    rig.set(slices(&[&ALL[..], &[Place::RemotePod(3)]].concat()));
    assert_eq!(clients(&rig), first, "after a new endpoint");

    let (gone, left) = ("pod-1:8080", [&ALL[..1], &ALL[2..]].concat());
    rig.set(slices(&left));
    let second = clients(&rig);
    for (before, after) in first.iter().zip(&second) {
        assert_ne!(after, gone);
        assert!(before == gone || before == after, "{before} became {after}");
    }
    assert_eq!(clients(&rig), second, "after an endpoint went");

    rig.set(slices(&left[..1]));
    let third = clients(&rig);
    assert!(third.iter().all(|label| label == "pod-0:8080"), "{third:?}");
    rig.set(slices(&ALL));
    assert_eq!(clients(&rig), third, "after the list grew from one");
}

// B-171: after the timeout endpoints are chosen anew. B-170: packets of an open flow do not put the
// timeout off, new flows do.
#[test]
fn forgotten_after_the_timeout() {
    // Nothing but dials: the time between two of one client has to stay below the timeout.
    let timeout = slowed(Duration::from_secs(10));
    let rig = start(63, u32::try_from(timeout.as_secs()).unwrap(), &ALL);
    let to = To::ClusterIp(63, 80);
    let everyone = || {
        let mut all = Vec::new();
        let dial = |protocol, family| labels(&dial_each(&rig.lab, to, protocol, family));
        for_all(|protocol, family| all.push(dial(protocol, family)));
        all
    };
    let first = everyone();
    let start = Instant::now();
    while start.elapsed() < timeout + Duration::from_secs(1) {
        assert_eq!(everyone(), first, "after {:?}", start.elapsed());
    }
    let mut flows = Vec::new();
    for_all(|protocol, family| {
        let to = to.address(family);
        flows.push(rig.lab.open(Place::OutsideAt(1), protocol, to).expect("opens"));
    });
    wait_until_forgotten(&rig, || {
        let answers = flows.iter_mut().map(|flow| flow.ask(PATIENCE));
        assert!(answers.into_iter().all(|outcome| outcome.answer().is_some()));
    });
    let mut last = Vec::new();
    for_all(|protocol, family| last.push(each_client(&rig.lab, to, protocol, family)));
    for (after, before) in last.iter().zip(&first) {
        assert_ne!(after, before);
    }
}

// B-175: a new timeout applies without a new service. B-176: without affinity nothing is
// remembered any more.
#[test]
fn changed_and_removed() {
    let mut rig = start(64, 10_800, &ALL);
    let to = To::Node(30_064);
    let first = each_client(&rig.lab, to, Protocol::Tcp, Family::V4);
    // Longer than one dial of each client takes on a busy machine: all of them are remembered after it.
    let shorter = u32::try_from(slowed(Duration::from_secs(10)).as_secs()).unwrap();
    rig.set(vec![sticky(64, Some(shorter)).object()]);
    let again = each_client(&rig.lab, to, Protocol::Tcp, Family::V4);
    assert_eq!(again, first, "a shorter timeout forgets nobody at once");
    wait_until_forgotten(&rig, || ());
    rig.set(vec![sticky(64, None).object()]);
    for_all(|protocol, family| {
        let dial = Dial::new(protocol, to.address(family));
        let outcomes = rig.lab.dial(Place::Outside, dial, dials_to_see_all(ALL.len()));
        let labels: BTreeSet<String> =
            outcomes.iter().filter_map(Outcome::answer).map(label).collect();
        assert_eq!(labels.len(), ALL.len(), "{}", summary(&outcomes));
        let dialled = (to.address(family), protocol);
        let said = Explainer::of(&rig.lab).judge(&rig.lab, Place::Outside, dialled, &outcomes);
        assert_eq!(said.unwrap().affinity, None);
    });
    let listing = rig.listing();
    assert!(!listing.contains("affinity"), "{listing}");
}

// B-177: under a Local external policy a client outside sticks to an endpoint here, even if the
// same client was sent elsewhere by the ClusterIP.
#[test]
fn local_policy_sticks_to_local_endpoints() {
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    let mut objects = vec![sticky(65, Some(10_800)).external_local().object()];
    objects.extend(slices(&ALL));
    rig.start(objects);
    for_all(|protocol, family| {
        let inside = each_client(&rig.lab, To::ClusterIp(65, 80), protocol, family);
        assert!(inside.iter().any(|label| label.starts_with("remote")), "{inside:?}");
        for to in [To::External(65, 80), To::External(85, 80), To::Node(30_065)] {
            let outside = each_client(&rig.lab, to, protocol, family);
            assert!(outside.iter().all(|label| label.starts_with("pod")), "{outside:?}");
            assert_eq!(each_client(&rig.lab, to, protocol, family), outside, "{to:?}");
        }
    });
}

// B-169, B-172: clients are told apart by address, and a pod that chose itself keeps itself.
#[test]
fn pods_stick_too() {
    let rig = start(66, 10_800, &ALL[..3]);
    for_all(|protocol, family| {
        for place in [Place::Pod(0), Place::Pod(1), Place::Host] {
            let chosen = only(&rig.lab, place, To::ClusterIp(66, 80), protocol, family);
            for to in [To::External(86, 80), To::Node(30_066)] {
                assert_eq!(only(&rig.lab, place, to, protocol, family), chosen, "{place:?} {to:?}");
            }
        }
    });
}
