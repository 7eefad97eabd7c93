//! The whole process in a cluster whose nodes are drained one after the other, as cilium/cilium#40227
//! reports it: 2 500 Services, 40 000 endpoints on 1 000 nodes, so that each drain changes a slice of 40
//! Services, and each return does.
//!
//! A Service beside them is changed last in each step, and dialled until its new endpoint answers: what
//! is measured ends with a packet, not with what the agent says.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kubeweir::model::{Endpoint, EndpointSlice};
use kubeweir::testing::ApiServer;
use kubeweir::testing::lab::Netns;
use socket2::SockRef;

use crate::cluster::{self, Size};
use crate::process::{Site, put, slice};
use crate::report::{Table, ms, percentile};

const SIZE: Size = Size { services: 2_500, endpoints: 16 };
const NODES: u32 = 1_000;
/// The Service that is dialled, and its two endpoints, one at a time.
const PROBE: u32 = SIZE.services;
const ENDPOINTS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 168, 10, 2), Ipv4Addr::new(192, 168, 10, 3)];
/// Pause between two dials: the resolution.
const PAUSE: Duration = Duration::from_micros(500);
/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(300);

fn node_of(pod: u32) -> u32 {
    pod % NODES
}

/// The slice of a service while this node has no pods.
fn without(index: u32, drained: Option<u32>) -> Vec<EndpointSlice> {
    let pods = index * SIZE.endpoints..(index + 1) * SIZE.endpoints;
    let there = pods.filter(|pod| Some(node_of(*pod)) != drained);
    let endpoints = there.map(|pod| Endpoint {
        node: Some(format!("node-{}", node_of(pod)).into()),
        ..cluster::pod(pod)
    });
    vec![cluster::slice(index, 0, endpoints.collect())]
}

fn probe(at: usize) -> EndpointSlice {
    let endpoint = Endpoint { address: ENDPOINTS[at].into(), ..cluster::pod(0) };
    cluster::slice(PROBE, 0, vec![endpoint])
}

/// Answers each connection with one byte, and leaves the end to the client.
fn serve(netns: &Netns, at: usize) {
    let address = SocketAddr::new(ENDPOINTS[at].into(), 8080);
    netns.assign(address.ip()).expect("ip works");
    let listener = netns.run(|| TcpListener::bind(address)).expect("a free port");
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let _ = client.write_all(&[u8::try_from(at).expect("two of them")]);
            let _ = client.read(&mut [0]);
        }
    });
}

fn dial() -> Option<u8> {
    let to = SocketAddr::new(IpAddr::V4(cluster::cluster_ip(PROBE)), 80);
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(1)).ok()?;
    let mut byte = [0];
    stream.read_exact(&mut byte).ok()?;
    // A reset: thousands of connections in TIME_WAIT would answer new ones of the same ports.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok()?;
    Some(byte[0])
}

/// Dials until this endpoint answers.
fn reach(at: usize) {
    let end = Instant::now() + PATIENCE;
    while dial() != u8::try_from(at).ok() {
        assert!(Instant::now() < end, "no packet reaches {}", ENDPOINTS[at]);
        sleep(PAUSE);
    }
}

/// From the first write and from the last one to packets.
fn step(server: &ApiServer, node: u32, drained: bool) -> (Duration, Duration) {
    let services =
        (0..SIZE.endpoints * SIZE.services / NODES).map(|n| (n * NODES + node) / SIZE.endpoints);
    let start = Instant::now();
    for index in services {
        without(index, drained.then_some(node)).iter().for_each(|one| server.put(&slice(one)));
    }
    let at = usize::from(drained);
    server.put(&slice(&probe(at)));
    let written = Instant::now();
    reach(at);
    (start.elapsed(), written.elapsed())
}

/// Prints what drains cost.
pub fn run() {
    let site = Site::start_on(&[], |server| {
        put(server, SIZE.services, |index| without(index, None));
        put_probe(server);
    });
    site.netns.ip("route add 10.64.0.0/10 dev lo").expect("ip works");
    (0..ENDPOINTS.len()).for_each(|at| serve(&site.netns, at));
    site.netns.run(|| reach(0));
    let (started, before) = (site.cpu(), site.memory("VmRSS"));
    let begin = Instant::now();
    let (mut all, mut last) = (Vec::new(), Vec::new());
    site.netns.run(|| {
        for node in 0..NODES {
            for drained in [true, false] {
                let (from_first, from_last) = step(&site.server, node, drained);
                all.push(from_first);
                last.push(from_last);
                site.server.drop_history();
            }
        }
    });
    let elapsed = begin.elapsed().as_secs_f64();
    let slices = all.len() * (1 + (SIZE.endpoints * SIZE.services / NODES) as usize);
    let cpu = (site.cpu() - started).as_secs_f64();
    let mut times = Table::new(
        "Drains: API write to packets, 2500 x 16 endpoints on 1000 nodes, 41 slices a step",
        &["from", "p50 ms", "p99 ms", "most ms", "steps"],
    );
    for (what, times_of) in [("the first write", &mut all), ("the last write", &mut last)] {
        let count = times_of.len().to_string();
        let cells = [50, 99, 100].map(|hundredths| ms(percentile(times_of, hundredths)));
        times.row(&[vec![what.to_owned()], cells.to_vec(), vec![count]].concat());
    }
    times.print();
    let mut cost = Table::new(
        "Drains: the agent",
        &[
            "start to rules in force ms",
            "CPU s of it",
            "slices written",
            "in s",
            "CPU s",
            "us a slice",
            "resident MiB before",
            "after",
            "peak",
        ],
    );
    cost.row(&[
        site.synced.as_millis().to_string(),
        format!("{:.2}", started.as_secs_f64()),
        slices.to_string(),
        format!("{elapsed:.0}"),
        format!("{cpu:.1}"),
        format!("{:.0}", cpu * 1e6 / slices as f64),
        before,
        site.memory("VmRSS"),
        site.memory("VmHWM"),
    ]);
    cost.print();
}

fn put_probe(server: &ApiServer) {
    server.put(&crate::process::service(&cluster::service(PROBE)));
    server.put(&slice(&probe(0)));
}
