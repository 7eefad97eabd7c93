//! Which endpoints are used (sections 4.8 and 5.11), and endpoints of unusual kinds.

use std::net::SocketAddr;

use kubeweir::model::{Family, Kind, Object, Protocol};
use kubeweir::testing::lab::{
    EndpointBuilder, NODE_IP, Place, PodNetwork, endpoint, external_ip, service, slice,
};

use super::case::{Case, Expect, Source, To, answer, case, check};
use super::rig::{Rig, Settings, both_families, slice_object, web_slices, web_slices_of};

/// What an endpoint's conditions say.
#[derive(Debug, Clone, Copy)]
enum State {
    Ready,
    Terminating,
    Unready,
}

use State::{Ready, Terminating, Unready};

const CLUSTER: usize = 90;
const LOCAL: usize = 91;

/// A service with policy Cluster and one with external policy Local, both with the same endpoints.
fn objects(endpoints: &[(Place, State)]) -> Vec<Object> {
    let mut objects = Vec::new();
    for n in [CLUSTER, LOCAL] {
        let name = format!("svc-{n}");
        let built = service(&name, n).twins("http", 80, None);
        let built = both_families(built, |b, f| b.load_balancer_ip(external_ip(n, f)));
        objects.push(if n == LOCAL { built.external_local() } else { built }.object());
        objects.extend(web_slices_of(&name, 8080, |family| conditions(endpoints, family)));
    }
    objects
}

fn conditions(endpoints: &[(Place, State)], family: Family) -> Vec<EndpointBuilder> {
    let one = |&(place, state): &(Place, State)| match state {
        Ready => endpoint(place, family),
        Terminating => endpoint(place, family).terminating(),
        Unready => endpoint(place, family).unready(),
    };
    endpoints.iter().map(one).collect()
}

/// Cases for a pod and for a client outside: ClusterIPs, a Cluster VIP, a Local VIP.
fn cases(name: &str, cluster: &[&str], local: Option<&[&str]>) -> Vec<Case> {
    let of = |set: &[&str], source| match set {
        [] => Expect::Refused,
        _ => answer(set, source),
    };
    let local = match local {
        None => Expect::Dropped,
        Some(set) => of(set, Source::Kept),
    };
    let (pod, outside) = (Place::Pod(2), Place::Outside);
    vec![
        case(name, pod, To::ClusterIp(CLUSTER, 80), of(cluster, Source::Kept)),
        case(name, outside, To::External(CLUSTER, 80), of(cluster, Source::Masqueraded)),
        case(name, pod, To::ClusterIp(LOCAL, 80), of(cluster, Source::Kept)),
        case(name, pod, To::External(LOCAL, 80), of(cluster, Source::Kept)),
        case(name, outside, To::External(LOCAL, 80), local),
    ]
}

// B-092, B-108, B-109, B-110, B-112, B-113: ready endpoints; without any, terminating ones that serve; for
// the cluster's list and the node's list each on its own.
#[test]
fn ready_then_terminating_then_none() {
    let (here, there) =
        ([Place::Pod(0), Place::Pod(1)], [Place::RemotePod(0), Place::RemotePod(1)]);
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    rig.start(objects(&[]));
    let mut step = |name: &str, endpoints: &[(Place, State)], cluster: &[&str], local| {
        rig.set(objects(endpoints));
        check(&rig.lab, name, &cases(name, cluster, local));
    };
    step(
        "ready ones exist",
        &[(here[0], Ready), (here[1], Ready), (Place::Pod(2), Terminating), (there[0], Ready)],
        &["pod-0:8080", "pod-1:8080", "remote-0:8080"],
        Some(&["pod-0:8080", "pod-1:8080"]),
    );
    step(
        "terminating here, ready elsewhere",
        &[(here[0], Terminating), (here[1], Terminating), (there[0], Ready)],
        &["remote-0:8080"],
        Some(&["pod-0:8080", "pod-1:8080"]),
    );
    step(
        "terminating here and elsewhere",
        &[(here[0], Terminating), (there[0], Terminating), (there[1], Unready)],
        &["pod-0:8080", "remote-0:8080"],
        Some(&["pod-0:8080"]),
    );
    step("terminating elsewhere", &[(there[0], Terminating)], &["remote-0:8080"], None);
    step("nothing serves", &[(here[0], Unready), (there[0], Unready)], &[], Some(&[]));
    step("ready again", &[(here[0], Ready)], &["pod-0:8080"], Some(&["pod-0:8080"]));
    rig.delete(Kind::EndpointSlice, &["svc-90-ip", "svc-90-ip6", "svc-91-ip", "svc-91-ip6"]);
    check(&rig.lab, "slices deleted", &cases("slices deleted", &[], Some(&[])));
}

