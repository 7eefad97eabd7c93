//! The same state by any way: after every change packets go where they should, and the kernel's
//! table is what a fresh start would have made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kubeweir::model::{Family, Kind, Object};
use kubeweir::testing::is_slow;
use kubeweir::testing::lab::{
    Dial, Lab, Outcome, Place, PodNetwork, ServiceBuilder, external_ip, service,
};
use kubeweir::testing::normal::{assert_alike, normal_form};

use super::case::{Case, Expect, PROTOCOLS, Source, To, answer, case, check, summary};
use super::rig::{NodePorts, Rig, Settings, both_families, web_slices, web_slices_of};

/// Compares the node's tables with those of a fresh start, apart from where in its slots an endpoint
/// happens to be.
fn like_fresh(rig: &mut Rig, title: &str) {
    let (found, fresh) = rig.dumps();
    for family in Family::BOTH {
        let (found, fresh) = (normal_form(&found[family]), normal_form(&fresh[family]));
        assert_alike(&found, &fresh, format!("{title}, {family}"));
    }
}

/// A rig with a service that changes, one that stays, and the steps in between.
struct History {
    rig: Rig,
    stays: Vec<Case>,
}

impl History {
    fn new() -> History {
        let mut rig = Rig::new(
            PodNetwork::Routed,
            Settings { node_ports: NodePorts::Both, ..Settings::default() },
        );
        let stays = service("stays", 110).twins("http", 80, Some(30_110));
        let stays = both_families(stays, |b, f| b.load_balancer_ip(external_ip(110, f)));
        let mut objects = vec![stays.object()];
        objects.extend(web_slices("stays", 8443, &[Place::Pod(0), Place::RemotePod(0)]));
        rig.start(objects);
        let both = |source| answer(&["pod-0:8443", "remote-0:8443"], source);
        let stays = vec![
            case("stays", Place::Pod(1), To::ClusterIp(110, 80), both(Source::Kept)),
            case("stays", Place::Outside, To::External(110, 80), both(Source::Masqueraded)),
            case("stays", Place::Host, To::SecondNode(30_110), both(Source::Masqueraded)),
        ];
        History { rig, stays }
    }

    fn step(&mut self, title: &str, objects: Vec<Object>, cases: Vec<Case>) {
        self.rig.set(objects);
        self.verify(title, cases);
    }

    fn verify(&mut self, title: &str, cases: Vec<Case>) {
        let cases = [&self.stays[..], &cases].concat();
        check(&self.rig.lab, title, &cases);
        like_fresh(&mut self.rig, title);
    }
}

fn changing() -> ServiceBuilder {
    service("changes", 111).twins("http", 80, None)
}

fn exposed() -> ServiceBuilder {
    let built = service("changes", 111).twins("http", 80, Some(30_111));
    both_families(built, |b, f| b.load_balancer_ip(external_ip(111, f)))
}

const PODS: [Place; 3] = [Place::Pod(0), Place::Pod(1), Place::Pod(2)];
const REMOTE: [Place; 3] = [Place::RemotePod(0), Place::RemotePod(1), Place::RemotePod(2)];

/// From a pod to the ClusterIP, and from outside to the VIP and the NodePort.
fn reached(cluster_ip: Expect, outside: Option<Expect>) -> Vec<Case> {
    let mut cases = vec![case("changes", Place::Pod(2), To::ClusterIp(111, 80), cluster_ip)];
    for to in [To::External(111, 80), To::Node(30_111)] {
        cases.extend(outside.clone().map(|expect| case("changes", Place::Outside, to, expect)));
    }
    cases
}

fn names(places: &[Place], port: u16) -> Vec<String> {
    let name = |place: &Place| match place {
        Place::Pod(n) => format!("pod-{n}:{port}"),
        Place::RemotePod(n) => format!("remote-{n}:{port}"),
        other => panic!("no endpoint at {other:?}"),
    };
    places.iter().map(name).collect()
}

