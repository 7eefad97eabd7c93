//! The whole process against an API server on a real socket: memory, latency, churn.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use kubeweir::model::{EndpointSlice, Service};
use kubeweir::netlink::Monitor;
use kubeweir::testing::ApiServer;
use kubeweir::testing::lab::{Agent, Netns};
use serde_json::{Value, json};

use crate::cluster::{self, NODE, Size};
use crate::load::SIZES;
use crate::report::{Table, percentile, us};

/// How long a first sync may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Quiet time before memory counts as settled.
const SETTLED: Duration = Duration::from_secs(2);
/// How long each rate of churn lasts.
const CHURN: Duration = Duration::from_secs(5);
/// Names another program to measure: any kube-proxy takes these flags.
const AGENT: &str = "KUBEWEIR_BENCH_AGENT";
/// `USER_HZ`: `/proc/PID/stat` counts in hundredths of a second on every Linux architecture.
const TICKS: f64 = 100.0;

/// An agent in a namespace of its own, in sync with its API server.
pub struct Site {
    /// The API server.
    pub server: ApiServer,
    agent: Agent,
    monitor: Monitor,
    /// From the start of the process to rules in force.
    pub synced: Duration,
    _directory: tempfile::TempDir,
    /// Where it runs.
    pub netns: Netns,
}

impl Site {
    fn start(size: Size) -> Site {
        Site::start_with(size, &[])
    }

    /// With more flags.
    pub fn start_with(size: Size, flags: &[&str]) -> Site {
        let slices = |index| size.slices(index);
        Site::start_on(flags, |server| put(server, size.services, slices))
    }

    /// With these objects beside the Node.
    pub fn start_on(flags: &[&str], objects: impl FnOnce(&ApiServer)) -> Site {
        let netns = Netns::new("process").expect("a network namespace (root is needed)");
        netns.ip("addr add 192.168.10.1/32 dev lo").expect("ip works");
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let server = netns.run(|| ApiServer::start(loopback)).expect("a free port");
        server.put(&node());
        objects(&server);
        let directory = tempfile::tempdir().expect("a directory");
        let kubeconfig = server.write_kubeconfig(directory.path()).expect("written");
        let log = File::create(directory.path().join("log")).expect("a file");
        let arguments = [
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={NODE}"),
            "--proxy-mode=nftables".into(),
            "--cluster-cidr=100.64.0.0/10".into(),
            "--conntrack-max-per-core=0".into(),
            "--conntrack-min=0".into(),
            "--conntrack-tcp-timeout-established=0s".into(),
            "--conntrack-tcp-timeout-close-wait=0s".into(),
        ]
        .into_iter()
        .chain(flags.iter().map(|&flag| flag.to_owned()))
        .map(OsString::from)
        .collect::<Vec<_>>();
        let mut monitor = netns.visit(|| Monitor::open(0)).expect("notifications");
        let start = Instant::now();
        let program =
            std::env::var_os(AGENT).map_or(env!("CARGO_BIN_EXE_kubeweir").into(), PathBuf::from);
        let agent = Agent::start(&netns, &program, &arguments, &log).expect("it starts");
        let attached = || {
            let listed = netns.feed("nft", &["list", "chains"], "").expect("nft works");
            listed.matches("hook postrouting").count() >= 2
        };
        while !attached() {
            assert!(start.elapsed() < PATIENCE, "no first sync");
            sleep(Duration::from_millis(20));
        }
        let synced = start.elapsed();
        while monitor.wait(SETTLED).expect("readable").is_some() {}
        Site { server, agent, monitor, synced, _directory: directory, netns }
    }

    /// Lines of `/proc/PID/status` in MiB.
    pub fn memory(&self, field: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent.pid()));
        let status = status.expect("the agent runs");
        let line = status.lines().find(|line| line.starts_with(field)).expect("Linux has it");
        let kib: f64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("kB");
        format!("{:.1}", kib / 1024.0)
    }

    /// User and system time so far, with that of programs it ran.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.agent.pid()));
        let stat = stat.expect("the agent runs");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split(' ').collect();
        let ticks: f64 = fields[12..16].iter().filter_map(|t| t.parse::<f64>().ok()).sum();
        Duration::from_secs_f64(ticks / TICKS)
    }

    /// Context switches of all threads so far: an idle process has none.
    fn switches(&self) -> u64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.agent.pid())).expect("it runs");
        let of = |thread: fs::DirEntry| -> u64 {
            let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
            let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
            lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
        };
        threads.flatten().map(of).sum()
    }

    fn replace(&self, size: Size, index: u32, replaced: bool) {
        let mut one = size.slices(index).remove(0);
        if replaced {
            *one.endpoints.last_mut().expect("endpoints") = cluster::pod(4_000_000 + index);
        }
        self.server.put(&slice(&one));
    }
}

