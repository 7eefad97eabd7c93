//! Which flows are stale, case by case.

use std::sync::Arc;

use super::*;
use crate::model::{Endpoint, ObjectName, ServicePort, ServiceType, TrafficPolicy};

fn at(text: &str) -> SocketAddr {
    text.parse().expect("a literal address")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// A flow that a client sent to `to` and that `from` answers.
fn flow(to: &str, from: &str) -> Flow {
    let client = if at(to).is_ipv4() { "10.9.0.1:4000" } else { "[fd09::1]:4000" };
    Flow {
        protocol: Protocol::Udp,
        replied: true,
        original: Tuple { source: at(client), destination: at(to) },
        reply: Tuple { source: at(from), destination: at(client) },
        zone: None,
        id: None,
    }
}

/// DNS at 10.96.0.10:53 and, as VIP and external IP, at 198.51.100.1 and 203.0.113.1; NodePort 30053.
fn dns(endpoints: &[&str]) -> ServedPort {
    ServedPort {
        family: Family::V4,
        protocol: Protocol::Udp,
        addresses: ["10.96.0.10", "198.51.100.1", "203.0.113.1"].map(ip).to_vec(),
        port: 53,
        node_port: Some(30053),
        endpoints: endpoints.iter().copied().map(at).collect(),
    }
}

fn node() -> HashSet<IpAddr> {
    ["192.0.2.1", "127.0.0.1"].map(ip).into_iter().collect()
}

fn stale(current: &[ServedPort], previous: &[ServedPort], to: &str, from: &str) -> bool {
    Reconciliation::new(current, previous, &node()).is_stale(&flow(to, from))
}

// B-218, B-219, B-220, B-221, B-225: the endpoint decides, on every kind of frontend.
#[test]
fn flows_to_frontends_with_endpoints() {
    let ports = [dns(&["10.1.0.2:5353", "10.1.1.2:5353"])];
    for to in ["10.96.0.10:53", "198.51.100.1:53", "203.0.113.1:53", "192.0.2.1:30053"] {
        for (name, from, expected) in [
            ("a serving endpoint", "10.1.0.2:5353", false),
            ("an endpoint that went", "10.1.0.9:5353", true),
            ("an endpoint's former port", "10.1.0.2:53", true),
            ("not translated", to, true),
        ] {
            assert_eq!(stale(&ports, &[], to, from), expected, "{to}: {name}");
        }
    }
}

// B-222 as 1.37 has it, kubernetes#139629: without serving endpoints no flow stays, so that a steady
// sender is refused and reaches the next endpoint there is.
#[test]
fn frontends_without_endpoints() {
    let previous = [dns(&["10.1.0.2:5353"])];
    for to in ["10.96.0.10:53", "198.51.100.1:53", "203.0.113.1:53", "192.0.2.1:30053"] {
        for from in ["10.1.0.2:5353", "10.1.0.9:5353", to] {
            assert!(stale(&[dns(&[])], &[], to, from), "{to} {from}");
            assert!(stale(&[dns(&[])], &previous, to, from), "{to} {from}, formerly served");
        }
    }
}

// B-224, Q-16: what is no service port, or a NodePort's number elsewhere, is kept.
#[test]
fn destinations_of_others() {
    let ports = [dns(&["10.1.0.2:5353"])];
    for (name, to) in [
        ("another port of the ClusterIP", "10.96.0.10:54"),
        ("another address", "10.96.0.11:53"),
        ("the NodePort's number on a remote host", "192.0.2.99:30053"),
        ("the NodePort's number on loopback", "127.0.0.1:30053"),
        ("the service port on the node", "192.0.2.1:53"),
        ("the NodePort's number in the other family", "[fd00::1]:30053"),
    ] {
        assert!(!stale(&ports, &ports, to, to), "{name}, not translated");
        let elsewhere = if at(to).is_ipv4() { "10.5.0.1:99" } else { "[fd05::1]:99" };
        assert!(!stale(&ports, &ports, to, elsewhere), "{name}, translated by somebody else");
    }
}

// A frontend that is gone: flows that were translated go with it, also to an endpoint that it lost
// before, when nobody looked; others are not ours (B-224).
#[test]
fn frontends_gone() {
    let previous = [dns(&["10.1.0.2:5353"])];
    for to in ["10.96.0.10:53", "203.0.113.1:53", "192.0.2.1:30053"] {
        assert!(stale(&[], &previous, to, "10.1.0.2:5353"), "{to}");
        assert!(stale(&[], &previous, to, "10.1.0.9:5353"), "{to}: an endpoint of some time");
        assert!(!stale(&[], &previous, to, to), "{to}: not translated");
    }
    let mut without_external = dns(&["10.1.0.2:5353"]);
    without_external.addresses.truncate(2);
    let current = [without_external];
    assert!(stale(&current, &previous, "203.0.113.1:53", "10.1.0.2:5353"), "external IP removed");
    assert!(!stale(&current, &previous, "10.96.0.10:53", "10.1.0.2:5353"), "ClusterIP kept");
    assert!(!stale(&[], &previous, "192.0.2.99:30053", "10.1.0.2:5353"), "not on this node");
}

#[test]
fn contested_frontends_keep_the_flows_of_both() {
    let ports = [dns(&["10.1.0.2:5353"]), dns(&["10.1.0.3:5353"]), dns(&[])];
    assert!(!stale(&ports, &[], "10.96.0.10:53", "10.1.0.2:5353"));
    assert!(!stale(&ports, &[], "10.96.0.10:53", "10.1.0.3:5353"));
    assert!(stale(&ports, &[], "10.96.0.10:53", "10.1.0.4:5353"));
}

// B-218: IPv6 alike.
#[test]
fn ipv6() {
    let port = ServedPort {
        family: Family::V6,
        protocol: Protocol::Udp,
        addresses: vec![ip("fd96::a")],
        port: 53,
        node_port: None,
        endpoints: [at("[fd01::2]:5353")].into_iter().collect(),
    };
    assert!(!stale(std::slice::from_ref(&port), &[], "[fd96::a]:53", "[fd01::2]:5353"));
    assert!(stale(&[port], &[], "[fd96::a]:53", "[fd01::9]:5353"));
}

fn endpoint(address: &str, ready: bool, serving: bool, terminating: bool) -> Endpoint {
    Endpoint { address: ip(address), ready, serving, terminating, node: None, hints: None }
}

fn slice(ports: Vec<(&str, Protocol, u16)>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let port = |(name, protocol, port): (&str, Protocol, u16)| SlicePort {
        name: Arc::from(name),
        protocol,
        port,
    };
    EndpointSlice {
        name: ObjectName::new("kube-system", "dns-1"),
        service: ObjectName::new("kube-system", "dns"),
        family: Family::V4,
        ports: ports.into_iter().map(port).collect(),
        endpoints,
        trigger_time: None,
    }
}

fn service() -> Service {
    let port = |name: &str, protocol, node_port| ServicePort {
        name: Arc::from(name),
        protocol,
        port: 53,
        node_port,
    };
    Service {
        name: ObjectName::new("kube-system", "dns"),
        created: 0,
        kind: ServiceType::LoadBalancer,
        cluster_ips: vec![ip("10.96.0.10"), ip("fd96::a")],
        ports: vec![port("dns", Protocol::Udp, Some(30053)), port("dns-tcp", Protocol::Tcp, None)],
        external_ips: vec![ip("203.0.113.1"), ip("fd11::1")],
        load_balancer_ips: vec![ip("198.51.100.1")],
        source_ranges: vec![],
        session_affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        end_connections: Default::default(),
    }
}

// B-220, B-223: serving is what counts, and only UDP ports are looked at.
#[test]
fn udp_ports_of_a_service() {
    let endpoints = vec![
        endpoint("10.1.0.2", true, true, false),
        endpoint("10.1.0.3", false, true, true),
        endpoint("10.1.0.4", false, true, false),
        endpoint("10.1.0.5", false, false, true),
    ];
    let ports = vec![("dns", Protocol::Udp, 5353), ("dns-tcp", Protocol::Tcp, 5354)];
    let slice = Arc::new(slice(ports, endpoints));
    let served = |slices: &[Arc<EndpointSlice>], lost: &[Frontend]| Served {
        service: Arc::new(service()),
        slices: slices.iter().cloned().collect(),
        lost: lost.to_vec(),
    };
    let udp = |served: Served| served.ports(Family::V4, Protocol::Udp);
    let with_slice = std::slice::from_ref(&slice);
    let mut expected = dns(&["10.1.0.2:5353", "10.1.0.3:5353", "10.1.0.4:5353"]);
    assert_eq!(udp(served(with_slice, &[])), vec![expected.clone()]);
    let tcp = served(with_slice, &[]).ports(Family::V4, Protocol::Tcp);
    assert_eq!((tcp[0].port, tcp[0].node_port, tcp[0].endpoints.len()), (53, None, 3));
    let v6 = served(with_slice, &[]).ports(Family::V6, Protocol::Udp);
    assert_eq!(v6.len(), 1);
    assert_eq!(v6[0].addresses, vec![ip("fd96::a"), ip("fd11::1")]);
    assert!(v6[0].endpoints.is_empty());
    expected.endpoints.clear();
    assert_eq!(udp(served(&[], &[])), vec![expected.clone()]);

    let frontend = |address, port| Frontend { address, protocol: Protocol::Udp, port };
    let lost = [frontend(Some(ip("203.0.113.1")), 53), frontend(None, 30053)];
    expected.addresses.pop();
    expected.node_port = None;
    assert_eq!(udp(served(&[], &lost)), vec![expected], "what another service has");
}

// C3, B-223: of TCP only what nobody has answered.
#[test]
fn unanswered_tcp() {
    let tcp = |port: ServedPort| ServedPort { protocol: Protocol::Tcp, ..port };
    let judge = |replied, to: &str, from: &str| {
        let ports = [tcp(dns(&["10.1.0.2:5353"])), dns(&["10.1.0.3:5353"])];
        let flow = Flow { protocol: Protocol::Tcp, replied, ..flow(to, from) };
        let node = node();
        let reconciliation = Reconciliation::new(&ports, &[], &node);
        reconciliation.is_stale(&flow)
    };
    for to in ["10.96.0.10:53", "198.51.100.1:53", "203.0.113.1:53", "192.0.2.1:30053"] {
        assert!(judge(false, to, to), "{to}: older than the frontend");
        assert!(judge(false, to, "10.1.0.9:5353"), "{to}: the endpoint is gone");
        assert!(judge(false, to, "10.1.0.3:5353"), "{to}: an endpoint for UDP only");
        assert!(!judge(false, to, "10.1.0.2:5353"), "{to}: will be answered");
        for from in [to, "10.1.0.9:5353", "10.1.0.2:5353"] {
            assert!(!judge(true, to, from), "{to}, {from}: a connection");
        }
    }
    assert!(!judge(false, "10.96.0.11:53", "10.96.0.11:53"), "no service");
}

// The kernel is asked for no more than can be stale.
#[test]
fn scopes() {
    let nowhere = HashSet::new();
    let scopes = |current: &[ServedPort], previous: &[ServedPort]| {
        Reconciliation::new(current, previous, &nowhere).scopes()
    };
    let mut single = dns(&[]);
    single.addresses.truncate(1);
    single.node_port = None;
    let tcp = ServedPort { protocol: Protocol::Tcp, ..single.clone() };
    let cluster_ip = Some(ip("10.96.0.10"));
    let udp_of = |destination| Scope { destination, ..Scope::of(Protocol::Udp) };
    let tcp_of = |destination| Scope { unreplied: true, destination, ..Scope::of(Protocol::Tcp) };
    assert_eq!(scopes(&[], &[]), []);
    assert_eq!(scopes(&[single.clone()], &[]), [udp_of(cluster_ip)]);
    assert_eq!(
        scopes(&[single.clone(), tcp.clone()], &[]),
        [tcp_of(cluster_ip), udp_of(cluster_ip)]
    );
    assert_eq!(scopes(std::slice::from_ref(&tcp), &[dns(&[])]), [tcp_of(None), udp_of(None)]);
    assert_eq!(scopes(&[ServedPort { node_port: Some(30053), ..tcp }], &[]), [tcp_of(None)]);
}