fn by(places: &[Place], source: Source) -> Expect {
    let names = names(places, 8080);
    answer(&names.iter().map(String::as_str).collect::<Vec<_>>(), source)
}

// B-140, B-168: a list that grows and shrinks, over the borders of classes and down to nothing.
#[test]
fn endpoints_come_and_go() {
    let mut history = History::new();
    let all = [&PODS[..], &REMOTE].concat();
    history.step("appears", vec![exposed().object()], {
        reached(Expect::Refused, Some(Expect::Refused))
    });
    for (title, members) in [
        ("1", &all[..1]),
        ("2", &all[..2]),
        ("4", &all[..4]),
        ("5", &all[..5]),
        ("6", &all[..6]),
        ("the first goes", &all[1..6]),
        ("three go", &all[3..6]),
        ("one stays", &all[4..5]),
        ("none", &all[..0]),
        ("6 at once", &all[..6]),
        ("others", &all[..2]),
        ("quite others", &all[3..5]),
    ] {
        let expect = |source| match members {
            [] => Expect::Refused,
            _ => by(members, source),
        };
        let cases = reached(expect(Source::Kept), Some(expect(Source::Masqueraded)));
        history.step(title, web_slices("changes", 8080, members), cases);
    }
    history.rig.restart();
    let expect = |source| by(&all[3..5], source);
    let cases = reached(expect(Source::Kept), Some(expect(Source::Masqueraded)));
    history.verify("restarted", cases);
    history.rig.delete(Kind::Service, &["changes"]);
    let gone = case("deleted", Place::Pod(2), To::ClusterIp(111, 80), Expect::Dropped);
    history.verify("deleted", vec![gone]);
}

// B-133, B-134, B-168: types, policies, affinity and ranges come and go without a trace.
#[test]
fn a_service_takes_every_shape() {
    let mut history = History::new();
    history.rig.set(web_slices("changes", 8080, &[Place::Pod(0), Place::RemotePod(0)]));
    let both = |source| by(&[Place::Pod(0), Place::RemotePod(0)], source);
    let local = |source| by(&[Place::Pod(0)], source);
    let (kept, seen) = (Source::Kept, Source::Masqueraded);
    let net = |text: &str| text.parse().unwrap();
    let ranges = exposed().source_range(net("203.0.113.0/24")).source_range(net("2001:db8::/48"));
    let mut moved = exposed().model();
    moved.ports.iter_mut().for_each(|port| port.node_port = Some(30_112));
    let moved = Object::Service(Arc::new(moved));
    let from = |to, expect| case("changes", Place::Outside, To::Node(to), expect);
    let vip = |expect| case("changes", Place::Outside, To::External(111, 80), expect);
    let steps = [
        ("ClusterIP", changing().object(), reached(both(kept), None)),
        ("LoadBalancer", exposed().object(), reached(both(kept), Some(both(seen)))),
        ("eTP Local", exposed().external_local().object(), reached(both(kept), Some(local(kept)))),
        ("iTP Local", exposed().internal_local().object(), reached(local(kept), Some(both(seen)))),
        ("ranges", ranges.object(), vec![vip(Expect::Dropped), from(30_111, both(seen))]),
        ("another NodePort", moved, vec![vip(both(seen)), from(30_112, both(seen))]),
        ("as before", exposed().object(), reached(both(kept), Some(both(seen)))),
        ("ClusterIP again", changing().object(), reached(both(kept), None)),
    ];
    for (title, object, cases) in steps {
        history.step(title, vec![object], cases);
    }
    let sticky = changing().sticky(10_800).object();
    history.step("affinity", vec![sticky], Vec::new());
    history.step("without affinity", vec![changing().object()], reached(both(kept), None));
    let mut alias = changing().model();
    alias.kind = kubeweir::model::ServiceType::ExternalName;
    let alias = Object::Service(Arc::new(alias));
    let gone = case("ExternalName", Place::Pod(2), To::ClusterIp(111, 80), Expect::Dropped);
    history.step("ExternalName", vec![alias], vec![gone]);
    history.step("back", vec![changing().object()], reached(both(kept), None));
}

