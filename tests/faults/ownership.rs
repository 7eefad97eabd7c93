//! Others lay hands on the table: kept off where the kernel can, repaired where it cannot.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kubeweir::model::{Family, PerFamily, Protocol};
use kubeweir::ruleset::Ruleset;
use kubeweir::testing::lab::{Dial, Place, cluster_ip};
use kubeweir::testing::slowed;

use crate::clients::{Clients, everywhere};
use crate::manifests::{Web, bystanders};
use crate::node::Node;

const SERVED: usize = 10;
const NODE_PORT: u16 = 30_010;

/// Within this a foreign change is put right, on a busy machine and in a debug build.
const BOUND: Duration = Duration::from_secs(5);

const REPAIRS: &str = "kubeweir_table_repairs_total";
const V4: [(&str, &str); 1] = [("ip_family", "IPv4")];

fn running(more: &[&str]) -> Node {
    let mut node = Node::new();
    let endpoints = [Place::Pod(0), Place::RemotePod(0)];
    let served = Web { node_port: Some(NODE_PORT), ..Web::new("served", SERVED, &endpoints) };
    node.write("served", &served.objects());
    node.write("bystanders", &bystanders(1000, 50, 0));
    node.start_and_settle(more);
    node
}

// Ownership is what the kernel grants, so that nobody else's rules can even hurt for a moment.
#[test]
fn an_owned_table_cannot_be_touched() {
    let node = running(&[]);
    let before = node.tables();
    let clients = Clients::start(&node.lab, &everywhere(SERVED, NODE_PORT));
    for family in ["ip", "ip6"] {
        for change in [
            format!("add rule {family} kube-proxy frontends drop"),
            format!("insert rule {family} kube-proxy frontends drop"),
            format!("flush chain {family} kube-proxy frontends"),
            format!("delete table {family} kube-proxy"),
            format!("flush table {family} kube-proxy"),
            format!("add chain {family} kube-proxy mine"),
        ] {
            let refused = node.lab.node.nft(&change).expect_err(&change).to_string();
            assert!(refused.contains("Operation not permitted"), "{change}: {refused}");
        }
    }
    // Succeeds, and leaves owned tables alone.
    node.lab.node.nft("add table ip other; flush ruleset").unwrap();
    assert_eq!(node.lab.node.nft("list tables").unwrap().matches("kube-proxy").count(), 2);
    assert!(!node.lab.node.nft("list tables").unwrap().contains("other"), "the rest was flushed");
    assert!(node.tables() == before, "not a rule differs");
    clients.none_failed("13 attempts on owned tables");
    assert_eq!(node.metric(REPAIRS, &V4), 0.0);
    assert!(node.status().unwrap().families["IPv4"].owned);
}

// B9: an agent that overlaps with another one: a restart that is not waited for, `maxSurge`, a slip.
#[test]
fn of_two_agents_one_owns_the_table_until_it_dies() {
    let mut node = Node::new();
    let endpoints = [Place::Pod(0), Place::RemotePod(0)];
    node.write("served", &Web::new("served", SERVED, &endpoints).objects());
    let ports =
        ["--metrics-bind-address=127.0.0.1:11249", "--healthz-bind-address=127.0.0.1:11256"];
    let first = node.start_another(&ports);
    let attached = |tables: PerFamily<Ruleset>| {
        Family::BOTH.iter().all(|family| tables[*family].chains.contains_key("nat-prerouting"))
    };
    node.wait("the first one's tables", || node.try_tables().is_some_and(attached));
    node.start(&[]);
    node.wait("the second one's complaint", || {
        let log = node.log();
        ["ip", "ip6"].iter().all(|family| {
            log.contains("another process (netlink port ")
                && log.contains(&format!("owns table {family} kube-proxy"))
        })
    });
    let shown = node.status().unwrap().families["IPv4"].clone();
    assert!(!shown.owned && shown.failed_syncs > 0, "{shown:?}");
    drop(first);
    node.wait("the second one to own the tables", || {
        node.status().is_some_and(|status| status.families.values().all(|family| family.owned))
    });
    for change in ["flush ruleset", "add rule ip kube-proxy frontends drop"] {
        node.lab.node.nft(change).ok();
    }
    let refused =
        node.lab.node.nft("add rule ip kube-proxy frontends drop").unwrap_err().to_string();
    assert!(refused.contains("Operation not permitted"), "{refused}");
    node.like_fresh(&[]);
}

