//! A lab's node with the real binary on it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubeweir::kernel::{DumpError, Kernel};
use kubeweir::model::{Family, PerFamily};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::ruleset::Ruleset;
use kubeweir::status::{self, Status};
use kubeweir::testing::lab::{
    Agent, CLUSTER_CIDR, Dial, GATEWAY, Lab, NODE_IP, NODE_NAME, Netns, Place, PodNetwork,
    SECOND_NODE_IP,
};
use kubeweir::testing::normal::{NormalForm, assert_alike, normal_form};
use kubeweir::testing::slowed;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::manifests::cluster;
use crate::scrape::Scrape;

/// How long anything may take: debug builds on busy machines are slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// Where the agent serves metrics, in the node's own namespace.
const METRICS: &str = "127.0.0.1:10249";

/// The node, its manifests and its agent.
pub struct Node {
    pub lab: Arc<Lab>,
    pub directory: TempDir,
    agent: Option<Agent>,
}

impl Node {
    /// A lab whose agent is not started.
    pub fn new() -> Node {
        let lab = Arc::new(Lab::new(PodNetwork::Routed).expect("a lab (this needs root)"));
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("manifests")).unwrap();
        let node = Node { lab, directory, agent: None };
        node.write("cluster", &cluster());
        node
    }

    pub fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// Replaces a file of manifests at once, as configuration management does.
    pub fn write(&self, file: &str, objects: &[Value]) {
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
        let draft = self.directory.path().join("draft");
        fs::write(&draft, list.to_string()).unwrap();
        fs::rename(draft, self.manifests().join(format!("{file}.json"))).unwrap();
    }

    /// Starts the agent; one that runs is killed first, as by SIGKILL.
    pub fn start(&mut self, more: &[&str]) {
        self.kill();
        self.agent = Some(self.start_in(&self.lab.node, more));
    }

    /// Starts the agent and waits until everything is in force.
    pub fn start_and_settle(&mut self, more: &[&str]) {
        self.start(more);
        self.settled();
    }

    /// Starts a second agent on the node; it is killed when dropped, as by SIGKILL.
    pub fn start_another(&self, more: &[&str]) -> Agent {
        self.start_in(&self.lab.node, more)
    }

    fn start_in(&self, netns: &Netns, more: &[&str]) -> Agent {
        let log = self.directory.path().join("log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        let cluster = format!("--cluster-cidr={},{}", CLUSTER_CIDR.v4, CLUSTER_CIDR.v6);
        let mut args: Vec<OsString> = vec!["run".into(), "--manifests".into()];
        args.push(self.manifests().into());
        args.extend(["--node", NODE_NAME, &cluster, "-v", "2"].map(OsString::from));
        args.extend(more.iter().map(OsString::from));
        let program = Path::new(env!("CARGO_BIN_EXE_kubeweir"));
        Agent::start(netns, program, &args, &log).expect("setpriv starts the agent")
    }

    /// Starts the agent through another program that executes it, in its own place or as a child.
    pub fn start_by(&self, program: &str, first: &[&str]) -> Wrapped {
        let args = first.iter().map(OsString::from);
        let cluster = format!("--cluster-cidr={},{}", CLUSTER_CIDR.v4, CLUSTER_CIDR.v6);
        let args: Vec<OsString> = args
            .chain([env!("CARGO_BIN_EXE_kubeweir").into()])
            .chain(["run", "--node", NODE_NAME, &cluster, "--manifests"].map(OsString::from))
            .chain([self.manifests().into()])
            .collect();
        let log = self.directory.path().join("log");
        let log = File::options().create(true).append(true).open(log).unwrap();
        Wrapped(Agent::start(&self.lab.node, Path::new(program), &args, &log).unwrap())
    }

    /// Runs a sub-command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubeweir"));
        self.lab.node.run(|| command.args(arguments).output().unwrap())
    }

    pub fn kill(&mut self) {
        drop(self.agent.take());
    }

    pub fn pid(&self) -> u32 {
        self.agent.as_ref().expect("the agent was started").pid()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The agent's state; `None` while it does not listen.
    pub fn status(&self) -> Option<Status> {
        serde_json::from_str(&get(&self.lab.node, status::PATH)?).ok()
    }

    /// The agent's metrics. The page asks the kernel, which answers nobody while it commits: on a busy machine
    /// the server may give an exchange up.
    pub fn metrics(&self) -> Scrape {
        let mut page = None;
        self.wait("a page of metrics", || {
            page = get(&self.lab.node, "/metrics");
            page.is_some()
        });
        Scrape::parse(&page.expect("it was waited for"))
    }

    /// A counter's or gauge's value; 0 while there is no such series.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.metrics().value(name, labels).unwrap_or(0.0)
    }

    /// Waits for a condition; how long it took.
    pub fn wait(&self, what: &str, condition: impl FnMut() -> bool) -> Duration {
        wait(what, condition, || self.log())
    }

    /// Waits until all of the manifests is in force in both families.
    pub fn settled(&self) -> Duration {
        self.wait("all manifests in force", || is_settled(&self.lab.node))
    }

    /// Waits until a dial from a place is answered by this server.
    pub fn answered_by(&self, from: Place, dial: Dial, server: &str) -> Duration {
        let dial = dial.timeout(Duration::from_millis(200));
        self.wait(&format!("{server} behind {}", dial.to), || {
            let outcome = self.lab.dial(from, dial, 1).remove(0);
            outcome.answer().is_some_and(|answer| answer.server == server)
        })
    }

    pub fn tables(&self) -> PerFamily<Ruleset> {
        tables(&self.lab.node)
    }

    /// `None` while they keep changing.
    pub fn try_tables(&self) -> Option<PerFamily<Ruleset>> {
        try_tables(&self.lab.node).ok()
    }

    /// Compares the tables with what the same program makes of the same manifests where there was
    /// nothing before.
    pub fn like_fresh(&self, more: &[&str]) {
        let elsewhere = Netns::new("fresh").unwrap();
        for ips in [NODE_IP, SECOND_NODE_IP, GATEWAY] {
            elsewhere
                .ip(&format!("addr add {} dev lo\naddr add {} dev lo", ips.v4, ips.v6))
                .unwrap();
        }
        let agent = self.start_in(&elsewhere, more);
        wait("a fresh start", || is_settled(&elsewhere), || self.log());
        drop(agent);
        let (found, fresh) = (forms(&self.lab.node), forms(&elsewhere));
        for family in Family::BOTH {
            assert_alike(&found[family], &fresh[family], family);
        }
    }
}