// B-104, B-105: slices before their service, endpoints that move from slice to slice, and back.
#[test]
fn slices_in_any_order() {
    let mut history = History::new();
    let renamed = |objects: Vec<Object>, suffix: &str| -> Vec<Object> {
        let rename = |mut object: Object| {
            if let Object::EndpointSlice(slice) = &mut object {
                let slice = Arc::make_mut(slice);
                slice.name.name = format!("{}{suffix}", slice.name.name).into();
            }
            object
        };
        objects.into_iter().map(rename).collect()
    };
    let slices = |members: &[Place], suffix| renamed(web_slices("changes", 8080, members), suffix);
    let none = |_| Vec::new();
    history.step("slices first", slices(&PODS[..2], "-a"), Vec::new());
    let cases = reached(by(&PODS[..2], Source::Kept), None);
    history.step("then the service", vec![changing().object()], cases.clone());
    history.step("also in the other", slices(&PODS[..2], "-b"), cases.clone());
    history.step("moved", renamed(web_slices_of("changes", 8080, none), "-a"), cases.clone());
    history.step("and back", slices(&PODS[..2], "-a"), cases.clone());
    let both = ["changes-ip-b", "changes-ip6-b"];
    history.rig.delete(Kind::EndpointSlice, &both);
    history.verify("one slice deleted", cases);
    history.rig.delete(Kind::EndpointSlice, &["changes-ip-a", "changes-ip6-a"]);
    history.verify("both deleted", reached(Expect::Refused, None));
}

/// A rig that serves the service at some endpoints.
fn serving(endpoints: &[Place]) -> Rig {
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    let mut objects = vec![exposed().object()];
    objects.extend(web_slices("changes", 8080, endpoints));
    rig.start(objects);
    rig
}

