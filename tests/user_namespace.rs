//! The real binary where only a user namespace makes it root: rootless clusters, kind and k3d in
//! rootless containers.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

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
        let directory = tempfile::tempdir().unwrap();
        let log = File::create(directory.path().join("log")).unwrap();
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inspect/manifests");
        let child = Command::new("unshare")
            .args(["-U", "-r", "-n", env!("CARGO_BIN_EXE_kubeweir"), "run", "--node", "node"])
            .arg("--manifests")
            .arg(manifests)
            .args(flags)
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
        let since = Instant::now();
        while !self.listing().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert_eq!(ended, None, "the agent ended: {}", self.log());
            assert!(since.elapsed() < PATIENCE, "no {text}: {}\n{}", self.listing(), self.log());
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