// The second path: seen by the monitor, repaired from a dump and a difference.
#[test]
fn a_foreign_change_is_seen_and_repaired() {
    let node = running(&["--no-table-ownership"]);
    assert!(!node.status().unwrap().families["IPv4"].owned);
    let intact = node.tables().v4;
    let element = format!(
        "delete element ip kube-proxy frontend-ips {{ {} }}",
        cluster_ip(SERVED, Family::V4)
    );
    let changes = [
        "flush chain ip kube-proxy frontends",
        "add rule ip kube-proxy frontends drop",
        "add chain ip kube-proxy mine { type filter hook forward priority 0; policy drop; }",
        "flush map ip kube-proxy endpoints-4",
        "add element ip kube-proxy refused-services { 10.96.0.10 . tcp . 80 }",
        "add set ip kube-proxy clients-default.served.tcp.tcp { type mark; }",
        "delete table ip kube-proxy",
        "flush ruleset",
        &element,
    ];
    let mut made = 0;
    for change in changes {
        // Each after a quiet time of its own would take minutes; the pause between repairs is part
        // of what is measured.
        let repairs = node.metric(REPAIRS, &V4);
        match node.lab.node.nft(change) {
            Ok(_) => {}
            Err(reason) => panic!("{change}: {reason}"),
        }
        made += 1;
        let start = Instant::now();
        node.wait(change, || node.try_tables().is_some_and(|tables| tables.v4 == intact));
        let took = start.elapsed();
        println!("{change}: repaired after {took:.1?}");
        let pause = Duration::from_millis(100 << made);
        assert!(took < slowed(BOUND) + pause, "{change}: {took:?}");
        node.wait("it to be counted", || node.metric(REPAIRS, &V4) > repairs);
        let dial = Dial::new(Protocol::Tcp, SocketAddr::new(cluster_ip(SERVED, Family::V4), 80));
        let outcomes = node.lab.dial(Place::Pod(1), dial, 10);
        assert!(outcomes.iter().all(|outcome| outcome.answer().is_some()), "{outcomes:?}");
    }
    let log = node.log();
    for what in
        ["Someone else changed the table", "delete chain", "add rule frontends", "by=\"nft\""]
    {
        assert!(log.contains(what), "{what} is not in the log:\n{log}");
    }
    assert!(node.status().unwrap().families["IPv4"].repairs >= made);
    node.like_fresh(&["--no-table-ownership"]);
}

// Two programs that undo each other's work never do so at full speed.
#[test]
fn a_quarrel_is_slowed_down() {
    let node = running(&["--no-table-ownership"]);
    let start = Instant::now();
    let mut disturbances = 0;
    while start.elapsed() < Duration::from_secs(4) || disturbances <= 20 {
        node.lab.node.nft("add rule ip kube-proxy frontends counter").unwrap();
        disturbances += 1;
    }
    let repairs = node.metric(REPAIRS, &V4);
    let elapsed = start.elapsed();
    println!("{disturbances} foreign changes in {elapsed:.1?}, {repairs} repairs");
    // At once, then after pauses of 100, 200, 400 ms and so on, each twice the one before.
    let allowed = 1.0 + (1.0 + elapsed.as_secs_f64() / 0.1).log2();
    assert!(repairs <= allowed, "{repairs} repairs");
    let rules_of = |tables: &PerFamily<Ruleset>, f: Family| tables[f].chains["frontends"].1.len();
    node.wait("the last repair", || {
        let tables = node.try_tables();
        tables.is_some_and(|tables| rules_of(&tables, Family::V4) == rules_of(&tables, Family::V6))
    });
    // It counts when it got through: a table that changes 300 times a second can hardly be read.
    node.wait("it to be counted", || node.metric(REPAIRS, &V4) >= 1.0);
    // B27: told once a repair, not once a change.
    let told = node.log().matches("Someone else changed the table").count();
    assert!((1..=16).contains(&told), "{told} lines for {disturbances} changes");
}
