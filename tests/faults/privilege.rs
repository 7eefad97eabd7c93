//! The agent runs with nothing but CAP_NET_ADMIN, a read-only root and no other program.

use std::collections::BTreeSet;
use std::fs;

use kubeweir::testing::lab::Place;

use crate::manifests::Web;
use crate::node::Node;

/// `CAP_NET_ADMIN` of linux/capability.h.
const NET_ADMIN: u64 = 1 << 12;

fn node() -> Node {
    let node = Node::new();
    let endpoints = [Place::Pod(0), Place::RemotePod(0)];
    node.write("served", &Web::new("served", 10, &endpoints).objects());
    node
}

/// A field of `/proc/PID/task/TID/status`, of every thread that is there: a worker of the runtime that has
/// nothing to do ends.
fn of_threads(pid: u32, field: &str) -> Vec<(String, String)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("status")));
    let line = |text: &str, field: &str| -> String {
        let found = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
        found.unwrap_or_else(|| panic!("no {field} in {text}")).trim().to_owned()
    };
    status.flatten().map(|text| (line(&text, "Name"), line(&text, field))).collect()
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
    node.wait("the repair", || node.try_tables().is_some_and(|t| t.v4.table.is_some()));
    node.settled();
}

#[test]
fn a_read_only_root_is_enough() {
    let node = node();
    // A mount namespace in which nothing at all can be written, /proc and /sys and /dev included.
    let script = "mount --make-rprivate / && \
                  awk '{print $5}' /proc/self/mountinfo | while read -r at; do \
                  mount -o remount,bind,ro \"$at\" 2>/dev/null; done; \
                  touch /tmp/writable 2>/dev/null && exit 99; exec \"$0\" \"$@\"";
    let agent = node.start_by("unshare", &["--mount", "sh", "-c", script]);
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

/// System calls that the agent may make once it runs; also in the document for operators.
const SYSTEM_CALLS: &str = include_str!("../data/faults/system-calls");

/// What the default seccomp profiles of container runtimes refuse to a container with CAP_NET_ADMIN
/// alone.
const REFUSED: &[&str] = &[
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mbind",
    "migrate_pages",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "process_madvise",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "reboot",
    "request_key",
    "set_mempolicy",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount2",
    "unshare",
    "userfaultfd",
    "vhangup",
];

#[test]
fn no_program_is_started_and_few_system_calls_are_made() {
    let node = node();
    let trace = node.directory.path().join("trace");
    let output = ["-f", "-qq", "-e", "trace=all", "-e", "signal=none", "-o"];
    // As under a runtime's profile; `clone3` is unknown to it, so that libraries do without.
    let refused = format!("inject={}:error=EPERM", REFUSED.join(","));
    let profile = ["-e", &refused, "-e", "inject=clone3:error=ENOSYS"];
    let args = [&output[..], &[trace.to_str().unwrap()], &profile].concat();
    let agent = node.start_by("strace", &args);
    node.settled();
    node.write("more", &Web::new("more", 11, &[Place::Pod(1)]).objects());
    node.wait("the new service", || {
        node.status().is_some_and(|s| s.families["IPv4"].summary.totals.services == 2)
    });
    node.metrics();
    agent.stop();
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
    let refused: Vec<_> = REFUSED.iter().filter(|call| known.contains(*call)).collect();
    assert!(refused.is_empty(), "runtimes refuse {refused:?}");
    let unknown: Vec<&&str> = made.difference(&known).collect();
    println!("{} different system calls: {made:?}", made.len());
    assert!(unknown.is_empty(), "not in the list for operators: {unknown:?}");
}
