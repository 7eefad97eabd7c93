//! A node, an API server on it, and the files that a DaemonSet mounts.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::time::{Duration, Instant};

use kubeweir::model::{Family, Kind, Protocol};
use kubeweir::testing::lab::{
    Agent, CLUSTER_CIDR, Dial, Lab, NODE_IP, NODE_NAME, Netns, Outcome, Place, PodNetwork,
    cluster_ip,
};
use kubeweir::testing::{ApiServer, slowed};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http_client::{self, Answer};
use crate::objects;
use crate::scrape::Scrape;

/// How long the agent may take for anything, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);
/// How long one try may take while a change is waited for.
const TRY: Duration = Duration::from_millis(250);

pub const HEALTHZ: u16 = 10256;
pub const METRICS: u16 = 10249;

/// The shape of kubeadm's ConfigMap.
pub const KUBEADM: &str = include_str!("../data/config/kubeadm.yaml");

pub enum Ground {
    /// A namespace that has the node's addresses and nothing else.
    Bare(Netns),
    /// With pods, a second node and an outside.
    Lab(Lab),
}

pub struct Site {
    pub ground: Ground,
    pub server: ApiServer,
    pub directory: TempDir,
}

impl Site {
    /// A node without network, its API server with the Node and the ServiceCIDR.
    pub fn bare() -> Site {
        let netns = Netns::new("node").unwrap();
        for family in Family::BOTH {
            netns.ip(&format!("addr add {} dev lo", NODE_IP[family])).unwrap();
        }
        Site::on(Ground::Bare(netns))
    }

    /// A node with pods and neighbours.
    pub fn lab() -> Site {
        Site::on(Ground::Lab(Lab::new(PodNetwork::Routed).unwrap()))
    }

    fn on(ground: Ground) -> Site {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let server = ground.node().run(|| ApiServer::start(loopback).unwrap());
        // While the server is away, no client may be given its port as its own.
        ground.node().sysctl("net/ipv4/ip_local_port_range", "11000 29999").unwrap();
        server.put(&objects::node());
        server.put(&objects::service_cidr());
        let directory = TempDir::new().unwrap();
        symlink(env!("CARGO_BIN_EXE_kubeweir"), directory.path().join("kube-proxy")).unwrap();
        Site { ground, server, directory }
    }

    pub fn node(&self) -> &Netns {
        self.ground.node()
    }

