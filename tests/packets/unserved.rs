//! Tables 5.5 and 5.6: what is refused, what is dropped, what is left alone.

use std::net::SocketAddr;

use kubeweir::model::{Family, Object, TrafficPolicy};
use kubeweir::testing::lab::{
    PATIENCE, Place, PodNetwork, SECOND_NODE_IP, endpoint, external_ip, real_external_ip, service,
};

use super::case::{Case, Expect, PROTOCOLS, Source, To, answer, case, check};
use super::rig::{Detector, Rig, Settings, both_families, web_slices, web_slices_of};

const EVERYBODY: [Place; 5] =
    [Place::Pod(0), Place::Pod(1), Place::Host, Place::Outside, Place::RemotePod(1)];

/// A Service with every kind of address: ClusterIP n, external IP n, load balancer n + 20, NodePort
/// 30000 + n.
fn full(n: usize, internal: TrafficPolicy, external: TrafficPolicy) -> Object {
    let port = 30_000 + u16::try_from(n).unwrap();
    let built = service(&format!("svc-{n}"), n).twins("http", 80, Some(port));
    let mut built = both_families(built, |built, family| {
        built.external_ip(external_ip(n, family)).load_balancer_ip(external_ip(n + 20, family))
    });
    if internal == TrafficPolicy::Local {
        built = built.internal_local();
    }
    if external == TrafficPolicy::Local {
        built = built.external_local();
    }
    built.object()
}

fn external_addresses(n: usize) -> [To; 3] {
    let node_port = 30_000 + u16::try_from(n).unwrap();
    [To::External(n, 80), To::External(n + 20, 80), To::Node(node_port)]
}

fn all_addresses(n: usize) -> [To; 4] {
    let [external, balancer, node] = external_addresses(n);
    [To::ClusterIp(n, 80), external, balancer, node]
}

fn everywhere(name: &str, n: usize, places: &[Place], expect: &Expect) -> Vec<Case> {
    let cases = all_addresses(n).map(|to| places.iter().map(move |&p| (p, to)));
    cases.into_iter().flatten().map(|(p, to)| case(name, p, to, expect.clone())).collect()
}

// B-135, B-147: without usable endpoints every address refuses, whoever dials. B-164: by ICMP; TCP
// by a reset, which unlike upstream's ICMP reaches every client.
// B-110, B-111: endpoints that do not serve are not usable, nor are those that serve without being
// ready or terminating.
#[test]
fn no_usable_endpoint_anywhere_is_refused() {
    use TrafficPolicy::{Cluster, Local};
    let idle = |family| {
        let gone = endpoint(Place::Pod(1), family).terminating().unready();
        let idle = endpoint(Place::RemotePod(0), family).idle();
        vec![endpoint(Place::Pod(0), family).unready(), gone, idle]
    };
    let mut objects = Vec::new();
    let policies = [(Cluster, Cluster), (Local, Local), (Cluster, Local), (Local, Cluster)];
    let mut cases = Vec::new();
    for (i, (internal, external)) in policies.into_iter().enumerate() {
        let (without, unready) = (30 + 2 * i, 31 + 2 * i);
        objects.push(full(without, internal, external));
        objects.push(full(unready, internal, external));
        objects.extend(web_slices_of(&format!("svc-{unready}"), 8080, idle));
        cases.extend(everywhere("no slice", without, &EVERYBODY, &Expect::Refused));
        cases.extend(everywhere("unready", unready, &EVERYBODY, &Expect::Refused));
    }
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    rig.start(objects);
    check(&rig.lab, "no usable endpoint", &cases);
}

// B-132, B-146: Local policies with endpoints elsewhere only. B-145: without a detector pods count
// as external.
#[test]
fn local_policies_with_remote_endpoints_only() {
    use TrafficPolicy::{Cluster, Local};
    for detector in [Detector::ClusterCidr, Detector::None] {
        let mut rig = Rig::new(PodNetwork::Routed, Settings { detector, ..Settings::default() });
        let mut objects = Vec::new();
        for (n, internal, external) in
            [(30, Local, Cluster), (31, Cluster, Local), (32, Local, Local)]
        {
            objects.push(full(n, internal, external));
            objects.extend(web_slices(&format!("svc-{n}"), 8080, &[Place::RemotePod(0)]));
        }
        rig.start(objects);
        let title = format!("remote endpoints only, {detector:?}");
        check(&rig.lab, &title, &remote_only_cases(detector));
    }
}

fn remote_only_cases(detector: Detector) -> Vec<Case> {
    let remote = |source| answer(&["remote-0:8080"], source);
    let cluster_ip = |place| match (place, detector) {
        (Place::Pod(_), _) | (_, Detector::None) => remote(Source::Kept),
        _ => remote(Source::Masqueraded),
    };
    let mut cases = Vec::new();
    for place in [Place::Pod(0), Place::Host, Place::Outside] {
        for n in [30, 32] {
            cases.push(case("iTP Local", place, To::ClusterIp(n, 80), Expect::Dropped));
        }
        cases.push(case("iTP Cluster", place, To::ClusterIp(31, 80), cluster_ip(place)));
        for to in external_addresses(30) {
            cases.push(case("eTP Cluster", place, to, remote(Source::Masqueraded)));
        }
        for to in [31, 32].into_iter().flat_map(external_addresses) {
            let expect = match (place, detector) {
                (Place::Host, _) => remote(Source::Masqueraded),
                (Place::Pod(_), Detector::ClusterCidr) => remote(Source::Kept),
                _ => Expect::Dropped,
            };
            cases.push(case("eTP Local", place, to, expect));
        }
    }
    cases
}

