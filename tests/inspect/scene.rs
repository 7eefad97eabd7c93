//! A node, its agent, and people at its terminal.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use kubeweir::testing::lab::{Agent, Lab, PodNetwork};
use kubeweir::testing::slowed;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command did.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub struct Scene {
    pub lab: Lab,
    directory: tempfile::TempDir,
    agent: Option<Agent>,
}

impl Scene {
    /// The directory of the broken cluster's manifests.
    pub fn source() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inspect/manifests")
    }

    /// The node with the broken cluster's manifests; no agent yet.
    pub fn build() -> Scene {
        let lab = Lab::new(PodNetwork::Routed).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let scene = Scene { lab, directory, agent: None };
        fs::create_dir(scene.manifests()).unwrap();
        for entry in fs::read_dir(Scene::source()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), scene.manifests().join(entry.file_name())).unwrap();
        }
        scene
    }

    /// The same with an agent that has done its first sync.
    pub fn with_agent(more: &[&str]) -> Scene {
        let mut scene = Scene::build();
        let log = File::create(scene.directory.path().join("log")).unwrap();
        let mut args: Vec<OsString> = vec!["run".into(), "--manifests".into()];
        args.push(scene.manifests().into());
        args.extend(SETUP.iter().chain(more).map(OsString::from));
        let agent = Agent::start(&scene.lab.node, binary(), &args, &log).unwrap();
        scene.agent = Some(agent);
        scene.wait_for("the first sync", |scene| {
            let status = scene.kubeweir(&["status", "-o", "json"]);
            status.code <= 1 && status.stdout.matches("\"attached\": true").count() == 2
        });
        scene
    }

    /// Stops the agent; its rules stay.
    pub fn stop_agent(&mut self) {
        let agent = self.agent.take().expect("it runs");
        agent.terminate(PATIENCE).expect("it ends in time");
    }

    pub fn manifests(&self) -> PathBuf {
        self.directory.path().join("manifests")
    }

    /// A file for a command's output.
    pub fn file(&self, name: &str, content: &str) -> String {
        let path = self.directory.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Runs `kubeweir` on the node.
    pub fn kubeweir(&self, args: &[&str]) -> Said {
        self.lab.node.run(|| kubeweir(args))
    }

    /// `kubeweir diff` with the manifests.
    pub fn diff(&self, more: &[&str]) -> Said {
        let manifests = self.manifests().display().to_string();
        let args = [&["diff", "-f", &manifests][..], &SETUP, more].concat();
        self.kubeweir(&args)
    }

    pub fn render(&self, more: &[&str]) -> Said {
        let manifests = self.manifests().display().to_string();
        self.kubeweir(&[&["render", "-f", &manifests][..], &SETUP, more].concat())
    }

    /// Replaces some text of the manifests at once.
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let path = self.manifests().join(file);
        let before = fs::read_to_string(&path).unwrap();
        assert!(before.contains(from), "{file} has no {from:?}");
        let draft = self.directory.path().join("draft");
        fs::write(&draft, before.replace(from, to)).unwrap();
        fs::rename(draft, path).unwrap();
    }

    pub fn wait_for(&self, what: &str, mut done: impl FnMut(&Scene) -> bool) {
        let start = Instant::now();
        while !done(self) {
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap();
            assert!(
                start.elapsed() < slowed(PATIENCE),
                "{what} does not come; the agent says\n{}",
                log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// The node's set-up, for the agent and for everyone who asks what it should do.
const SETUP: [&str; 4] = ["--node", "node", "--cluster-cidr", "10.244.0.0/16,fd00:10:244::/56"];

pub fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_kubeweir"))
}

/// Runs `kubeweir` wherever this thread is.
pub fn kubeweir(args: &[&str]) -> Said {
    said(Command::new(binary()).args(args))
}

/// The same without any capability.
pub fn unprivileged(args: &[&str]) -> Said {
    let drop = ["--bounding-set=-all", "--inh-caps=-all", "--"];
    said(Command::new("setpriv").args(drop).arg(binary()).args(args))
}

fn said(command: &mut Command) -> Said {
    let output = command.output().expect("it starts");
    Said {
        code: output.status.code().expect("it was not killed"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}