    pub fn lab_ref(&self) -> &Lab {
        match &self.ground {
            Ground::Lab(lab) => lab,
            Ground::Bare(_) => panic!("a bare node has no neighbours"),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Writes kubeadm's configuration with this kubeconfig, in nftables mode, with sysctls that a
    /// namespace cannot write left alone, and with `change` on top; returns `--config=…`.
    pub fn config(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut config: Value = serde_saphyr::from_str(KUBEADM).unwrap();
        let kubeconfig = self.server.write_kubeconfig(self.directory.path()).unwrap();
        config["clientConnection"]["kubeconfig"] = json!(kubeconfig);
        config["clusterCIDR"] = format!("{},{}", CLUSTER_CIDR.v4, CLUSTER_CIDR.v6).into();
        config["mode"] = "nftables".into();
        let conntrack = &mut config["conntrack"];
        for limit in ["maxPerCore", "min"] {
            conntrack[limit] = 0.into();
        }
        for timeout in ["tcpCloseWaitTimeout", "tcpEstablishedTimeout"] {
            conntrack[timeout] = "0s".into();
        }
        // What tests look at in the log is said at 2.
        config["logging"]["verbosity"] = 2.into();
        change(&mut config);
        let path = self.path("config.conf");
        fs::write(&path, config.to_string()).unwrap();
        format!("--config={}", path.display())
    }

    /// Starts the agent as kubeadm's DaemonSet does and waits until it has synced both families.
    pub fn start(&self) -> Proxy {
        self.start_config(|_| {})
    }

    /// The same with a changed configuration.
    pub fn start_config(&self, change: impl FnOnce(&mut Value)) -> Proxy {
        let config = self.config(change);
        let proxy = self.launch(&[&config, &format!("--hostname-override={NODE_NAME}")]);
        self.wait(&proxy, "the first sync", || self.is_synced());
        proxy
    }

    /// Starts the agent with these arguments.
    pub fn launch(&self, arguments: &[&str]) -> Proxy {
        let program = self.path("kube-proxy");
        self.launch_by(&program, &arguments.iter().map(OsString::from).collect::<Vec<_>>())
    }

    /// Starts something that becomes the agent.
    pub fn launch_by(&self, program: &Path, arguments: &[OsString]) -> Proxy {
        let log = self.path("log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let skip = fs::metadata(&log).unwrap().len();
        let agent = Agent::start(self.node(), program, arguments, &file).unwrap();
        Proxy { agent, log, skip: usize::try_from(skip).unwrap() }
    }

    /// Runs the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.path("kube-proxy"));
        command.args(arguments).env_remove("KUBERNETES_SERVICE_HOST");
        self.node().run(|| command.output().unwrap())
    }

    /// Whether both families' tables have their base chains.
    pub fn is_synced(&self) -> bool {
        Family::BOTH.into_iter().all(|family| self.table(family).contains("hook postrouting"))
    }

    /// The family's table as nft lists it; empty if there is none.
    pub fn table(&self, family: Family) -> String {
        let name = if family == Family::V4 { "ip" } else { "ip6" };
        self.node().feed("nft", &["list", "table", name, "kube-proxy"], "").unwrap_or_default()
    }

    /// Waits for a condition.
    pub fn wait(&self, proxy: &Proxy, what: &str, condition: impl FnMut() -> bool) {
        self.wait_until(Instant::now() + slowed(SOON), proxy, what, condition);
    }

    /// Waits for a condition until then.
    pub fn wait_until(
        &self,
        end: Instant,
        proxy: &Proxy,
        what: &str,
        mut condition: impl FnMut() -> bool,
    ) {
        while !condition() {
            let running = proxy.agent.is_running();
            assert!(running && Instant::now() < end, "waited for {what}; log:\n{}", proxy.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Dials the `n`-th ClusterIP of [`objects::service`].
    pub fn dial_cluster_ip(&self, from: Place, protocol: Protocol, n: usize) -> Outcome {
        let to = SocketAddr::new(cluster_ip(n, Family::V4), objects::port(protocol));
        self.dial(from, protocol, to)
    }

    /// Dials once; whoever answers may be late.
    pub fn dial(&self, from: Place, protocol: Protocol, to: SocketAddr) -> Outcome {
        self.lab_ref().dial(from, Dial::new(protocol, to), 1).remove(0)
    }

    /// Waits until the `n`-th ClusterIP is answered by this server, over TCP from a pod.
    pub fn wait_served(&self, proxy: &Proxy, n: usize, server: &str) {
        self.wait_outcome(proxy, Place::Pod(1), n, |outcome| {
            outcome.answer().is_some_and(|answer| answer.server == server)
        });
    }

    /// Waits until dialling the `n`-th ClusterIP over TCP ends so.
    pub fn wait_outcome(
        &self,
        proxy: &Proxy,
        from: Place,
        n: usize,
        wanted: impl Fn(&Outcome) -> bool,
    ) {
        let to = SocketAddr::new(cluster_ip(n, Family::V4), objects::port(Protocol::Tcp));
        let dial = Dial::new(Protocol::Tcp, to).timeout(TRY);
        let what = format!("an outcome of {to} from {from:?}");
        self.wait(proxy, &what, || wanted(&self.lab_ref().dial(from, dial, 1)[0]));
    }

    /// Whether something listens on a port of an address of the node.
    pub fn listens(&self, address: IpAddr, port: u16) -> bool {
        let to = SocketAddr::new(address, port);
        self.node().run(|| std::net::TcpStream::connect_timeout(&to, slowed(TRY)).is_ok())
    }

    /// GET from a port of the node's loopback address.
    pub fn get(&self, port: u16, path: &str) -> Answer {
        self.get_at(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), path)
    }

    /// GET from the node.
    pub fn get_at(&self, address: SocketAddr, path: &str) -> Answer {
        self.node().run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(http_client::get(address, path))
        })
    }

    pub fn json(&self, port: u16, path: &str) -> Value {
        serde_json::from_slice(&self.get(port, path).body).unwrap()
    }

    pub fn scrape(&self) -> Scrape {
        Scrape::parse(self.get(METRICS, "/metrics").text())
    }

    /// Waits for an Event with this reason.
    pub fn wait_event(&self, reason: &str) -> Value {
        let find = |server: &ApiServer| {
            server.events().into_iter().find(|event| event["reason"] == reason)
        };
        self.server.wait(&format!("Event {reason}"), SOON, |server| find(server).is_some());
        find(&self.server).unwrap()
    }

    /// Waits until the agent watches a kind.
    pub fn wait_watched(&self, kind: Kind) {
        self.server.wait("a watch", SOON, |server| server.open_streams(kind) == 1);
    }
}

impl Ground {
    pub fn node(&self) -> &Netns {
        match self {
            Ground::Bare(netns) => netns,
            Ground::Lab(lab) => &lab.node,
        }
    }
}

/// A started agent; killed when dropped.
pub struct Proxy {
    pub agent: Agent,
    log: PathBuf,
    /// Bytes of the log that were there before.
    skip: usize,
}

impl Proxy {
    /// What it has logged so far, without its flags.
    pub fn log(&self) -> String {
        read_log(&self.log, self.skip)
    }

    /// Waits for a line that has all of these.
    pub fn wait_log(&self, parts: &[&str]) -> String {
        let end = Instant::now() + slowed(SOON);
        loop {
            let log = self.log();
            let found = log.lines().find(|line| parts.iter().all(|part| line.contains(part)));
            if let Some(line) = found {
                return line.to_owned();
            }
            assert!(Instant::now() < end, "waited for {parts:?} in the log:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until its own first syncs are over: what is in the kernel before may be another agent's.
    pub fn wait_synced(&self) {
        for family in Family::BOTH {
            self.wait_log(&["\"Synced\"", &family.to_string(), "full=true"]);
        }
    }

    /// Waits until it ends by itself; returns its exit code and its log.
    pub fn end(self) -> (Option<i32>, String) {
        let (log, skip) = (self.log.clone(), self.skip);
        let status = self.agent.wait(SOON);
        let log = read_log(&log, skip);
        let status = status.unwrap_or_else(|| panic!("it does not end:\n{log}"));
        (status.code(), log)
    }

    /// Sends SIGTERM.
    pub fn terminate(self) -> ExitStatus {
        self.agent.terminate(SOON).expect("SIGTERM ends it")
    }
}

fn read_log(path: &Path, skip: usize) -> String {
    let bytes = fs::read(path).unwrap();
    let text = String::from_utf8_lossy(&bytes[skip..]);
    text.lines()
        .filter(|line| !line.contains("FLAG: --"))
        .fold(String::new(), |text, line| text + line + "\n")
}