/// An agent that another program started.
pub struct Wrapped(Agent);

impl Wrapped {
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Waits until it ends by itself.
    pub fn end(self) -> ExitStatus {
        self.0.wait(PATIENCE).expect("it ends by itself")
    }

    /// Kills the agent and waits for the program around it.
    pub fn stop(self) {
        self.0.signal_children(Signal::SIGKILL);
        assert!(self.0.terminate(PATIENCE).is_some(), "the program around the agent ends");
    }
}

/// The tables of a namespace.
pub fn tables(netns: &Netns) -> PerFamily<Ruleset> {
    try_tables(netns).expect("a dump")
}

/// The tables of a namespace, unless they keep changing while they are read.
fn try_tables(netns: &Netns) -> Result<PerFamily<Ruleset>, DumpError> {
    netns.run(|| {
        let mut kernel = NetlinkKernel::open().expect("a netlink socket");
        Ok(PerFamily { v4: kernel.dump(Family::V4)?, v6: kernel.dump(Family::V6)? })
    })
}

fn forms(netns: &Netns) -> PerFamily<NormalForm> {
    let tables = tables(netns);
    PerFamily::from_fn(|family| normal_form(&tables[family]))
}

pub fn wait(what: &str, mut condition: impl FnMut() -> bool, log: impl Fn() -> String) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < slowed(PATIENCE),
            "waited for {what}; the agent says:\n{}",
            log()
        );
        std::thread::sleep(LOOK);
    }
    start.elapsed()
}

/// Whether the agent of a namespace has nothing left to do.
fn is_settled(netns: &Netns) -> bool {
    let status = get(netns, status::PATH).and_then(|body| serde_json::from_str(&body).ok());
    status.is_some_and(|status: Status| {
        let done = |f: &status::FamilyStatus| {
            f.summary.attached && f.summary.dirty == 0 && f.summary.totals.services > 0
        };
        status.backlog == 0 && status.families.len() == 2 && status.families.values().all(done)
    })
}

/// A page of the metrics server.
pub fn get(netns: &Netns, path: &str) -> Option<String> {
    netns.run(|| {
        let address: SocketAddr = METRICS.parse().expect("a literal address");
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(slowed(PATIENCE))).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: node\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
    })
}
