//! The namespaces, the servers in them, and the agent.

use std::ffi::OsString;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{
    Agent, CLUSTER_CIDR, Dial, Lab, NODE_IP, PODS, Place, PodNetwork, REMOTE_NODE_IP, pod_ip,
    remote_pod_ip,
};
use kubeweir::testing::slowed;

pub const PICTURE: &str = "
  pod-0 10.244.0.10 --+
  pod-1 10.244.0.11 --+-- node-a 192.168.10.1 --+-- node-b 192.168.10.2: remote-0 ... 10.244.1.10-12
  pod-2 10.244.0.12 --+   (kubeweir, host:80)   +-- outside 172.20.0.2, 203.0.113.0/24
";

/// What the pods listen on besides the lab's own ports, as the manifests want it.
const PORTS: [u16; 6] = [3550, 5050, 5432, 7000, 7070, 50051];

/// How long the agent may take for anything.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long one try of a dial may take while waiting for a change.
const TRY: Duration = Duration::from_millis(20);

/// How many lines of a chain or map are shown.
const SHOWN: usize = 14;

pub struct Scene {
    pub lab: Lab,
    directory: tempfile::TempDir,
    agent: Option<Agent>,
}

impl Scene {
    pub fn build() -> anyhow::Result<Scene> {
        let lab = Lab::new(PodNetwork::Bridge)?;
        for n in 0..PODS {
            let at = |ip: fn(usize, Family) -> IpAddr| {
                PORTS.map(|port| SocketAddr::new(ip(n, Family::V4), port))
            };
            lab.serve(Place::Pod(n), &format!("pod-{n}"), &at(pod_ip))?;
            lab.serve(Place::RemotePod(n), &format!("remote-{n}"), &at(remote_pod_ip))?;
        }
        lab.serve(Place::Host, "host", &[SocketAddr::new(NODE_IP.v4, 80)])?;
        lab.serve(Place::RemotePod(0), "host-b", &[SocketAddr::new(REMOTE_NODE_IP.v4, 80)])?;
        let directory = tempfile::tempdir()?;
        let scene = Scene { lab, directory, agent: None };
        fs::create_dir(scene.manifests())?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/demo/manifests");
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            fs::copy(entry.path(), scene.manifests().join(entry.file_name()))?;
        }
        Ok(scene)
    }

    fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    pub fn files(&self) -> anyhow::Result<usize> {
        Ok(fs::read_dir(self.manifests())?.count())
    }

    pub fn start_agent(&mut self) -> anyhow::Result<()> {
        let log = File::create(self.directory.path().join("log"))?;
        let mut args: Vec<OsString> = vec!["run".into(), "--manifests".into()];
        args.push(self.manifests().into());
        let cluster = format!("{},{}", CLUSTER_CIDR.v4, CLUSTER_CIDR.v6);
        args.extend(["--node", "node-a", "--cluster-cidr", &cluster].map(OsString::from));
        let program = Path::new(env!("CARGO_BIN_EXE_kubeweir"));
        self.agent = Some(Agent::start(&self.lab.node, program, &args, &log)?);
        Ok(())
    }

    /// Until the first ClusterIP answers, and that of the other family, which has a table of its own.
    pub fn wait_until_served(&self) -> anyhow::Result<Duration> {
        let frontend = |ip| SocketAddr::new(ip, 80);
        let took = self.wait_until(Place::Pod(1), frontend([10, 96, 179, 207].into()), "pod-0")?;
        let other = frontend([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x64b].into());
        self.wait_until(Place::Pod(1), other, "pod-0")?;
        Ok(took)
    }

    /// Until dialling an address gets an answer from this server.
    pub fn wait_until(
        &self,
        from: Place,
        to: SocketAddr,
        server: &str,
    ) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let dial = Dial::new(Protocol::Tcp, to).timeout(TRY);
        loop {
            let outcome = self.lab.dial(from, dial, 1).remove(0);
            if outcome.answer().is_some_and(|answer| answer.server == server) {
                return Ok(start.elapsed());
            }
            if start.elapsed() > slowed(PATIENCE) {
                bail!("{to} is not served by {server} but {outcome:?}; the agent says:\n{}", {
                    fs::read_to_string(self.directory.path().join("log"))?
                });
            }
        }
    }

    /// Replaces some text of a manifest, as an editor or `kubectl` would.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let path = self.manifests().join(file);
        let before = fs::read_to_string(&path).with_context(|| format!("reading {file}"))?;
        let after = before.replace(from, to);
        if after == before {
            bail!("{file} does not contain {from:?}");
        }
        let draft = self.directory.path().join("draft");
        fs::write(&draft, after)?;
        fs::rename(&draft, &path).with_context(|| format!("replacing {file}"))
    }

    /// The beginning of what `nft list` says on the node.
    pub fn nft_list(&self, what: &str) -> anyhow::Result<String> {
        let args: Vec<&str> = ["list"].into_iter().chain(what.split(' ')).collect();
        let text = self.lab.node.feed("nft", &args, "")?;
        let lines: Vec<&str> = text.lines().collect();
        let more = lines.len().saturating_sub(SHOWN);
        let mut shown = lines[..lines.len() - more].join("\n");
        if more > 0 {
            shown.push_str(&format!("\n\t\t... {more} lines more"));
        }
        Ok(shown)
    }

    pub fn stop_agent(&mut self) -> anyhow::Result<()> {
        let agent = self.agent.take().context("the agent was started")?;
        let status = agent.terminate(PATIENCE).context("the agent did not end in time")?;
        println!("the agent ended ({status}); its rules stay until the namespace goes");
        Ok(())
    }
}
