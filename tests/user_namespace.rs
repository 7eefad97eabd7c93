//! The real binary where only a user namespace makes it root: rootless clusters, kind and k3d in
//! rootless containers.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kubeweir::testing::slowed;

/// How long anything may take: debug builds on busy machines are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// A program in new user and network namespaces; ends with the test.
struct Rootless {
    child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Rootless {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Rootless {
    /// Starts the agent on the manifests of the explaining sub-commands.
    fn start(flags: &[&str]) -> Rootless {
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inspect/manifests");
        let manifests = manifests.to_str().unwrap();
        let run = ["run", "--node", "node", "--manifests", manifests];
        Rootless::after("true", tempfile::tempdir().unwrap(), &[&run, flags].concat())
    }

    /// Starts the program after a command of the shell.
    fn after(first: &str, directory: tempfile::TempDir, arguments: &[&str]) -> Rootless {
        let log = File::create(directory.path().join("log")).unwrap();
        let script = format!("{first} && exec \"$0\" \"$@\"");
        let child = Command::new("unshare")
            .args(["-U", "-r", "-n", "sh", "-c", &script, env!("CARGO_BIN_EXE_kubeweir")])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("unshare is installed");
        Rootless { child, directory }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// What `nft` lists in the agent's network namespace, as the root that the agent is.
    fn listing(&self) -> String {
        let pid = self.child.id().to_string();
        let enter = ["-t", &pid, "-U", "-n", "--preserve-credentials"];
        let output = Command::new("nsenter").args(enter).args(["nft", "list", "ruleset"]).output();
        String::from_utf8(output.expect("nsenter is installed").stdout).unwrap()
    }

    /// Waits until the listing contains a text.
    fn wait_for(&mut self, text: &str) {
        self.wait(|agent| agent.listing().contains(text));
    }

    /// Waits for a condition, as long as the program runs.
    fn wait(&mut self, condition: impl Fn(&Rootless) -> bool) {
        let since = Instant::now();
        while !condition(self) {
            let ended = self.child.try_wait().unwrap();
            assert_eq!(ended, None, "the agent ended: {}", self.log());
            assert!(since.elapsed() < slowed(PATIENCE), "{}\n{}", self.listing(), self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

// N5: buffers cannot be forced there, and the OOM score cannot be lowered: it serves all the same.
#[test]
fn the_agent_starts_in_a_user_namespace() {
    for mode in ["nftables", "iptables", "ipvs"] {
        let mut agent = Rootless::start(&["--proxy-mode", mode]);
        agent.wait_for("10.96.0.10");
        let listing = agent.listing();
        assert!(listing.contains("table ip kube-proxy"), "{mode}: {listing}");
        assert!(listing.contains("10.244.0.10"), "{mode}: {listing}");
        assert!(!agent.log().contains("panicked"), "{}", agent.log());
    }
}

// N6: no inotify instance left on the node: a warning, and the file is looked at now and then.
#[test]
fn without_inotify_the_configuration_file_is_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let (config, kubeconfig) =
        (directory.path().join("config"), directory.path().join("kubeconfig"));
    fs::write(
        &kubeconfig,
        "apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n\
         contexts: [{name: x, context: {cluster: c, user: ''}}]\ncurrent-context: x\n",
    )
    .unwrap();
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n\
         clientConnection: {{kubeconfig: {}}}\nhostnameOverride: node\n",
        kubeconfig.display()
    );
    fs::write(&config, &text).unwrap();
    let none_left = "echo 0 > /proc/sys/user/max_inotify_instances";
    let flag = format!("--config={}", config.display());
    let mut agent = Rootless::after(none_left, directory, &[&flag]);
    agent.wait(|agent| agent.log().contains("looked at now and then"));
    assert!(agent.log().contains("fs.inotify.max_user_instances"), "{}", agent.log());
    fs::write(&config, format!("{text}# edited\n")).unwrap();
    let since = Instant::now();
    let ended = loop {
        if let Some(ended) = agent.child.try_wait().unwrap() {
            break ended;
        }
        assert!(since.elapsed() < slowed(PATIENCE), "{}", agent.log());
        std::thread::sleep(Duration::from_millis(20));
    };
    assert_eq!(ended.code(), Some(1), "{}", agent.log());
    assert!(agent.log().contains("configuration file was updated"), "{}", agent.log());
}
