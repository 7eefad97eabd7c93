//! What a look at the kernel's flows costs when there are many.
//!
//! Flows are made by sending, from two sockets to every port of two addresses; all of them are UDP
//! and untranslated, so that whatever is to be deleted is what nobody serves.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use kubeweir::conntrack::{Entry, Reconciliation, Scope, ServedPort, Within};
use kubeweir::model::{Family, Protocol};
use kubeweir::netlink::conntrack::Conntrack;
use kubeweir::testing::lab::Netns;

use crate::report::{Table, ms, percentile};

const PORTS: u16 = 50_000;
const LOOKS: usize = 10;
/// What is ended at most in one go.
const CONNECTIONS: usize = 1000;
const BUSY: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 2);

/// Prints the table.
pub fn run() {
    let netns = Netns::new("flows").expect("a network namespace (root is needed)");
    // Nothing is tracked before a rule asks for it.
    let rules = "table ip t {
        chain c {
            type filter hook output priority 0
            ct state new accept
        }
    }";
    netns.nft(rules).expect("nft works");
    // Longer than all of this takes.
    netns.sysctl("net/netfilter/nf_conntrack_udp_timeout", "3600").expect("a setting");
    netns.run(|| {
        for address in [BUSY, OTHER] {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
            for port in 1..=PORTS {
                // What nobody listens to is refused, and that is told to the next send.
                let _ = socket.send_to(b"x", (address, port));
            }
        }
        measure();
    });
}

/// Open connections with one endpoint.
fn connect() -> Vec<TcpStream> {
    let listener = TcpListener::bind("127.0.1.4:0").expect("a port");
    let to = listener.local_addr().expect("an address");
    let pairs = (0..CONNECTIONS).map(|_| {
        let here = TcpStream::connect(to).expect("a connection");
        [here, listener.accept().expect("its other end").0]
    });
    pairs.flatten().collect()
}

fn measure() {
    let mut table = Table::new(
        "A look at 100 000 flows",
        &["what is asked for", "flows delivered", "p50 ms", "p99 ms"],
    );
    let mut conntrack = Conntrack::open().expect("a ctnetlink socket");
    let udp = Scope::of(Protocol::Udp);
    let nobody = IpAddr::from([127, 0, 1, 3]);
    for (name, scope) in [
        ("all of UDP", udp),
        ("UDP to one address, half of all", Scope { destination: Some(BUSY.into()), ..udp }),
        ("UDP to one address, none", Scope { destination: Some(nobody), ..udp }),
        ("unanswered TCP, none", Scope { unreplied: true, ..Scope::of(Protocol::Tcp) }),
    ] {
        let mut delivered = 0;
        let mut times: Vec<Duration> = (0..LOOKS)
            .map(|_| {
                let start = Instant::now();
                let (found, _) = conntrack.flows(Family::V4, scope, |_| true).expect("flows");
                delivered = found.len();
                start.elapsed()
            })
            .collect();
        table.row(&[
            name.to_owned(),
            delivered.to_string(),
            ms(percentile(&mut times, 50)),
            ms(percentile(&mut times, 99)),
        ]);
    }
    let endpoint = IpAddr::from([10, 244, 0, 9]);
    for (name, within) in [
        ("what an endpoint answers, none", Within::AnsweredBy(endpoint)),
        ("all, as IPv6 has it", Within::All),
    ] {
        let mut times: Vec<Duration> = (0..LOOKS)
            .map(|_| {
                let start = Instant::now();
                let found = conntrack.entries(Family::V4, within, |_| false).expect("entries");
                assert!(found.0.is_empty());
                start.elapsed()
            })
            .collect();
        table.row(&[
            name.to_owned(),
            "0".to_owned(),
            ms(percentile(&mut times, 50)),
            ms(percentile(&mut times, 99)),
        ]);
    }
    let served = |address: Ipv4Addr, port| ServedPort {
        family: Family::V4,
        protocol: Protocol::Udp,
        addresses: vec![address.into()],
        port,
        node_port: None,
        endpoints: HashSet::from([SocketAddr::from(([10, 244, 0, 9], 53))]),
    };
    let thousand: Vec<ServedPort> = (1..=1000).map(|port| served(OTHER, port)).collect();
    let nowhere = HashSet::new();
    let reconciliation = Reconciliation::new(&thousand, &[], &nowhere);
    let start = Instant::now();
    let cleaned =
        conntrack.reconcile(Family::V4, &reconciliation, |_| ()).expect("a reconciliation");
    let took = ms(start.elapsed());
    let deleted = cleaned.deleted.to_string();
    table.row(&["a look that deletes".to_owned(), deleted, took, String::new()]);
    let connections = connect();
    let endpoint = connections[0].peer_addr().expect("a peer").ip();
    let start = Instant::now();
    let ended = conntrack.end(endpoint, &Entry::is_connection, &|_| ()).expect("an ending");
    assert_eq!(ended, (CONNECTIONS, false));
    let took = ms(start.elapsed());
    let name = "connections with an endpoint, ended with their sockets";
    table.row(&[name.to_owned(), ended.0.to_string(), took, String::new()]);
    table.print();
}