/// Dials over and over while something happens. Each dialler dials both families, one over TCP and
/// one over UDP.
fn dial_during(lab: &Lab, diallers: &[(Place, To)], happens: impl FnOnce()) -> Vec<Outcome> {
    let stop = AtomicBool::new(false);
    let dial = |&(from, to): &(Place, To)| {
        let mut outcomes = Vec::new();
        while !stop.load(Ordering::Relaxed) || outcomes.is_empty() {
            for (family, protocol) in Family::BOTH.into_iter().zip(PROTOCOLS) {
                outcomes.extend(lab.dial(from, Dial::new(protocol, to.address(family)), 10));
            }
        }
        outcomes
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = diallers.iter().map(|who| scope.spawn(|| dial(who))).collect();
        // Also if it panics, or nobody would hear of that.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(happens));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

// B-104, B-168: there is no gap while lists change, cross classes, shrink to one and grow again, while
// the service takes other shapes, and while a new process takes over.
#[test]
fn changes_make_no_gap() {
    let stays = || Place::RemotePod(0);
    let mut rig = serving(&[stays()]);
    let diallers = [
        // Not an endpoint itself: that would need its hairpin until the flow is there.
        (Place::Pod(2), To::ClusterIp(111, 80)),
        // Not the host: its packets are preempted like any process, over several commits.
        (Place::RemotePod(1), To::External(111, 80)),
        (Place::Outside, To::External(111, 80)),
        (Place::OutsideAt(1), To::Node(30_111)),
    ];
    let dialled = dial_during(&Arc::clone(&rig.lab), &diallers, || {
        for round in 0..6 {
            for members in [5, 1, 4, 5, 2, 3] {
                let all = [&[stays()], &PODS[..2], &REMOTE[1..]].concat();
                rig.set(web_slices("changes", 8080, &all[..members]));
            }
            let shapes = [exposed().sticky(round + 1), exposed().internal_local(), exposed()];
            // Only the last shape serves everybody without a local endpoint.
            rig.set(web_slices("changes", 8080, &[stays(), Place::Pod(0)]));
            for shape in shapes {
                rig.set(vec![shape.object()]);
            }
            rig.restart();
            rig.set(web_slices("changes", 8080, &[stays()]));
        }
    });
    // The kernel lets each lookup of a packet see the generation of its moment, so a packet that is
    // overtaken by three commits can miss a list that moves to another class. A real gap loses
    // hundreds.
    let lost = dialled.iter().filter(|outcome| outcome.answer().is_none()).count();
    assert!(lost * 1000 <= dialled.len(), "{}", summary(&dialled));
}

// A table that is replaced, at the end of a process and at the start of the next, serves every flow.
// Without the handover about one flow is lost in 250 replacements.
#[test]
fn replaced_tables_make_no_gap() {
    let mut rig = serving(&[Place::RemotePod(0), Place::Pod(0)]);
    let diallers = [
        (Place::Pod(2), To::ClusterIp(111, 80)),
        (Place::RemotePod(1), To::External(111, 80)),
        (Place::Host, To::ClusterIp(111, 80)),
        (Place::OutsideAt(1), To::Node(30_111)),
    ];
    let mut lost_while = |rounds: usize| {
        let dialled = dial_during(&Arc::clone(&rig.lab), &diallers, || {
            for _ in 0..rounds {
                rig.end();
                rig.restart();
            }
        });
        println!("{} replacements: {}", 4 * rounds, summary(&dialled));
        let lost = dialled.iter().filter(|outcome| outcome.answer().is_none()).count();
        // An emulated processor may stand still in the middle of a packet for longer than both transactions
        // of a handover take (5 of 100 000, on a host at load 12).
        let stood_still = dialled.len() / 10_000;
        assert!(lost <= stood_still, "{}", summary(&dialled));
        lost
    };
    // So may a real one whose host has other guests, once; a gap is there every time.
    let lost = lost_while(150);
    assert!(lost == 0 || is_slow() || lost_while(300) == 0, "{lost} lost, and again");
}

// The hooks of source ranges are there only while a Service has some, the rules of affinity and policy
// Local since one has; no flow is lost when they come and go.
#[test]
fn what_appears_on_demand_makes_no_gap() {
    let mut rig = serving(&[Place::RemotePod(0), Place::Pod(0)]);
    let hooks = |rig: &Rig| rig.listing().matches("pre-dnat").count();
    assert_eq!(hooks(&rig), 0);
    let clients = [Place::RemotePod(1), Place::Outside, Place::OutsideAt(1)];
    let diallers = [
        (Place::Pod(2), To::ClusterIp(111, 80)),
        (clients[0], To::External(111, 80)),
        (clients[1], To::External(111, 80)),
        (clients[2], To::Node(30_111)),
    ];
    let all = clients.iter().flat_map(|client| Family::BOTH.map(|f| client.source(f).unwrap()));
    let ranges = all.fold(exposed(), |built, client| built.source_range(client.into()));
    let (ranges, plain) = (ranges.object(), exposed().object());
    let others = service("others", 112).twins("http", 80, None);
    let dialled = dial_during(&Arc::clone(&rig.lab), &diallers, || {
        for round in 0..40 {
            rig.set(vec![ranges.clone()]);
            assert_eq!(hooks(&rig), 4, "two a family");
            if round % 10 == 0 {
                // Adopted with them, they go with the last Service that needs them.
                rig.restart();
                let others =
                    both_families(others.clone(), |b, f| b.load_balancer_ip(external_ip(112, f)));
                rig.set(vec![others.sticky(round + 1).external_local().object()]);
            }
            rig.set(vec![plain.clone()]);
            assert_eq!(hooks(&rig), 0);
        }
    });
    // A packet that stands still for two commits may have found the way to a range's set that the second
    // deletes (seen twice, at load 22). To wait for such packets with membarrier(2) cost more: where
    // processes starve, its grace period lasted ten seconds, and nothing was programmed meanwhile.
    let lost = dialled.iter().filter(|outcome| outcome.answer().is_none()).count();
    assert!(lost * 1000 <= dialled.len(), "{}", summary(&dialled));
}
