//! Three nodes, an API server, and a desk.
//!
//! ```text
//!  desk (API server, kubectl kubeweir) ── veth ── node-a, node-b, node-c (an agent each)
//! ```

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use kubeweir::testing::api_server::Execution;
use kubeweir::testing::lab::{Agent, Netns};
use kubeweir::testing::{ApiServer, slowed};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];

/// How long anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Where the API server is; every node has a route to it.
pub const DESK: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 1);

/// The shape of kubeadm's ConfigMap.
const KUBEADM: &str = include_str!("../data/config/kubeadm.yaml");

/// What a command did.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// Ended like this and said this.
    #[track_caller]
    pub fn is(&self, code: i32, sentences: &[&str]) -> &Said {
        let text = format!("{}{}", self.stdout, self.stderr);
        for sentence in sentences {
            assert!(text.contains(sentence), "no {sentence:?} in:\n{text}");
        }
        assert_eq!(self.code, code, "{text}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// How a container is.
#[derive(Debug, Clone)]
enum Container {
    Runs,
    /// The runtime cannot run anything in it.
    Broken(String),
    /// What is run there does not end before the test.
    Silent,
    /// It has another program in the place of ours.
    Foreign,
}

pub struct Cluster {
    pub server: ApiServer,
    pub nodes: HashMap<&'static str, Arc<Netns>>,
    desk: Netns,
    directory: TempDir,
    agents: HashMap<&'static str, Agent>,
    containers: Arc<Containers>,
}

/// How those are that do not simply run, by node.
#[derive(Default)]
struct Containers {
    by_node: Mutex<HashMap<String, Container>>,
    changed: Condvar,
}

impl Containers {
    fn set(&self, node: &str, container: Container) {
        self.by_node.lock().unwrap().insert(node.to_owned(), container);
        self.changed.notify_all();
    }

    fn get(&self, node: &str) -> Container {
        self.by_node.lock().unwrap().get(node).cloned().unwrap_or(Container::Runs)
    }

    /// Comes back when it is another one.
    fn wait_while_silent(&self, node: &str) {
        let silent = |by_node: &mut HashMap<String, Container>| {
            matches!(by_node.get(node), Some(Container::Silent))
        };
        drop(self.changed.wait_while(self.by_node.lock().unwrap(), silent).unwrap());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The server ends with those that it runs programs for.
        for node in NODES {
            self.containers.set(node, Container::Runs);
        }
    }
}

impl Cluster {
    /// Three nodes whose agents have synced the Services of `tests/inspect/manifests`.
    pub fn start() -> Cluster {
        Cluster::start_with(|_, _| {})
    }

    /// The same with a changed configuration of each node.
    pub fn start_with(change: impl Fn(&str, &mut Value)) -> Cluster {
        Cluster::start_preloaded(change, |_, _| Vec::new())
    }

    /// The same with a shell script that runs on a node whenever its agent is about to commit, as
    /// `tests/agent/meddler.rs` says it, while the file `meddling` is there.
    pub fn start_meddled(node: &str, script: &str) -> Cluster {
        let unowned =
            |_: &str, config: &mut Value| config["kubeweir"]["tableOwnership"] = false.into();
        Cluster::start_preloaded(unowned, |meddled, directory| match meddled == node {
            true => preload(directory, script),
            false => Vec::new(),
        })
    }

    /// `variables`: of a node's agent, by the directory for files.
    fn start_preloaded(
        change: impl Fn(&str, &mut Value),
        variables: impl Fn(&str, &Path) -> Vec<String>,
    ) -> Cluster {
        let desk = Netns::new("desk").unwrap();
        desk.ip(&format!("addr add {DESK}/32 dev lo")).unwrap();
        let nodes: HashMap<&str, Arc<Netns>> =
            NODES.into_iter().zip(1..).map(|(name, n)| (name, linked(&desk, name, n))).collect();
        let server = desk.run(|| ApiServer::start(IpAddr::V4(DESK)).unwrap());
        let directory = TempDir::new().unwrap();
        let path = directory.path();
        symlink(env!("CARGO_BIN_EXE_kubeweir"), path.join("kube-proxy")).unwrap();
        server.write_kubeconfig(path).unwrap();
        let containers = Arc::default();
        let mut cluster =
            Cluster { server, nodes, desk, directory, agents: HashMap::new(), containers };
        cluster.furnish();
        for node in NODES {
            let variables = variables(node, cluster.files());
            cluster.start_agent(node, variables, |config| change(node, config));
        }
        cluster.wait("every agent's first sync", |cluster| {
            NODES.into_iter().all(|node| cluster.is_synced(node))
        });
        cluster
    }

    /// Objects, pods, and who runs programs in them.
    fn furnish(&self) {
        for (node, n) in NODES.into_iter().zip(1..) {
            self.server.put(&self::node(node, n));
            self.server.put_pod(pod(node));
        }
        for object in manifests() {
            match object["kind"].as_str() {
                Some("Node") => {}
                Some("Pod") => self.server.put_pod(object),
                _ => self.server.put(&object),
            }
        }
        let nodes = self.nodes.clone();
        let containers = Arc::clone(&self.containers);
        self.server.execute(Arc::new(move |execution: &Execution| {
            let node = execution.pod.strip_prefix("kubeweir-").expect("a pod of an agent");
            let mut command = Command::new(env!("CARGO_BIN_EXE_kubeweir"));
            containers.wait_while_silent(node);
            match containers.get(node) {
                Container::Broken(reason) => return Err(std::io::Error::other(reason)),
                Container::Runs | Container::Silent => drop(command.args(&execution.command[1..])),
                Container::Foreign => {
                    command = Command::new("sh");
                    command.args(["-c", "echo 'error: no such command' >&2; exit 3"]);
                }
            }
            assert_eq!(execution.command[0], "kubeweir");
            nodes[node].run(|| command.output())
        }));
    }

    fn start_agent(
        &mut self,
        node: &'static str,
        variables: Vec<String>,
        change: impl FnOnce(&mut Value),
    ) {
        let mut config: Value = serde_saphyr::from_str(KUBEADM).unwrap();
        config["clientConnection"]["kubeconfig"] = json!(self.path("kubeconfig"));
        config["clusterCIDR"] = "10.244.0.0/16".into();
        config["mode"] = "nftables".into();
        // Of namespaces; sysctls of the machine are left alone.
        for limit in ["maxPerCore", "min"] {
            config["conntrack"][limit] = 0.into();
        }
        for timeout in ["tcpCloseWaitTimeout", "tcpEstablishedTimeout"] {
            config["conntrack"][timeout] = "0s".into();
        }
        change(&mut config);
        let file = self.path(&format!("{node}.conf"));
        fs::write(&file, config.to_string()).unwrap();
        let mut args = variables;
        args.push(self.path("kube-proxy").display().to_string());
        args.push(format!("--config={}", file.display()));
        args.push(format!("--hostname-override={node}"));
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let log = File::create(self.path(&format!("{node}.log"))).unwrap();
        let agent = Agent::start(&self.nodes[node], Path::new("env"), &args, &log).unwrap();
        self.agents.insert(node, agent);
    }

    fn is_synced(&self, node: &str) -> bool {
        let run =
            || Command::new(env!("CARGO_BIN_EXE_kubeweir")).args(["status", "-o", "json"]).output();
        let status: Value =
            serde_json::from_slice(&self.nodes[node].run(run).unwrap().stdout).unwrap_or_default();
        // All Services of the manifests; and IPv6, which has none and comes after.
        status["families"]["IPv4"]["services"].as_u64().is_some_and(|count| count >= 6)
            && status["families"]["IPv4"]["dirty"] == 0
            && status["families"]["IPv6"]["attached"] == true
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// `kubectl kubeweir` at the desk.
    pub fn ask(&self, args: &[&str]) -> Said {
        let kubeconfig = self.path("kubeconfig").display().to_string();
        self.run(&[args, &["--kubeconfig", &kubeconfig]].concat(), &[])
    }

    /// The same with nothing but these arguments and variables.
    pub fn run(&self, args: &[&str], variables: &[(&str, &str)]) -> Said {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-kubeweir"));
        command.args(args).env_remove("KUBECONFIG").envs(variables.iter().copied());
        said(self.desk.run(|| command.output()).unwrap())
    }

    /// Another program at the desk.
    pub fn run_program(&self, program: &str, args: &[&str]) -> Said {
        said(self.desk.run(|| Command::new(program).args(args).output()).unwrap())
    }

    /// The directory with `kubeconfig`.
    pub fn files(&self) -> &Path {
        self.directory.path()
    }

    /// Stops the agent in the middle of whatever it does: it is there and does nothing.
    pub fn freeze(&self, node: &str) {
        self.signal(node, Signal::SIGSTOP);
    }

    /// Lets it go on.
    pub fn thaw(&self, node: &str) {
        self.signal(node, Signal::SIGCONT);
    }

    fn signal(&self, node: &str, signal: Signal) {
        let pid = i32::try_from(self.agents[node].pid()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Ends the agent; its pod says so.
    pub fn end(&mut self, node: &'static str) {
        self.agents.remove(node).expect("it runs").terminate(SOON).expect("it ends in time");
        let mut pod = pod(node);
        pod["status"]["containerStatuses"] = json!([{
            "name": "kube-proxy", "image": "", "imageID": "", "ready": false, "restartCount": 4,
            "state": { "waiting": { "reason": "CrashLoopBackOff" } },
            "lastState": { "terminated": { "exitCode": 1 } },
        }]);
        self.server.put_pod(pod);
    }

    /// The runtime of a node runs nothing, for this reason.
    pub fn break_runtime(&self, node: &str, reason: &str) {
        self.containers.set(node, Container::Broken(reason.to_owned()));
    }

    /// What is run on a node does not end, until it is another container or the test ends.
    pub fn silence(&self, node: &str) {
        self.containers.set(node, Container::Silent);
    }

    /// A node's pod has another program.
    pub fn swap_program(&self, node: &str) {
        self.containers.set(node, Container::Foreign);
    }

    #[track_caller]
    pub fn wait(&self, what: &str, done: impl Fn(&Cluster) -> bool) {
        let deadline = Instant::now() + slowed(SOON);
        while !done(self) {
            let log =
                |node| fs::read_to_string(self.path(&format!("{node}.log"))).unwrap_or_default();
            let logs = || NODES.map(|node| format!("{node}:\n{}", log(node))).join("\n");
            assert!(Instant::now() < deadline, "{what} does not come\n{}", logs());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The objects of `tests/inspect/manifests`.
pub fn manifests() -> Vec<Value> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inspect/manifests");
    let of = |file: &str| -> Vec<Value> {
        let text = fs::read_to_string(directory.join(file)).unwrap();
        serde_saphyr::from_multiple(&text).unwrap()
    };
    ["cluster.yaml", "services.yaml"].into_iter().flat_map(of).collect()
}

/// The n-th node.
pub fn node(name: &str, n: u8) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/os": "linux", "rack": name } },
        "spec": { "podCIDRs": [format!("10.244.{n}.0/24")] },
        "status": { "addresses": [{ "type": "InternalIP", "address": format!("10.200.{n}.2") }] },
    })
}

/// Builds what runs a script before each commit; the variables that make an agent take it.
fn preload(directory: &Path, script: &str) -> Vec<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/agent/meddler.c");
    let library = directory.join("meddler.so");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    let built = compiler.status().expect("cc; see DEBIAN_BUILD_PACKAGES in the Makefile");
    assert!(built.success());
    let (program, switch) = (directory.join("meddler"), directory.join("meddling"));
    fs::write(&program, format!("[ -e {} ] || exit 0\n{script}\n", switch.display())).unwrap();
    let meddled = directory.join("meddled");
    [("LD_PRELOAD", library), ("MEDDLER", program), ("MEDDLED", meddled)]
        .map(|(name, path)| format!("{name}={}", path.display()))
        .to_vec()
}

fn said(output: Output) -> Said {
    Said {
        code: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// A node's namespace and its way to the desk.
fn linked(desk: &Netns, name: &str, n: u8) -> Arc<Netns> {
    let node = Netns::new(name).unwrap();
    desk.ip(&format!(
        "link add to{n} type veth peer name eth0 netns {}\n\
         addr add 10.200.{n}.1/24 dev to{n}\nlink set to{n} up\n",
        node.path()
    ))
    .unwrap();
    node.ip(&format!(
        "addr add 10.200.{n}.2/24 dev eth0\nlink set eth0 up\nroute add default via 10.200.{n}.1\n"
    ))
    .unwrap();
    Arc::new(node)
}

/// The agent's pod of a node, as the chart makes it.
pub fn pod(node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": "kube-system", "name": format!("kubeweir-{node}"),
            "labels": { "app.kubernetes.io/name": "kubeweir" },
        },
        "spec": { "nodeName": node, "hostNetwork": true, "containers": [{
            "name": "kube-proxy", "env": [{ "name": "TOKEN", "value": "s3cret" }],
        }] },
        "status": {
            "phase": "Running",
            "containerStatuses": [{
                "name": "kube-proxy", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": { "running": {} },
            }],
        },
    })
}