// B-136, B-137, B-138: unused ports of ClusterIPs, unallocated service addresses, and addresses
// that are nobody's business. B-148, B-149: addresses bound on the node are served. B-150: other ports of external addresses are left alone, whether the
// address is a machine's outside or bound on the node.
#[test]
fn what_no_service_claims() {
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    let built = service("web", 40).twins("http", 80, None);
    let built = both_families(built, |built, family| {
        let built = built.load_balancer_ip(external_ip(60, family));
        built.external_ip(real_external_ip(1, family)).external_ip(external_ip(61, family))
    });
    for family in Family::BOTH {
        for n in [60, 61] {
            rig.lab.bind_on_node(external_ip(n, family)).unwrap();
        }
        let owners = [1, 2].map(|n| SocketAddr::new(real_external_ip(n, family), 81));
        rig.lab.serve(Place::Outside, "owner", &owners).unwrap();
        let bound = [SocketAddr::new(external_ip(60, family), 81)];
        rig.lab.serve(Place::Host, "host", &bound).unwrap();
    }
    let mut objects = vec![built.object()];
    objects.extend(web_slices("web", 8080, &[Place::Pod(1)]));
    rig.start(objects);
    let owner = || answer(&["owner:81"], Source::Kept);
    let pod = || answer(&["pod-1:8080"], Source::Masqueraded);
    let mut cases = Vec::new();
    for place in [Place::Pod(0), Place::Host, Place::Outside] {
        cases.push(case("unused port", place, To::ClusterIp(40, 81), Expect::Refused));
        cases.push(case("unallocated", place, To::ClusterIp(99, 80), Expect::Dropped));
        let bound = answer(&["host:81"], Source::Kept);
        cases.push(case("bound VIP", place, To::External(60, 80), pod()));
        cases.push(case("bound external IP", place, To::External(61, 80), pod()));
        cases.push(case("other port of a bound VIP", place, To::External(60, 81), bound));
    }
    for place in [Place::Pod(0), Place::Host] {
        cases.push(case("claimed", place, To::RealExternal(1, 80), pod()));
        cases.push(case("other port", place, To::RealExternal(1, 81), owner()));
        cases.push(case("not a service", place, To::RealExternal(2, 81), owner()));
    }
    check(&rig.lab, "what no service claims", &cases);
}

// B-157: a NodePort elsewhere than on the NodePort addresses is left alone, with endpoints and
// without. B-154: so it is on loopback.
#[test]
fn node_ports_elsewhere_are_left_alone() {
    use TrafficPolicy::Cluster;
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    for family in Family::BOTH {
        let loopback = To::Loopback(0).address(family).ip();
        let at = |ip| [30_041, 30_042].map(|port| SocketAddr::new(ip, port));
        for ip in [SECOND_NODE_IP[family], loopback] {
            rig.lab.serve(Place::Host, "host", &at(ip)).unwrap();
        }
    }
    let mut objects = vec![full(41, Cluster, Cluster), full(42, Cluster, Cluster)];
    objects.extend(web_slices("svc-41", 8080, &[Place::Pod(0)]));
    rig.start(objects);
    let mut cases = Vec::new();
    for port in [30_041, 30_042] {
        let name = format!("host:{port}");
        let host = || answer(&[&name], Source::Kept);
        for place in [Place::Pod(1), Place::Host, Place::Outside] {
            cases.push(case("second address", place, To::SecondNode(port), host()));
        }
        cases.push(case("loopback", Place::Host, To::Loopback(port), host()));
    }
    check(&rig.lab, "NodePorts elsewhere", &cases);
}

// B-167: an open flow goes on when its service loses its endpoints.
// B-168: and the refusal ends when they come back.
#[test]
fn refusals_come_and_go_and_open_flows_stay() {
    use TrafficPolicy::Cluster;
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    let mut objects = vec![full(43, Cluster, Cluster)];
    objects.extend(web_slices("svc-43", 8080, &[Place::Pod(0)]));
    rig.start(objects);
    let mut flows = Vec::new();
    for family in Family::BOTH {
        for to in all_addresses(43) {
            // An open UDP flow whose endpoint is gone is cut on purpose (section 7.7).
            let protocol = PROTOCOLS[0];
            flows.push(rig.lab.open(Place::Outside, protocol, to.address(family)).unwrap());
        }
    }
    let before: Vec<_> = flows.iter_mut().map(|flow| flow.ask(PATIENCE)).collect();
    assert!(before.iter().all(|outcome| outcome.answer().is_some()), "{before:?}");
    let served = answer(&["pod-0:8080"], Source::Either);
    check(&rig.lab, "served", &everywhere("served", 43, &EVERYBODY, &served));
    rig.set(web_slices("svc-43", 8080, &[]));
    check(&rig.lab, "gone", &everywhere("gone", 43, &EVERYBODY, &Expect::Refused));
    let after: Vec<_> = flows.iter_mut().map(|flow| flow.ask(PATIENCE)).collect();
    assert_eq!(before, after);
    rig.set(web_slices("svc-43", 8080, &[Place::RemotePod(2)]));
    let back = answer(&["remote-2:8080"], Source::Either);
    check(&rig.lab, "back", &everywhere("back", 43, &[Place::Pod(0), Place::Host], &back));
}
