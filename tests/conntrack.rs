//! UDP flows of the real kernel, in a namespace, with DNAT rules by stock nft.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod netns;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use kubeweir::conntrack::{Reconciliation, Scope, ServedPort, Within};
use kubeweir::model::{Family, Protocol};
use kubeweir::netlink::conntrack::Conntrack;
use kubeweir::testing::lab::Netns;
use kubeweir::testing::slowed;
use netns::{in_netns, run};

/// Every UDP flow.
const UDP: Scope = Scope { protocol: Protocol::Udp, unreplied: false, destination: None };

fn at(text: &str) -> SocketAddr {
    text.parse().expect("a literal address")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("a literal address")
}

/// A UDP server on loopback that answers every datagram while the namespace lives.
fn serve(address: &str) {
    let socket = UdpSocket::bind(at(address)).expect("a free port of the namespace");
    socket.set_read_timeout(Some(slowed(Duration::from_secs(20)))).expect("a timeout");
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if socket.send_to(&buffer[..length], from).is_err() {
                break;
            }
        }
    });
}

/// Sends from a new socket, and waits for the answer if one can come.
fn send(from: &str, to: &str, answered: bool) {
    let socket = UdpSocket::bind(at(from)).expect("a port");
    socket.set_read_timeout(Some(slowed(Duration::from_secs(5)))).expect("a timeout");
    socket.send_to(b"x", at(to)).expect("a route");
    if answered {
        socket.recv_from(&mut [0; 16]).unwrap_or_else(|error| panic!("{to} answers: {error}"));
    }
}

/// Original destination and answering endpoint of every flow, sorted.
fn flows(family: Family) -> Vec<(String, String)> {
    let mut conntrack = Conntrack::open().expect("a ctnetlink socket");
    let (flows, _) = conntrack.flows(family, UDP, |_| true).expect("a list of flows");
    let mut ends: Vec<(String, String)> = flows
        .iter()
        .map(|flow| (flow.original.destination.to_string(), flow.reply.source.to_string()))
        .collect();
    ends.sort();
    ends
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(to, from)| ((*to).to_owned(), (*from).to_owned())).collect()
}

const IPV4_RULES: &str = "
table ip t {
    chain output {
        type nat hook output priority -100;
        ip daddr 10.96.0.10 udp dport 53 udp sport 4001 dnat to 127.0.0.2:5301
        ip daddr 10.96.0.10 udp dport 53 udp sport 4002 dnat to 127.0.0.2:5302
        ip daddr 203.0.113.1 udp dport 53 dnat to 127.0.0.2:5301
        ip daddr 192.0.2.1 udp dport 30053 dnat to 127.0.0.2:5301
        ip daddr 192.0.2.99 udp dport 30053 dnat to 127.0.0.2:5301
        ip daddr 10.96.0.20 udp dport 53 dnat to 127.0.0.2:5301
        ip daddr 10.96.0.30 udp dport 53 dnat to 127.0.0.2:5301
        ip daddr 10.96.0.10 tcp dport 53 dnat to 127.0.0.2:5301
    }
}";

/// Everything below 127/8 and 192.0.2.1 is local; the rest is routed into loopback.
fn ipv4_topology() {
    run(&["ip", "address", "add", "192.0.2.1/32", "dev", "lo"], "");
    run(&["ip", "route", "add", "default", "dev", "lo"], "");
    run(&["nft", "-f", "-"], IPV4_RULES);
    for server in ["127.0.0.2:5301", "127.0.0.2:5302"] {
        serve(server);
    }
}

fn port(address: &[&str], node_port: Option<u16>, endpoints: &[&str]) -> ServedPort {
    ServedPort {
        family: Family::of(&ip(address[0])),
        protocol: Protocol::Udp,
        addresses: address.iter().copied().map(ip).collect(),
        port: 53,
        node_port,
        endpoints: endpoints.iter().copied().map(at).collect(),
    }
}

