//! The kernel refuses something while the agent starts: what passes is tried again, what does not
//! ends the process with a reason.

use std::fs;
use std::net::SocketAddr;

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{Dial, Place, cluster_ip};

use crate::manifests::Web;
use crate::node::Node;

const SERVED: usize = 10;

/// What fails in each thread's first calls: sockets, their options, requests, answers.
const PASSING: [&str; 5] = [
    "socket:error=ENFILE:when=1..3",
    "setsockopt:error=ENOMEM:when=1..2",
    "sendmsg:error=ENOBUFS:when=1..4",
    "recvfrom:error=ENOMEM:when=1..4",
    "recvfrom:error=EINTR:when=1..9",
];

fn node() -> Node {
    let node = Node::new();
    node.write("served", &Web::new("served", SERVED, &[Place::Pod(0)]).objects());
    node
}

// A node that is short of memory or descriptors for a moment costs no restart.
#[test]
fn what_passes_is_tried_again() {
    let node = node();
    let mut sum = 0;
    for injection in PASSING {
        let trace = node.directory.path().join("trace");
        let calls = injection.split(':').next().unwrap();
        let (inject, only) = (format!("inject={injection}"), format!("trace={calls}"));
        let args = ["-f", "-qq", "-e", "signal=none", "-e", &only, "-e", &inject, "-o"];
        let agent = node.start_by("strace", &[&args[..], &[trace.to_str().unwrap()]].concat());
        let took = node.settled();
        agent.stop();
        let injected = fs::read_to_string(&trace).unwrap().matches("(INJECTED)").count();
        println!("{injection}: {injected} failures, in force after {took:.1?}");
        assert!(injected > 0, "{injection}");
        sum += injected;
    }
    println!("{sum} failures injected into starts");
    let tries = node.log().matches("The kernel refused, trying again").count();
    assert!(tries > 0, "{}", node.log());
    assert!(!node.log().contains("panicked"), "{}", node.log());
    let to = SocketAddr::new(cluster_ip(SERVED, Family::V4), 80);
    assert!(node.lab.dial(Place::Pod(1), Dial::new(Protocol::Tcp, to), 1)[0].answer().is_some());
}

// What no retry helps against: a DaemonSet shows it as a crash loop with the reason in the log.
#[test]
fn what_does_not_pass_ends_the_process_with_a_reason() {
    let node = node();
    let strace = ["-f", "-qq", "-e", "trace=socket", "-o", "/dev/null"];
    let unsupported = ["-e", "inject=socket:error=EPROTONOSUPPORT"];
    let cases: [(&str, &[&str], &[&str]); 2] = [
        (
            "setpriv",
            &["--bounding-set=-net_admin", "--"],
            &["nf_tables cannot be used", "CAP_NET_ADMIN is needed"],
        ),
        (
            "strace",
            &[&strace[..], &unsupported].concat(),
            &["opening a netlink socket to nf_tables", "Protocol not supported"],
        ),
    ];
    for (program, args, reasons) in cases {
        let status = node.start_by(program, args).end();
        assert_eq!(status.code(), Some(1), "{program}: {}", node.log());
        for reason in reasons {
            assert!(node.log().contains(reason), "{reason} is not in:\n{}", node.log());
        }
    }
    assert!(!node.log().contains("trying again"), "{}", node.log());
}
