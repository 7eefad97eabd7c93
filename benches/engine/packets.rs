//! What a new flow through a Service costs, against one hand-written rule and another layout.
//!
//! Every packet is the first of a flow: UDP from a raw socket, with a source port of its own, to a
//! ClusterIP. Client, rules and endpoints are in one namespace, so that `sendto` returns when the
//! packet has passed every hook and lies in the endpoint's queue: its time is the first packet's
//! latency. All variants take turns within one run.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use kubeweir::engine::Engine;
use kubeweir::model::{Change, Family, Kind, Object, Protocol};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::sync::Synchronizer;
use kubeweir::testing::lab::Netns;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::cluster::{self, Size};
use crate::report::{Table, percentile};
use crate::rig::engine;

/// Flows of one turn, and turns: enough for a p99, few enough for the flow table.
const FLOWS: u16 = 4_000;
const TURNS: u16 = 5;
/// The client, one of the pods' addresses.
const CLIENT: Ipv4Addr = Ipv4Addr::new(100, 127, 255, 1);
/// The port all endpoints listen on.
const ENDPOINT_PORT: u16 = 8080;

/// A namespace with rules in it, a client and the endpoints.
pub struct Scene {
    name: String,
    netns: Netns,
    raw: Socket,
    server: UdpSocket,
    /// Of every flow so far.
    pub times: Vec<Duration>,
    spent: Duration,
    _proxy: Option<Synchronizer<NetlinkKernel>>,
}

impl Scene {
    fn new(name: String) -> Scene {
        let netns = Netns::new("packets").expect("a network namespace (root is needed)");
        netns.ip("route add local 100.64.0.0/10 dev lo").expect("ip works");
        netns.ip("route add local 10.64.0.0/10 dev lo").expect("ip works");
        let (raw, server) = netns.run(|| {
            let raw = Type::from(libc::SOCK_RAW);
            let raw = Socket::new(Domain::IPV4, raw, Some(libc::IPPROTO_RAW.into()));
            let server = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ENDPOINT_PORT));
            (raw.expect("CAP_NET_RAW"), server.expect("a free port"))
        });
        server.set_nonblocking(true).expect("an option every socket has");
        let times = Vec::with_capacity(usize::from(FLOWS * TURNS));
        Scene { name, netns, raw, server, times, spent: Duration::ZERO, _proxy: None }
    }

    /// Rules as text.
    fn scripted(name: String, script: &str) -> Scene {
        let scene = Scene::new(name);
        scene.netns.nft(script).expect("nft takes it");
        scene
    }

    /// Our rules. Service 0 has so many endpoints, every other one has ten.
    fn ours(services: u32, endpoints: u32) -> Scene {
        Scene::of(engine(), Size { services, endpoints })
    }

    /// The same with an engine of one's own.
    pub fn of(engine: Engine, size: Size) -> Scene {
        let Size { services, endpoints } = size;
        let mut scene = Scene::new(format!("kubeweir, {services} services"));
        let kernel = scene.netns.run(NetlinkKernel::open).expect("nf_tables");
        let mut proxy = Synchronizer::new(engine, kernel);
        let udp = |change| match change {
            Change::Replace(kind, objects) => {
                Change::Replace(kind, objects.into_iter().map(as_udp).collect())
            }
            change => change,
        };
        for change in (Size { services, endpoints: 10 }).lists().map(udp) {
            proxy.engine.apply(change);
        }
        proxy.engine.apply(Change::Delete(Kind::EndpointSlice, cluster::slice(0, 0, vec![]).name));
        for slice in (Size { services: 1, endpoints }).slices(0) {
            proxy.engine.apply(Change::Apply(as_udp(slice.into())));
        }
        scene.netns.run(|| {
            for family in Family::BOTH {
                let report = proxy.sync(family, Duration::ZERO);
                assert!(report.is_none_or(|report| report.result.is_ok()));
            }
        });
        scene._proxy = Some(proxy);
        scene
    }

    /// Dials once more; no two turns may have the same number.
    pub fn turn(&mut self, turn: u16) {
        let to = SocketAddrV4::new(cluster::cluster_ip(0), 80);
        let target = SockAddr::from(to);
        let mut answer = [0; 64];
        for flow in 0..FLOWS {
            let packet = packet(1024 + turn * FLOWS + flow, to);
            let start = Instant::now();
            self.raw.send_to(&packet, &target).expect("sent");
            let elapsed = start.elapsed();
            assert!(self.server.recv(&mut answer).is_ok(), "{}: a packet is lost", self.name);
            self.times.push(elapsed);
            self.spent += elapsed;
        }
    }
}

fn as_udp(object: Object) -> Object {
    match object {
        Object::Service(service) => {
            let mut service = (*service).clone();
            service.ports[0].protocol = Protocol::Udp;
            service.into()
        }
        Object::EndpointSlice(slice) => {
            let mut slice = (*slice).clone();
            slice.ports[0].protocol = Protocol::Udp;
            slice.into()
        }
        object => object,
    }
}

