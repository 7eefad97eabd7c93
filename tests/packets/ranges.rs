//! Table 5.7: `loadBalancerSourceRanges`.

use ipnet::IpNet;
use kubeweir::model::{Family, Object};
use kubeweir::testing::lab::{PATIENCE, Place, PodNetwork, ServiceBuilder, external_ip, service};

use super::case::{Expect, PROTOCOLS, Source, To, answer, case, check, check_families};
use super::rig::{Rig, Settings, both_families, web_slices};

/// Inside the ranges.
const ALLOWED: Place = Place::OutsideAt(5);
/// Outside of them.
const BLOCKED: Place = Place::OutsideAt(200);

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// The ranges that hold [`ALLOWED`] only.
fn clients(built: ServiceBuilder) -> ServiceBuilder {
    built.source_range(net("203.0.113.0/25")).source_range(net("2001:db8:113::/121"))
}

/// A Service with an external IP n, load-balancer addresses n + 20 and n + 40 (the latter to be
/// bound on the node), and NodePort 30000 + n.
fn balanced(n: usize) -> ServiceBuilder {
    let port = 30_000 + u16::try_from(n).unwrap();
    let built = service(&format!("svc-{n}"), n).twins("http", 80, Some(port));
    both_families(built, |built, family| {
        let ip = |n| external_ip(n, family);
        built.external_ip(ip(n)).load_balancer_ip(ip(n + 20)).load_balancer_ip(ip(n + 40))
    })
}

fn served(n: usize, built: ServiceBuilder) -> Vec<Object> {
    let mut objects = vec![built.object()];
    objects.extend(web_slices(&format!("svc-{n}"), 8080, &[Place::Pod(0)]));
    objects
}

fn rig(objects: Vec<Object>) -> Rig {
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    for family in Family::BOTH {
        for n in 50..60 {
            rig.lab.bind_on_node(external_ip(n + 40, family)).unwrap();
        }
    }
    rig.start(objects);
    rig
}

fn seen() -> Expect {
    answer(&["pod-0:8080"], Source::Masqueraded)
}

// B-158, B-159, B-160, B-161: the ranges hold for the load balancer's addresses only, there for
// everybody; the node's own address among them admits the addresses themselves as sources.
#[test]
fn ranges_with_the_node_among_them() {
    let built = clients(balanced(50));
    let built = built.source_range(net("192.168.10.0/24")).source_range(net("fd00:168:10::/64"));
    let rig = rig(served(50, built));
    let (pod, host) = (Place::Pod(1), Place::Host);
    let kept = answer(&["pod-0:8080"], Source::Kept);
    let mut cases = vec![case("ClusterIP", pod, To::ClusterIp(50, 80), kept)];
    for place in [pod, host, ALLOWED, BLOCKED] {
        cases.push(case("NodePort", place, To::Node(30_050), seen()));
        cases.push(case("external IP", place, To::External(50, 80), seen()));
    }
    for vip in [To::External(70, 80), To::External(90, 80)] {
        cases.push(case("allowed", ALLOWED, vip, seen()));
        cases.push(case("blocked", BLOCKED, vip, Expect::Dropped));
        cases.push(case("blocked pod", pod, vip, Expect::Dropped));
        // To the address that is bound on the node the host dials from that very address.
        cases.push(case("node", host, vip, seen()));
    }
    check(&rig.lab, "ranges with the node", &cases);
}

// B-159, B-161: without the node's address among the ranges the host is blocked like anyone.
#[test]
fn ranges_without_the_node() {
    let rig = rig(served(51, clients(balanced(51))));
    let mut cases = Vec::new();
    for vip in [To::External(71, 80), To::External(91, 80)] {
        cases.push(case("allowed", ALLOWED, vip, seen()));
        for place in [BLOCKED, Place::Pod(1), Place::Host] {
            cases.push(case("blocked", place, vip, Expect::Dropped));
        }
    }
    check(&rig.lab, "ranges without the node", &cases);
}

// B-162: ranges drop also where there is no endpoint; whom they admit is refused.
#[test]
fn ranges_without_endpoints() {
    let rig = rig(vec![clients(balanced(52)).object()]);
    let vip = To::External(72, 80);
    let cases = [
        case("blocked", BLOCKED, vip, Expect::Dropped),
        case("allowed", ALLOWED, vip, Expect::Refused),
        case("not restricted", BLOCKED, To::External(52, 80), Expect::Refused),
    ];
    check(&rig.lab, "ranges without endpoints", &cases);
}

// B-089: a range that admits everybody lifts the others. Quirk Q-12: ranges of one
// family leave the other open.
#[test]
fn ranges_that_restrict_nobody() {
    let everybody = clients(balanced(53)).source_range(net("0.0.0.0/0"));
    let everybody = everybody.source_range(net("::/0"));
    let mut objects = served(53, everybody);
    objects.extend(served(54, balanced(54).source_range(net("203.0.113.0/25"))));
    let rig = rig(objects);
    let open = |n| case("open", BLOCKED, To::External(n, 80), seen());
    check(&rig.lab, "everybody", &[open(73)]);
    check_families(&rig.lab, "other family", &[Family::V6], &[open(74)]);
    let blocked = case("blocked", BLOCKED, To::External(74, 80), Expect::Dropped);
    check_families(&rig.lab, "own family", &[Family::V4], &[blocked]);
}

// B-163: open flows survive a tightening; new ones do not.
#[test]
fn tightening_spares_open_flows() {
    let mut rig = rig(served(55, balanced(55)));
    let vip = To::External(75, 80);
    let mut flows = Vec::new();
    for family in Family::BOTH {
        for protocol in PROTOCOLS {
            flows.push(rig.lab.open(BLOCKED, protocol, vip.address(family)).unwrap());
        }
    }
    let before: Vec<_> = flows.iter_mut().map(|flow| flow.ask(PATIENCE)).collect();
    assert!(before.iter().all(|outcome| outcome.answer().is_some()), "{before:?}");
    check(&rig.lab, "open", &[case("open", BLOCKED, vip, seen())]);
    rig.set(vec![clients(balanced(55)).object()]);
    check(&rig.lab, "tightened", &[case("new flow", BLOCKED, vip, Expect::Dropped)]);
    let after: Vec<_> = flows.iter_mut().map(|flow| flow.ask(PATIENCE)).collect();
    assert_eq!(before, after);
    rig.set(vec![balanced(55).object()]);
    check(&rig.lab, "lifted", &[case("new flow", BLOCKED, vip, seen())]);
}
