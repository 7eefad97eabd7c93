//! Exit codes and messages of section 1, over the real program.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output, Stdio};

use crate::site::Site;

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Exit code 1, nothing on stdout; returns stderr.
fn failed(output: &Output) -> String {
    let stderr = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(1), ""), "{stderr}");
    stderr
}

/// Exit code 0; returns stdout.
fn succeeded(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

// B-001, B-002, B-004, B-005: what needs neither configuration nor privileges.
#[test]
fn before_the_configuration() {
    let site = Site::bare();
    let unknown = failed(&site.run(&["--no-such-flag"]));
    assert!(unknown.contains("--proxy-mode"), "usage: {unknown}");
    assert!(unknown.ends_with("Error: unknown flag: --no-such-flag\n"), "{unknown}");
    let klog = failed(&site.run(&["--logtostderr"]));
    assert!(klog.contains("Error: unknown flag: --logtostderr"), "{klog}");
    let positional = failed(&site.run(&["serve"]));
    assert_eq!(positional.lines().count(), 1, "no usage: {positional}");
    let version = succeeded(&site.run(&["--version"]));
    assert!(version.starts_with("Kubernetes v1.37.") && version.lines().count() == 1, "{version}");
    assert!(succeeded(&site.run(&["--help"])).contains("--masquerade-all"));
}

// What nobody reads was a panic and code 101, for `kubeweir --help | head -0`.
#[test]
fn a_closed_pipe_is_no_panic() {
    let program = env!("CARGO_BIN_EXE_kubeweir");
    // As a shell sees who died of SIGPIPE, which is what becomes of kube-proxy; commands for people
    // say what they found out.
    let cases: [(&[&str], i32); 6] = [
        (&["proxy", "--help"], 141),
        (&["--help"], 141),
        (&["--version"], 141),
        (&["--no-such-flag"], 1),
        (&["proxy", "--healthz-port=0", "--config=/none"], 1),
        (&["render", "-f", "/none", "--node", "n"], 2),
    ];
    for (arguments, code) in cases {
        let closed = || {
            let (ours, theirs) = UnixStream::pair().unwrap();
            drop(ours);
            Stdio::from(OwnedFd::from(theirs))
        };
        let mut child = Command::new(program);
        child.args(arguments).stdout(closed()).env_remove("KUBERNETES_SERVICE_HOST");
        let with_stderr = text(&child.stderr(Stdio::piped()).output().unwrap().stderr);
        assert!(!with_stderr.contains("panicked"), "{arguments:?}: {with_stderr}");
        let status = child.stderr(closed()).status().unwrap();
        assert_eq!(status.code(), Some(code), "{arguments:?}: {with_stderr}");
    }
}

// B-031, B-032, B-044, B-045: the last record names the phase that failed.
#[test]
fn phases() {
    let site = Site::bare();
    let missing = failed(&site.run(&["--config=/no/such/file"]));
    assert!(missing.contains("\"command failed\" err=\"failed complete: "), "{missing}");
    let path = site.path("bad.conf");
    let argument = format!("--config={}", path.display());
    fs::write(&path, "kind: KubeProxyConfiguration\n").unwrap();
    let undecodable = failed(&site.run(&[&argument]));
    assert!(undecodable.contains("\"command failed\" err=\"failed complete: "), "{undecodable}");
    let format = failed(&site.run(&["--logging-format=xml"]));
    assert!(format.contains("\"command failed\" err=\"initialize logging: "), "{format}");
    let invalid = failed(&site.run(&[
        "-v1",
        "--iptables-sync-period=1s",
        "--iptables-min-sync-period=2s",
        "--oom-score-adj=2000",
    ]));
    assert!(invalid.contains("FLAG: --oom-score-adj=\"2000\""), "{invalid}");
    let last = invalid.lines().last().unwrap();
    assert!(last.contains("\"command failed\" err=\"failed validate: "), "{invalid}");
    assert!(last.contains("OOMScoreAdj") && last.contains("SyncPeriod"), "all at once: {last}");
}

// B-261: without kubeconfig and master, outside a pod, the server cannot be built: two records.
#[test]
fn nowhere_to_connect_to() {
    let site = Site::bare();
    let stderr = failed(&site.run(&["--proxy-mode=nftables"]));
    let lines: Vec<&str> = stderr.lines().collect();
    let [.., running, command] = lines[..] else { panic!("{stderr}") };
    assert!(running.contains("\"Error running ProxyServer\" err=\""), "{stderr}");
    assert!(command.contains("\"command failed\" err=\""), "{stderr}");
}

// B-020, B-021: the effective configuration can be loaded and written again; nothing else happens.
#[test]
fn write_config_to() {
    let site = Site::bare();
    let (first, second) = (site.path("first"), site.path("second"));
    let into = |path: &std::path::Path| format!("--write-config-to={}", path.display());
    let from = format!("--config={}", first.display());
    succeeded(&site.run(&["--proxy-mode=nftables", "--cluster-cidr=10.0.0.0/8", &into(&first)]));
    let written = fs::read_to_string(&first).unwrap();
    for line in ["mode: nftables", "detectLocalMode: ClusterCIDR", "clusterCIDR: 10.0.0.0/8"] {
        assert!(written.contains(line), "{line} in {written}");
    }
    assert!(written.contains("- primary"), "{written}");
    succeeded(&site.run(&[&from, &into(&second)]));
    assert_eq!(fs::read_to_string(&second).unwrap(), written);
    assert!(!site.is_synced() && site.server.requests().is_empty());
    failed(&site.run(&[&into(&site.path("no/such/directory"))]));
}

// B-030: JSON, one object per line, on stderr.
#[test]
fn json_logs() {
    let site = Site::bare();
    let stderr = failed(&site.run(&["--logging-format=json", "--proxy-mode=nftables", "-v1"]));
    let records: Vec<serde_json::Value> =
        stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(records.len() > 60, "every flag: {stderr}");
    let last = records.last().unwrap();
    assert_eq!(last["msg"], "command failed");
    assert!(last["err"].is_string(), "{last}");
}