// B-125, B-141, B-142: endpoints in the host's own network, here.
#[test]
fn host_network_endpoints() {
    let mut rig = Rig::new(PodNetwork::Bridge, Settings::default());
    for family in Family::BOTH {
        let at = [SocketAddr::new(NODE_IP[family], 9100)];
        rig.lab.serve(Place::Host, "host", &at).unwrap();
    }
    let mut objects = Vec::new();
    for n in [92, 93] {
        let name = format!("svc-{n}");
        let built = service(&name, n).twins("http", 80, Some(30_000 + u16::try_from(n).unwrap()));
        let built = both_families(built, |b, f| b.load_balancer_ip(external_ip(n, f)));
        objects.push(if n == 93 { built.external_local() } else { built }.object());
        objects.extend(web_slices(&name, 9100, &[Place::Host]));
    }
    rig.start(objects);
    let mut cases = Vec::new();
    for n in [92, 93] {
        let node_port = To::Node(30_000 + u16::try_from(n).unwrap());
        for to in [To::ClusterIp(n, 80), To::External(n, 80), node_port] {
            // What ends on the node passes no place where its source could be changed; what the
            // node sends itself does, to no effect.
            for place in [Place::Pod(0), Place::Outside, Place::RemotePod(0)] {
                cases.push(case("host network", place, to, answer(&["host:9100"], Source::Kept)));
            }
            let expect = answer(&["host:9100"], Source::Either);
            cases.push(case("host network", Place::Host, to, expect));
        }
    }
    check(&rig.lab, "host-network endpoints", &cases);
}

// B-106: a renamed or renumbered port of a slice takes effect. B-097: ports are matched by name and
// protocol, so a slice of another name serves nothing.
// B-103: the same address with two port numbers is two endpoints. B-096: of two slices.
#[test]
fn ports_renamed_and_renumbered() {
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    let built = |name: &str| service("svc", 94).twins(name, 80, Some(30_094)).object();
    let slices = |name: &str, port| {
        let ports = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
        let ports = ports.map(|(suffix, protocol)| (format!("{name}-{suffix}"), protocol, port));
        let ports: Vec<_> =
            ports.iter().map(|(n, protocol, p)| (n.as_str(), *protocol, *p)).collect();
        let pods = |family| [endpoint(Place::Pod(0), family)];
        Family::BOTH.map(|f| slice_object(slice("svc", f, &ports, pods(f)))).to_vec()
    };
    let reached = |rig: &Rig, title: &str, servers: &[&str]| {
        let expect = |source| match servers {
            [] => Expect::Refused,
            _ => answer(servers, source),
        };
        let cases = [
            case(title, Place::Pod(1), To::ClusterIp(94, 80), expect(Source::Kept)),
            case(title, Place::Outside, To::Node(30_094), expect(Source::Masqueraded)),
        ];
        check(&rig.lab, title, &cases);
    };
    rig.start([vec![built("http")], slices("http", 8080)].concat());
    reached(&rig, "as made", &["pod-0:8080"]);
    rig.set(slices("http", 8443));
    reached(&rig, "renumbered", &["pod-0:8443"]);
    rig.set(slices("web", 8443));
    reached(&rig, "renamed in the slices only", &[]);
    rig.set(vec![built("web")]);
    reached(&rig, "renamed in the service too", &["pod-0:8443"]);
    let mut more = slices("web", 5353);
    for object in &mut more {
        if let Object::EndpointSlice(slice) = object {
            let slice = std::sync::Arc::make_mut(slice);
            slice.name.name = format!("{}-more", slice.name.name).into();
        }
    }
    rig.set(more);
    reached(&rig, "two numbers", &["pod-0:8443", "pod-0:5353"]);
}