// B-218, B-219, B-220, B-221, B-222, B-223, B-224: exactly the stale flows are deleted.
#[test]
fn exactly_the_stale_flows_are_deleted() {
    in_netns(|| {
        ipv4_topology();
        send("127.0.0.1:4001", "10.96.0.10:53", true);
        send("127.0.0.1:4002", "10.96.0.10:53", true);
        send("127.0.0.1:4003", "10.96.0.10:53", false);
        send("127.0.0.1:4004", "203.0.113.1:53", true);
        send("127.0.0.1:4005", "192.0.2.1:30053", true);
        send("127.0.0.1:4006", "192.0.2.99:30053", true);
        send("127.0.0.1:4007", "10.96.0.20:53", true);
        send("127.0.0.1:4008", "10.96.0.30:53", true);
        let _server = TcpListener::bind("127.0.0.2:5301").expect("a free port");
        let _connection = TcpStream::connect("10.96.0.10:53").expect("a connection");
        assert_eq!(flows(Family::V4).len(), 8, "UDP flows only");
        let tcp = || run(&["conntrack", "-L", "-p", "tcp"], "");
        assert!(tcp().contains("10.96.0.10"), "a TCP flow to the same address");

        let current = [
            port(&["10.96.0.10", "203.0.113.1"], Some(30053), &["127.0.0.2:5302"]),
            port(&["10.96.0.20"], None, &[]),
        ];
        let node: HashSet<IpAddr> = [ip("192.0.2.1")].into();
        let reconciliation = Reconciliation::new(&current, &[], &node);
        let mut conntrack = Conntrack::open().expect("a ctnetlink socket");
        let cleaned =
            conntrack.reconcile(Family::V4, &reconciliation, |_| ()).expect("a reconciliation");
        assert_eq!(cleaned.failed.len(), 0, "{:?}", cleaned.failed);
        assert_eq!((cleaned.deleted, cleaned.partial), (5, false));
        let kept = pairs(&[
            ("10.96.0.10:53", "127.0.0.2:5302"),
            ("10.96.0.30:53", "127.0.0.2:5301"),
            ("192.0.2.99:30053", "127.0.0.2:5301"),
        ]);
        assert_eq!(flows(Family::V4), kept);
        assert!(tcp().contains("10.96.0.10"), "TCP is never touched");
    });
}

// The flows of a service that is gone end with it; those of others stay.
#[test]
fn flows_of_a_service_that_is_gone() {
    in_netns(|| {
        ipv4_topology();
        send("127.0.0.1:4001", "10.96.0.20:53", true);
        send("127.0.0.1:4002", "10.96.0.30:53", true);
        let previous = [port(&["10.96.0.20"], None, &["127.0.0.2:5301"])];
        let nowhere = HashSet::new();
        let reconciliation = Reconciliation::new(&[], &previous, &nowhere);
        let mut conntrack = Conntrack::open().expect("a ctnetlink socket");
        let cleaned =
            conntrack.reconcile(Family::V4, &reconciliation, |_| ()).expect("a reconciliation");
        assert_eq!(cleaned.deleted, 1);
        assert_eq!(flows(Family::V4), pairs(&[("10.96.0.30:53", "127.0.0.2:5301")]));
    });
}

// A flow that is gone counts as deleted.
#[test]
fn a_flow_that_is_gone_counts_as_deleted() {
    in_netns(|| {
        ipv4_topology();
        let mut conntrack = Conntrack::open().expect("a ctnetlink socket");
        send("127.0.0.1:4002", "10.96.0.10:53", true);
        let (old, _) = conntrack.flows(Family::V4, UDP, |_| true).expect("a list of flows");
        assert_eq!(old.len(), 1);
        for _ in 0..2 {
            let cleaned = conntrack.delete(&old);
            assert_eq!((cleaned.deleted, cleaned.failed.len()), (1, 0));
            assert_eq!(flows(Family::V4), vec![]);
        }
    });
}