/// Prints memory and idle cost.
pub fn memory() {
    let mut table = Table::new(
        "The process",
        &[
            "services x endpoints",
            "start to rules in force ms",
            "resident MiB",
            "of it anonymous",
            "peak",
            "CPU s in 5 s idle",
            "wake-ups in 5 s idle",
        ],
    );
    let empty = Size { services: 0, endpoints: 0 };
    for size in [empty].into_iter().chain(SIZES) {
        let site = Site::start(size);
        // Until free memory was given back (`agent/subscribers.rs`).
        sleep(Duration::from_secs(4));
        let (cpu, switches) = (site.cpu(), site.switches());
        sleep(Duration::from_secs(5));
        table.row(&[
            size.to_string(),
            site.synced.as_millis().to_string(),
            site.memory("VmRSS"),
            site.memory("RssAnon"),
            site.memory("VmHWM"),
            format!("{:.2}", (site.cpu() - cpu).as_secs_f64()),
            (site.switches() - switches).to_string(),
        ]);
    }
    table.print();
}

/// Prints the time from the API server's write to the kernel's notification of the commit.
pub fn api() {
    let mut table = Table::new(
        "API write to committed, over TLS",
        &["services x endpoints", "p50 us", "p99 us", "samples"],
    );
    for services in [100, 10_000] {
        let size = Size { services, endpoints: 10 };
        let mut site = Site::start(size);
        let mut times = Vec::new();
        for i in 0..500 {
            let start = Instant::now();
            site.replace(size, i / 2 * 7_919 % services, i % 2 == 0);
            site.monitor.wait(PATIENCE).expect("readable").expect("a commit");
            times.push(start.elapsed());
            while site.monitor.wait(Duration::from_millis(2)).expect("readable").is_some() {}
        }
        let samples = times.len().to_string();
        let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
        table.row(&[size.to_string(), us(p50), us(p99), samples]);
    }
    table.print();
}

/// Prints what a steady stream of changes costs.
pub fn churn() {
    let size = Size { services: 10_000, endpoints: 10 };
    let mut table = Table::new(
        "Churn at 10000 x 10: one endpoint replaced at a time",
        &[
            "changes a second asked for",
            "made",
            "CPU s of the agent a second",
            "us a change",
            "resident MiB after",
        ],
    );
    let site = Site::start(size);
    for rate in [10, 100, 1_000] {
        let (cpu, start) = (site.cpu(), Instant::now());
        let mut made = 0;
        while start.elapsed() < CHURN {
            site.replace(size, made / 2 * 7_919 % size.services, made % 2 == 0);
            made += 1;
            let due = Duration::from_secs_f64(f64::from(made) / f64::from(rate));
            sleep(due.saturating_sub(start.elapsed()));
        }
        let elapsed = start.elapsed().as_secs_f64();
        sleep(Duration::from_millis(200));
        let cpu = (site.cpu() - cpu).as_secs_f64();
        table.row(&[
            rate.to_string(),
            format!("{:.0}", f64::from(made) / elapsed),
            format!("{:.3}", cpu / elapsed),
            format!("{:.0}", cpu * 1e6 / f64::from(made)),
            site.memory("VmRSS"),
        ]);
    }
    table.print();
}

/// Puts so many services and their slices.
pub fn put(server: &ApiServer, services: u32, slices: impl Fn(u32) -> Vec<EndpointSlice>) {
    for index in 0..services {
        server.put(&service(&cluster::service(index)));
        slices(index).iter().for_each(|one| server.put(&slice(one)));
    }
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE },
        "spec": { "podCIDRs": ["100.64.0.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.10.1" }] },
    })
}

/// A Service as an API server has it.
pub fn service(service: &Service) -> Value {
    let address = service.cluster_ips[0];
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": *service.name.name, "namespace": *service.name.namespace },
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ipFamilies": ["IPv4"],
            "ports": [{ "name": "http", "protocol": "TCP", "port": service.ports[0].port }],
        },
    })
}

/// A slice as an API server has it.
pub fn slice(slice: &EndpointSlice) -> Value {
    let endpoints: Vec<Value> = slice
        .endpoints
        .iter()
        .map(|endpoint| {
            json!({
                "addresses": [endpoint.address],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": endpoint.node.as_deref(),
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": *slice.name.name, "namespace": *slice.name.namespace,
            "labels": { "kubernetes.io/service-name": *slice.service.name },
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{ "name": "http", "protocol": "TCP", "port": slice.ports[0].port }],
    })
}
