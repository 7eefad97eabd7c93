//! A node of the lab on which the chart's pod runs from the image, with an API server outside.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec};
use kubeweir::model::{Family, Protocol};
use kubeweir::testing::ApiServer;
use kubeweir::testing::lab::{
    Agent, CLUSTER_CIDR, Dial, Lab, LabError, NODE_IP, NODE_NAME, OUTSIDE_IP, Place, PodNetwork,
    cluster_ip, pod_ip,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::archive::Archive;
use super::bundle::{self, Volumes};
use super::helm;

/// Port of the Service.
pub const PORT: u16 = 80;
/// NodePort of the Service.
const NODE_PORT: u16 = 30080;
/// How long a container may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long one try of a dial may take, where there are many.
const TRY: Duration = Duration::from_millis(300);

/// crun does nothing with control groups here, but looks which kind the host has; it is shown one
/// that it knows. The pid namespace ends the container with whatever ends this process.
const RUNTIME: &str =
    "mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec crun --cgroup-manager=disabled \"$@\"";

/// kubeadm's DaemonSet: what it has, not how kubeadm writes it (reference section 10.2).
const KUBEADM: &str = include_str!("kubeadm.yaml");
const KUBEADM_CONFIG: &str = include_str!("../data/config/kubeadm.yaml");

pub struct Node {
    lab: Lab,
    server: ApiServer,
    pod: PodSpec,
    directory: tempfile::TempDir,
    started: AtomicUsize,
}

/// A running container; killed when dropped, which lasts until it has ended.
pub struct Pod {
    log: PathBuf,
    agent: Option<Agent>,
}

/// The namespaces, and an API server outside of the node.
fn cluster() -> (Lab, ApiServer) {
    let lab = Lab::new(PodNetwork::Routed).unwrap();
    let server = lab.outside.run(|| ApiServer::start(OUTSIDE_IP.v4)).unwrap();
    server.demand_token("of-the-service-account");
    (lab, server)
}

/// Fields that fit the lab. The limit of connections is the whole machine's: a network namespace
/// cannot write it. The OOM score is the kubelet's to lower: here it stays what it is.
fn configuration() -> String {
    let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    format!(
        "{{clusterCIDR: '{},{}', oomScoreAdj: {}, conntrack: {{maxPerCore: 0}}}}",
        CLUSTER_CIDR.v4,
        CLUSTER_CIDR.v6,
        score.trim(),
    )
}

impl Node {
    /// The chart's pod, with these values and the test's own.
    pub fn new(values: &str) -> Node {
        let (lab, server) = cluster();
        let rendered = helm::render(&format!(
            "apiServer: {{url: '{}'}}\nconfig: {}\n{values}",
            server.url(),
            configuration(),
        ));
        Node::with(lab, server, &rendered.one("DaemonSet"), &rendered.one("ConfigMap"))
    }

    /// kubeadm's pod, with the image exchanged.
    pub fn kubeadm() -> Node {
        let (lab, server) = cluster();
        let set: DaemonSet = serde_saphyr::from_str(KUBEADM).unwrap();
        // Its kubeconfig is as the chart's; its configuration is changed to fit the lab.
        let rendered = helm::render(&format!("apiServer: {{url: '{}'}}", server.url()));
        let mut map: ConfigMap = rendered.one("ConfigMap");
        let mut config: Value = serde_saphyr::from_str(KUBEADM_CONFIG).unwrap();
        let wanted: Value = serde_saphyr::from_str(&configuration()).unwrap();
        config.as_object_mut().unwrap().extend(wanted.as_object().unwrap().clone());
        map.data.as_mut().unwrap().insert("config.conf".to_owned(), config.to_string());
        Node::with(lab, server, &set, &map)
    }

    fn with(lab: Lab, server: ApiServer, set: &DaemonSet, map: &ConfigMap) -> Node {
        let pod = set.spec.clone().template.spec.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let node = Node { lab, server, pod, directory, started: 0.into() };
        Archive::of_this_build().unpack(&node.at("root"));
        node.write_volumes(map);
        node.put_objects();
        node
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write_volumes(&self, map: &ConfigMap) {
        fs::create_dir(self.at("config")).unwrap();
        for (name, text) in map.data.iter().flatten() {
            fs::write(self.at("config").join(name), text).unwrap();
        }
        fs::create_dir(self.at("account")).unwrap();
        fs::write(self.at("account/ca.crt"), self.server.ca_pem()).unwrap();
        fs::write(self.at("account/token"), "of-the-service-account").unwrap();
        // As the kubelet leaves them: root of the container is not root of the host for everything.
        fs::set_permissions(self.at("account/token"), fs::Permissions::from_mode(0o644)).unwrap();
        File::create(self.at("xtables.lock")).unwrap();
        fs::create_dir(self.at("empty")).unwrap();
    }

    fn volumes(&self) -> Volumes {
        let places = self.pod.volumes.iter().flatten().map(|volume| {
            let place = match volume.host_path.as_ref().map(|host| host.path.as_str()) {
                None => self.at("config"),
                // A lock of its own: the machine's is not the lab's.
                Some("/run/xtables.lock") => self.at("xtables.lock"),
                // The kubelet makes a directory where there is none.
                Some(host) if !Path::new(host).exists() => self.at("empty"),
                Some(host) => PathBuf::from(host),
            };
            (volume.name.clone(), place)
        });
        places.chain([("service-account".to_owned(), self.at("account"))]).collect()
    }

    fn put_objects(&self) {
        self.server.put(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}, "spec": {},
            "status": {"addresses": Family::BOTH
                .map(|family| json!({"type": "InternalIP", "address": NODE_IP[family]}))},
        }));
        self.server.put(&json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": "default", "name": "web"},
            "spec": {
                "type": "NodePort",
                "clusterIP": cluster_ip(0, Family::V4),
                "clusterIPs": [cluster_ip(0, Family::V4)],
                "ipFamilies": ["IPv4"],
                "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "nodePort": NODE_PORT, "targetPort": 8080}],
            },
        }));
        self.move_service_to(0);
    }

    /// Makes one pod the Service's only endpoint.
    pub fn move_service_to(&self, pod: usize) {
        self.server.put(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": "default", "name": "web-1",
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": [{
                "addresses": [pod_ip(pod, Family::V4)],
                "nodeName": NODE_NAME,
                "conditions": {"ready": true, "serving": true, "terminating": false},
            }],
        }));
    }

    /// The main container of the pod.
    pub fn start(&self) -> Pod {
        self.start_with(&[])
    }

    /// The main container with more flags, as the chart's `extraArgs`.
    pub fn start_with(&self, flags: &[&str]) -> Pod {
        let container = &self.pod.containers[0];
        let mut args = command(container);
        args.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self.run(container, &args)
    }

    /// The init container, to its end.
    pub fn run_init(&self) {
        let container = &self.pod.init_containers.as_ref().unwrap()[0];
        self.run(container, &command(container)).wait();
    }

    /// `kube-proxy --cleanup` in the main container.
    pub fn run_cleanup(&self) {
        let args = ["/usr/local/bin/kube-proxy", "--cleanup"].map(str::to_owned);
        self.run(&self.pod.containers[0], &args).wait();
    }

    fn run(&self, container: &Container, args: &[String]) -> Pod {
        let name = format!("container-{}", self.started.fetch_add(1, Ordering::Relaxed));
        let bundle = self.at(&name);
        fs::create_dir(&bundle).unwrap();
        let spec = bundle::spec(container, args, &self.at("root"), &self.volumes());
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let log = bundle.join("log");
        let mut args: Vec<OsString> = [
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            RUNTIME,
            "crun",
            "--root",
        ]
        .map(OsString::from)
        .to_vec();
        args.push(bundle.join("state").into());
        args.extend(["run", "--bundle"].map(OsString::from));
        args.push(bundle.into());
        args.push(name.into());
        let file = File::create(&log).unwrap();
        let agent = Agent::start(&self.lab.node, Path::new("unshare"), &args, &file).unwrap();
        Pod { log, agent: Some(agent) }
    }

    /// Which server answers, if one does in good time.
    pub fn dial(&self, from: Place, to: SocketAddr) -> Option<String> {
        self.ask(from, Dial::new(Protocol::Tcp, to))
    }

    fn ask(&self, from: Place, dial: Dial) -> Option<String> {
        let outcome = self.lab.dial(from, dial, 1).remove(0);
        outcome.answer().map(|answer| answer.server.clone())
    }

    pub fn wait_until(&self, from: Place, to: SocketAddr, server: Option<&str>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(from, Dial::new(Protocol::Tcp, to).timeout(TRY));
            if answer.as_deref() == server {
                return;
            }
            let late = Instant::now() >= deadline;
            assert!(!late, "{to} is served by {answer:?}; {}", self.newest_log());
        }
    }

    /// What the container that was started last says.
    fn newest_log(&self) -> String {
        let newest = self.started.load(Ordering::Relaxed) - 1;
        fs::read_to_string(self.at(&format!("container-{newest}/log"))).unwrap()
    }

    pub fn node_port(&self) -> SocketAddr {
        SocketAddr::new(NODE_IP.v4, NODE_PORT)
    }

    /// nftables tables of the node.
    pub fn tables(&self) -> String {
        self.lab.node.nft("list tables").unwrap()
    }

    /// Waits until both families have a table, which no process owns (`nft` shows the flag).
    pub fn wait_for_plain_tables(&self) {
        let deadline = Instant::now() + PATIENCE;
        // One listing a run: nft 1.0.6 looks for both tables in the family of the last.
        let listing = |family| self.lab.node.nft(&format!("list table {family} kube-proxy"));
        let both = || Ok::<_, LabError>(listing("ip")? + &listing("ip6")?);
        loop {
            match both() {
                Ok(text) if !text.contains("\n\tflags") => return, // those of sets stand deeper
                state => assert!(Instant::now() < deadline, "{state:?} {}", self.newest_log()),
            }
        }
    }

    /// Runs an nft script on the node.
    pub fn nft(&self, script: &str) -> String {
        self.lab.node.nft(script).unwrap()
    }

    /// The sysctl that the test's configuration sets, in seconds.
    pub fn established_timeout(&self) -> String {
        let file = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";
        self.lab.node.run(|| fs::read_to_string(file)).unwrap().trim().to_owned()
    }
}