// Of each family; the kernel's own comparison of IPv6 addresses is the wrong way round.
#[test]
fn entries_are_asked_for_by_address() {
    let netns = Netns::new("entries").expect("a network namespace (these tests need root)");
    for address in ["192.0.2.1", "192.0.2.2", "fd00::1", "fd00::2"] {
        netns.assign(ip(address)).expect("an address");
    }
    netns.run(|| {
        run(&["ip", "route", "add", "default", "dev", "lo"], "");
        run(&["ip", "-6", "route", "add", "default", "dev", "lo"], "");
        let rules = "table inet t { chain output { type nat hook output priority -100;
            ip daddr 10.96.0.10 dnat ip to 192.0.2.2
            ip6 daddr fd96::a dnat ip6 to fd00::2
        }
        }";
        run(&["nft", "-f", "-"], rules);
        let mut conntrack = Conntrack::open().expect("a ctnetlink socket");
        for (family, [client, other, frontend, endpoint, nobody]) in [
            (Family::V4, ["192.0.2.1", "192.0.2.2", "10.96.0.10", "192.0.2.2", "192.0.2.9"]),
            (Family::V6, ["fd00::1", "fd00::2", "fd96::a", "fd00::2", "fd00::9"]),
        ] {
            let socket = |ip: &str, port| SocketAddr::new(ip.parse().expect("literal"), port);
            let from = [client, other].map(|from| socket(from, 4000).to_string());
            send(&from[0], &socket(frontend, 53).to_string(), false);
            send(&from[1], &socket(client, 5300).to_string(), false);
            for (within, expected) in [
                (Within::All, vec![client, other]),
                (Within::From(ip(client)), vec![client]),
                (Within::From(ip(other)), vec![other]),
                (Within::To(ip(frontend)), vec![client]),
                (Within::AnsweredBy(ip(endpoint)), vec![client]),
                (Within::AnsweredBy(ip(client)), vec![other]),
                (Within::To(ip(nobody)), vec![]),
            ] {
                let (entries, _) = conntrack.entries(family, within, |_| true).expect("entries");
                let mut found: Vec<IpAddr> =
                    entries.iter().map(|entry| entry.original.source.ip()).collect();
                found.sort_unstable();
                let expected: Vec<IpAddr> = expected.into_iter().map(ip).collect();
                assert_eq!(found, expected, "{within:?}");
            }
        }
    });
}

// B-218: IPv6 alike, and a reconciliation of one family leaves the other's flows alone.
#[test]
fn ipv6_flows() {
    let netns = Netns::new("flows").expect("a network namespace (these tests need root)");
    netns.assign(ip("fd00::1")).expect("an address");
    netns.run(|| {
        run(&["ip", "-6", "route", "add", "default", "dev", "lo"], "");
        let rules = "table ip6 t { chain output { type nat hook output priority -100;
            ip6 daddr fd96::a udp dport 53 udp sport 4001 dnat to [fd00::1]:5301
            ip6 daddr fd96::a udp dport 53 dnat to [fd00::1]:5302;
        }
        }";
        run(&["nft", "-f", "-"], rules);
        serve("[fd00::1]:5301");
        serve("[fd00::1]:5302");
        send("[fd00::1]:4001", "[fd96::a]:53", true);
        send("[fd00::1]:4002", "[fd96::a]:53", true);
        let current = [port(&["fd96::a"], None, &["[fd00::1]:5302"])];
        let nowhere = HashSet::new();
        let reconciliation = Reconciliation::new(&current, &[], &nowhere);
        let mut conntrack = Conntrack::open().expect("a ctnetlink socket");
        let v4 =
            conntrack.reconcile(Family::V4, &reconciliation, |_| ()).expect("a reconciliation");
        assert_eq!(v4.deleted, 0);
        let v6 =
            conntrack.reconcile(Family::V6, &reconciliation, |_| ()).expect("a reconciliation");
        assert_eq!(v6.deleted, 1);
        assert_eq!(flows(Family::V6), pairs(&[("[fd96::a]:53", "[fd00::1]:5302")]));
    });
}
