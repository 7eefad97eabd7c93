//! Errors of the real nf_tables: system calls that strace makes fail, and a set that is full.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use kubeweir::kernel::{CommitError, Kernel, Op, Transaction};
use kubeweir::model::{Family, Protocol};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::ruleset::{Element, Key, Name, Set};
use kubeweir::testing::lab::{Dial, Place, cluster_ip};

use crate::clients::{Clients, everywhere};
use crate::manifests::{Web, bystanders};
use crate::node::Node;

const SERVED: usize = 10;
const NODE_PORT: u16 = 30_010;

/// What fails: requests and batches, answers and dumps, or both.
/// A dump takes some dozens of calls, so each fault hits one now and then, not every one.
const INJECTIONS: [&[&str]; 6] = [
    &["sendmsg:error=ENOBUFS:when=40+67"],
    &["sendmsg:error=ENOMEM:when=45+71"],
    &["sendmsg:error=EINTR:when=50+61"],
    &["recvfrom:error=ENOBUFS:when=90+131"],
    &["recvfrom:error=EINTR:when=95+127"],
    &["sendmsg:error=ENOBUFS:when=41+83", "recvfrom:error=ENOMEM:when=103+171"],
];

// A batch that could not be sent, an answer that was lost (whatever became of the batch), a dump
// that broke off: all are settled, nothing is lost, and nothing that works is touched.
#[test]
fn failing_system_calls_are_settled() {
    let mut node = Node::new();
    let mut served = Web::new("served", SERVED, &[Place::Pod(0), Place::RemotePod(0)]);
    served.node_port = Some(NODE_PORT);
    node.write("served", &served.objects());
    node.write("bystanders", &bystanders(1000, 60, 0));
    node.start_and_settle(&[]);
    node.kill();
    let clients = Clients::start(&node.lab, &everywhere(SERVED, NODE_PORT));
    let mut injected = BTreeMap::new();
    for (round, injections) in INJECTIONS.into_iter().enumerate() {
        let trace = node.directory.path().join("trace");
        let mut args = vec!["-f", "-qq", "-e", "signal=none", "-e", "trace=sendmsg,recvfrom", "-o"];
        args.push(trace.to_str().unwrap());
        let options: Vec<String> = injections.iter().map(|i| format!("inject={i}")).collect();
        args.extend(options.iter().flat_map(|option| ["-e", option]));
        let traced = node.start_by("strace", &args);
        for step in 1..=20 {
            let endpoint = Place::Pod(1 + step % 2);
            node.write("bystanders", &bystanders(1000, 60, round * 20 + step));
            // The last change: if its commit fails, nothing but another try brings it into force.
            node.write("canary", &Web::new("canary", SERVED + 1, &[endpoint]).objects());
            let to = SocketAddr::new(cluster_ip(SERVED + 1, Family::V4), 80);
            let server = format!("pod-{}", 1 + step % 2);
            node.answered_by(Place::Pod(0), Dial::new(Protocol::Tcp, to), &server);
        }
        traced.stop();
        let trace = std::fs::read_to_string(trace).unwrap();
        let calls = trace.lines().count();
        println!("{calls} calls, {} failed", trace.matches("(INJECTED)").count());
        *injected.entry(injections.join(" ")).or_insert(0) += trace.matches("(INJECTED)").count();
    }
    println!("failures injected: {injected:#?}");
    assert!(injected.values().all(|count| *count > 0), "each was injected");
    clients.none_failed("failing system calls");
    node.start_and_settle(&[]);
    node.like_fresh(&[]);
    assert!(!node.log().contains("panicked"), "{}", node.log());
}

// ENFILE on the packet's path: who does not fit into an affinity map is served all the same.
#[test]
fn a_full_affinity_map_turns_nobody_away() {
    let mut node = Node::new();
    let endpoints = [Place::Pod(0), Place::RemotePod(0)];
    let sticky = Web { sticky: true, ..Web::new("sticky", SERVED, &endpoints) };
    node.write("sticky", &sticky.objects());
    node.start_and_settle(&["--no-table-ownership"]);
    let to = SocketAddr::new(cluster_ip(SERVED, Family::V4), 80);
    let dial = |from, times| {
        let outcomes = node.lab.dial(from, Dial::new(Protocol::Tcp, to), times);
        let servers = outcomes.iter().map(|o| o.answer().expect("an answer").server.clone());
        servers.collect::<BTreeSet<String>>()
    };
    assert_eq!(dial(Place::Pod(1), 20).len(), 1, "remembered");
    let (map, remembered) = node.tables().v4.sets.into_iter().find_map(clients_of).unwrap();
    let others = (0..70_000).map(|n: u32| {
        let key = Key::new().address(std::net::Ipv4Addr::from(0x3000_0000 + n).into());
        Element { key, ..remembered.clone() }
    });
    let others: Vec<Element> = others.collect();
    // One more than fit, then exactly as many.
    let fill = |count: usize| {
        let ops = vec![Op::AddElements(map.clone(), others[..count].to_vec())];
        let transaction = Transaction { family: Family::V4, ops };
        node.lab.node.run(|| NetlinkKernel::open().unwrap().commit(&transaction))
    };
    let full = fill(65_535).expect_err("one client is there already");
    assert!(matches!(&full, CommitError::Rejected(r) if r.errno == libc::ENFILE), "{full:?}");
    fill(65_534).unwrap();
    let before = node.metric("kubeweir_table_repairs_total", &[("ip_family", "IPv4")]);
    println!("the map is full; {before} repairs so far");
    assert_eq!(dial(Place::Pod(1), 20).len(), 1, "who is remembered stays so");
    assert_eq!(dial(Place::Pod(2), 60).len(), 2, "who is not is spread");
    node.settled();
    assert!(node.status().unwrap().families["IPv4"].quarantine.is_empty());
}

/// An affinity map with a client in it.
fn clients_of(
    (name, (_, elements)): (Name, (Set, BTreeMap<Key, Element>)),
) -> Option<(Name, Element)> {
    let client = elements.into_values().next()?;
    name.as_str().starts_with("clients-").then_some((name, client))
}