/// A container's command as the kubelet would expand it.
fn command(container: &Container) -> Vec<String> {
    let command = container.command.iter().flatten();
    command.map(|word| word.replace("$(NODE_NAME)", NODE_NAME)).collect()
}

impl Pod {
    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits for the end, which has to be a good one.
    fn wait(mut self) {
        let log = self.log.clone();
        let status = self.agent.take().unwrap().wait(PATIENCE);
        let text = fs::read_to_string(log).unwrap();
        assert!(status.is_some_and(|status| status.success()), "{status:?}: {text}");
    }

    /// Ends it as the kubelet does.
    pub fn end(mut self) {
        let agent = self.agent.take().unwrap();
        agent.signal_children(Signal::SIGTERM); // crun passes it on
        let status = agent.wait(PATIENCE);
        let ended_in_order = status.is_some_and(|status| status.code() == Some(143));
        assert!(ended_in_order, "{status:?}: {}", self.log());
    }

    /// The program wanted nothing that it was not given.
    pub fn check_no_errors(&self) {
        let log = self.log();
        // Upstream says the same at this level to everyone who leaves it unset, as kubeadm does.
        let upstreams = "nodePortAddresses is unset";
        let worse = |line: &&str| line.starts_with(['E', 'F']) && !line.contains(upstreams);
        let errors: Vec<&str> = log.lines().filter(worse).collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let Some(agent) = self.agent.take() else { return };
        // The first process of the pid namespace: it ends after all others, and unshare after it.
        agent.signal_children(Signal::SIGKILL);
        agent.wait(PATIENCE);
    }
}
