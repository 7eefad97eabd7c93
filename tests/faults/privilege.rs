//! The agent runs with nothing but CAP_NET_ADMIN, a read-only root and no other program.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;

use kubeweir::testing::lab::{Agent, Place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::manifests::Web;
use crate::node::{Node, PATIENCE};

/// `CAP_NET_ADMIN` of linux/capability.h.
const NET_ADMIN: u64 = 1 << 12;

fn node() -> Node {
    let node = Node::new();
    let endpoints = [Place::Pod(0), Place::RemotePod(0)];
    node.write("served", &Web::new("served", 10, &endpoints).objects());
    node
}

/// A field of `/proc/PID/task/TID/status`, of every thread.
fn of_threads(pid: u32, field: &str) -> Vec<(String, String)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("status")));
    let line = |text: &str, field: &str| -> String {
        let found = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        found.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
    };
    status.map(|text| text.unwrap()).map(|text| (line(&text, "Name"), line(&text, field))).collect()
}

// Every thread, whoever started it and when.
#[test]
fn every_thread_has_cap_net_admin_and_no_more() {
    let mut node = node();
    node.start_and_settle(&["--no-table-ownership"]);
    let pid = node.pid();
    for field in ["CapPrm", "CapEff", "CapBnd"] {
        let threads = of_threads(pid, field);
        assert!(threads.len() >= 5, "worker, monitor, conntrack, manifests, runtime: {threads:?}");
        for (thread, capabilities) in threads {
            assert_eq!(
                u64::from_str_radix(&capabilities, 16),
                Ok(NET_ADMIN),
                "{field} of {thread}"
            );
        }
    }
    for (field, value) in [("CapInh", 0), ("CapAmb", 0), ("NoNewPrivs", 1)] {
        for (thread, found) in of_threads(pid, field) {
            assert_eq!(u64::from_str_radix(&found, 16), Ok(value), "{field} of {thread}");
        }
    }
    // Foreign changes are still repaired: what is kept is enough.
    node.lab.node.nft("delete table ip kube-proxy").unwrap();
    node.wait("the repair", || node.tables().v4.table.is_some());
    node.settled();
}

/// Starts the agent through another program, which ends by executing it.
fn start_by(node: &Node, program: &str, first: &[&str]) -> Agent {
    let args = first.iter().map(OsString::from);
    let args: Vec<OsString> = args
        .chain([env!("CARGO_BIN_EXE_kubeweir").into()])
        .chain(["run", "--node", "node", "--manifests"].map(OsString::from))
        .chain([node.manifests().into()])
        .collect();
    let log = File::create(node.directory.path().join("log")).unwrap();
    Agent::start(&node.lab.node, Path::new(program), &args, &log).unwrap()
}

#[test]
fn a_read_only_root_is_enough() {
    let node = node();
    // A mount namespace in which nothing at all can be written, /proc and /sys and /dev included.
    let script = "mount --make-rprivate / && \
                  awk '{print $5}' /proc/self/mountinfo | while read -r at; do \
                  mount -o remount,bind,ro \"$at\" 2>/dev/null; done; \
                  touch /tmp/writable 2>/dev/null && exit 99; exec \"$0\" \"$@\"";
    let agent = start_by(&node, "unshare", &["--mount", "sh", "-c", script]);
    node.settled();
    let pid = agent.pid();
    let mounts = fs::read_to_string(format!("/proc/{pid}/mounts")).unwrap();
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap();
    assert!(root.split(' ').nth(3).unwrap().split(',').any(|o| o == "ro"), "{root}");
    node.write("more", &Web::new("more", 11, &[Place::Pod(1)]).objects());
    node.wait("the new service", || {
        node.status().is_some_and(|s| s.families["IPv4"].summary.totals.services == 2)
    });
}

/// System calls that the agent may make once it runs; also in the document for operators. A seccomp
/// profile like container runtimes' default allows them all.
const SYSTEM_CALLS: &str = include_str!("../data/faults/system-calls");

#[test]
fn no_program_is_started_and_few_system_calls_are_made() {
    let node = node();
    let trace = node.directory.path().join("trace");
    let output = ["-f", "-qq", "-e", "trace=all", "-e", "signal=none", "-o"];
    let args = [&output[..], &[trace.to_str().unwrap()]].concat();
    let agent = start_by(&node, "strace", &args);
    node.settled();
    node.write("more", &Web::new("more", 11, &[Place::Pod(1)]).objects());
    node.wait("the new service", || {
        node.status().is_some_and(|s| s.families["IPv4"].summary.totals.services == 2)
    });
    node.metrics();
    // strace ends with its child, but would leave it behind if it was killed itself.
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    let child: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
    assert!(agent.terminate(PATIENCE).is_some(), "strace ends");
    let trace = fs::read_to_string(trace).unwrap();
    let name = |line: &str| -> Option<String> {
        let call = line.split_whitespace().nth(1)?.split('(').next()?;
        let is_name =
            call.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
        (is_name && line.contains('(')).then(|| call.to_owned())
    };
    let calls: Vec<String> = trace.lines().filter_map(name).collect();
    assert!(calls.len() > 100, "{trace}");
    assert_eq!(calls.iter().filter(|call| *call == "execve").count(), 1, "only its own");
    let children = ["fork", "vfork", "execveat"];
    assert!(!calls.iter().any(|call| children.contains(&call.as_str())));
    let processes = trace.lines().filter(|l| l.contains("clone") && !l.contains("CLONE_THREAD"));
    assert_eq!(
        processes.filter(|line| line.contains("clone(") || line.contains("clone3(")).count(),
        0
    );
    let known: BTreeSet<&str> =
        SYSTEM_CALLS.lines().filter(|line| !line.starts_with('#')).collect();
    let made: BTreeSet<&str> = calls.iter().map(String::as_str).collect();
    let unknown: Vec<&&str> = made.difference(&known).collect();
    println!("{} different system calls: {made:?}", made.len());
    assert!(unknown.is_empty(), "not in the list for operators: {unknown:?}");
}