/// An IPv4 packet with a UDP datagram of 4 bytes and no UDP checksum. The kernel fills in the
/// header's checksum and identification.
fn packet(source_port: u16, to: SocketAddrV4) -> [u8; 32] {
    let mut packet = [0; 32];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&32_u16.to_be_bytes());
    packet[8] = 64;
    packet[9] = Protocol::Udp.number();
    packet[12..16].copy_from_slice(&CLIENT.octets());
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[20..22].copy_from_slice(&source_port.to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[24..26].copy_from_slice(&12_u16.to_be_bytes());
    packet
}

/// One rule, as a person would write it.
fn hand_written() -> String {
    format!("table ip hand {{\n{}}}\n", chain_with_the_rule())
}

fn chain_with_the_rule() -> String {
    format!(
        "chain out {{ type nat hook output priority -100; \
         ip daddr {} udp dport 80 dnat to {}:{ENDPOINT_PORT}; }}\n",
        cluster::cluster_ip(0),
        cluster::pod(0).address,
    )
}

/// The same rule where kube-proxy's nftables mode has its own: behind base chains in five hooks.
fn hand_written_in_upstreams_hooks() -> String {
    let filter = |name: &str, hook: &str, priority: &str| {
        format!(
            "chain {name} {{ type filter hook {hook} priority {priority}; ct state new jump nothing; }}\n"
        )
    };
    format!(
        "table ip hand {{\nchain nothing {{ }}\n{}{}{}{}\
         chain in {{ type nat hook prerouting priority -100; jump nothing; }}\n\
         chain post {{ type nat hook postrouting priority 100; jump nothing; }}\n{}}}\n",
        filter("before-in", "prerouting", "-110"),
        filter("before-out", "output", "-110"),
        filter("input", "input", "0"),
        filter("output", "output", "0"),
        chain_with_the_rule(),
    )
}

/// A verdict map to one chain a service, each with an anonymous map of its endpoints.
fn chain_per_service(services: u32, endpoints: u32) -> String {
    let mut chains = String::new();
    let mut entries = Vec::new();
    for index in 0..services {
        let count = if index == 0 { endpoints } else { 10 };
        let list: Vec<String> = (0..count)
            .map(|j| format!("{j} : {} . {ENDPOINT_PORT}", cluster::pod(index * 10 + j).address))
            .collect();
        chains += &format!(
            "chain s{index} {{ meta l4proto udp dnat ip to numgen random mod {count} map {{ {} }}; }}\n",
            list.join(", ")
        );
        entries.push(format!("{} . udp . 80 : goto s{index}", cluster::cluster_ip(index)));
    }
    format!(
        "table ip other {{\n{chains}\
         map services {{ type ipv4_addr . inet_proto . inet_service : verdict; \
         elements = {{ {} }}\n}}\n\
         chain out {{ type nat hook output priority -100; \
         ip daddr . meta l4proto . th dport vmap @services; }}\n}}\n",
        entries.join(", ")
    )
}

/// Prints the table.
pub fn run() {
    let mut table = Table::new(
        "New flows through one Service",
        &[
            "layout",
            "endpoints",
            "new flows a second",
            "first packet p50 us",
            "p99 us",
            "against the hand-written rule (p50)",
        ],
    );
    for endpoints in [1, 3, 10, 100, 1_000] {
        let mut scenes = vec![
            Scene::scripted("one hand-written dnat rule".into(), &hand_written()),
            Scene::scripted(
                "the same rule behind kube-proxy's base chains".into(),
                &hand_written_in_upstreams_hooks(),
            ),
            Scene::ours(10, endpoints),
            Scene::ours(10_000, endpoints),
            // nft itself needs minutes for 10 000 of these.
            Scene::scripted(
                "a chain and an anonymous map a service, 1000 services".into(),
                &chain_per_service(1_000, endpoints),
            ),
        ];
        for turn in 0..TURNS {
            scenes.iter_mut().for_each(|scene| scene.turn(turn));
        }
        let hand = percentile(&mut scenes[0].times, 50).as_secs_f64();
        for scene in &mut scenes {
            let p50 = percentile(&mut scene.times, 50).as_secs_f64();
            let p99 = percentile(&mut scene.times, 99).as_secs_f64();
            let flows = scene.times.len() as f64 / scene.spent.as_secs_f64();
            table.row(&[
                scene.name.clone(),
                endpoints.to_string(),
                format!("{flows:.0}"),
                format!("{:.2}", p50 * 1e6),
                format!("{:.2}", p99 * 1e6),
                format!("{:+.1} %", (p50 / hand - 1.0) * 100.0),
            ]);
        }
    }
    table.print();
}
