//! Killed, restarted, upgraded, taken over from another proxy and handed to it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use kubeweir::model::{Family, Protocol};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::testing::lab::{Dial, PATIENCE, Place, cluster_ip, pod_ip, remote_pod_ip};
use kubeweir::testing::slowed;
use rand::Rng;

use crate::clients::{Clients, everywhere};
use crate::manifests::{Web, bystanders};
use crate::node::Node;

/// The Service that is dialled all the time.
const SERVED: usize = 10;
const NODE_PORT: u16 = 30_010;
/// About how long the binary writes when it starts with 2 500 services.
const COLD_START: Duration = Duration::from_millis(400);
/// How long it may read manifests before that, built without optimisation.
const SLOW_START: Duration = Duration::from_secs(60);
/// Where another one has affinity.
const STICKY: usize = 11;

fn served(endpoints: &[Place]) -> Web {
    Web { node_port: Some(NODE_PORT), ..Web::new("served", SERVED, endpoints) }
}

fn sticky() -> Web {
    let endpoints = [0, 1, 2].map(Place::RemotePod);
    Web { sticky: true, ..Web::new("sticky", STICKY, &endpoints) }
}

fn with_services() -> Node {
    let node = Node::new();
    node.write("served", &served(&[Place::Pod(0), Place::RemotePod(0)]).objects());
    node.write("sticky", &sticky().objects());
    node
}

/// Who answers a client of the sticky service.
fn partner(node: &Node, from: Place) -> String {
    let to = SocketAddr::new(cluster_ip(STICKY, Family::V4), 80);
    let outcome = node.lab.dial(from, Dial::new(Protocol::Tcp, to), 1).remove(0);
    outcome.answer().unwrap_or_else(|| panic!("{outcome:?}")).server.clone()
}

fn partners(node: &Node) -> Vec<String> {
    let places = [Place::Pod(0), Place::Pod(1), Place::Pod(2), Place::Host];
    places.into_iter().map(|place| partner(node, place)).collect()
}

fn random(below: Duration) -> Duration {
    rand::rng().random_range(Duration::ZERO..below)
}

// What a killed start left behind is taken over or replaced, and comes out the same.
#[test]
fn killed_in_the_middle_of_a_cold_start() {
    let mut node = with_services();
    node.write("bystanders", &bystanders(1000, 2500, 0));
    let mut half_made = 0;
    let mut met = Vec::new();
    for kill in 0..8 {
        let listed = node.lab.node.nft("list tables").unwrap();
        for table in ["ip kube-proxy", "ip6 kube-proxy"] {
            if listed.contains(&format!("table {table}")) {
                node.lab.node.nft(&format!("delete table {table}")).unwrap();
            }
        }
        node.start(&[]);
        // The random instants begin where the start begins to write.
        let start = Instant::now();
        let written = node.lab.node.run(|| {
            let kernel = NetlinkKernel::open().unwrap();
            while kernel.table(Family::V4).unwrap().is_none() {
                assert!(start.elapsed() < slowed(SLOW_START), "no table: {}", node.log());
            }
            Instant::now()
        });
        // Spread evenly, so that the first one meets a start half done however quick the machine is.
        let part = slowed(COLD_START) / 8;
        std::thread::sleep(part * kill + random(part));
        node.kill();
        let lived = written.elapsed();
        let tables = node.tables();
        let elements =
            Family::BOTH.map(|f| tables[f].sets.values().map(|(_, e)| e.len()).sum::<usize>());
        let attached = Family::BOTH
            .map(|family| tables[family].chains.values().any(|(chain, _)| chain.hooked.is_some()));
        println!(
            "killed {lived:.0?} after the first write: {elements:?} elements, in force {attached:?}"
        );
        half_made += usize::from(attached != [true, true]);
        met.extend(elements.into_iter().zip(attached).zip(Family::BOTH));
    }
    println!("{half_made} of 8 kills met a start half done");
    assert!(half_made > 0, "no kill met a start half done");
    node.start_and_settle(&[]);
    // What attracts packets comes last: nobody is refused for a Service that is yet to come.
    let tables = node.tables();
    for ((elements, attached), family) in met {
        let all = tables[family].sets.values().map(|(_, e)| e.len()).sum::<usize>();
        assert!(!attached || elements == all, "in force with {elements} of {all} elements");
    }
    node.like_fresh(&[]);
}

// B-140 in spirit of a restart: rules stay at exit, and the next process changes only differences.
#[test]
fn killed_at_any_instant_while_connections_run() {
    let mut node = with_services();
    node.write("bystanders", &bystanders(1000, 300, 0));
    node.start_and_settle(&[]);
    let before = partners(&node);
    let to = SocketAddr::new(cluster_ip(SERVED, Family::V4), 80);
    let mut flow = node.lab.open(Place::Pod(1), Protocol::Tcp, to).unwrap();
    let clients = Clients::start(&node.lab, &everywhere(SERVED, NODE_PORT));
    let extra = [Place::Pod(1), Place::RemotePod(1), Place::Pod(2), Place::RemotePod(2)];
    for round in 1..=12 {
        node.write("bystanders", &bystanders(1000, 300, round));
        // One endpoint lives through all rounds, so every connection has somewhere to go.
        let endpoints = [&[Place::Pod(0)], &extra[..round % 5]].concat();
        node.write("served", &served(&endpoints).objects());
        std::thread::sleep(random(slowed(Duration::from_millis(400))));
        node.start(&[]);
    }
    node.settled();
    assert!(flow.ask(PATIENCE).answer().is_some(), "an open connection goes on");
    clients.none_failed_but_on_its_way("12 SIGKILLs");
    assert_eq!(partners(&node), before, "affinity");
    node.like_fresh(&[]);
}

// nf_conntrack_tcp_loose=0: what conntrack has not seen from its beginning is INVALID, so it must not stop
// looking while a table is replaced.
#[test]
fn restarted_where_conntrack_takes_up_no_connection() {
    let mut node = with_services();
    node.lab.node.nft("add table ip t; add chain ip t c; add rule ip t c ct state new").unwrap();
    node.lab.node.sysctl("net/netfilter/nf_conntrack_tcp_loose", "0").unwrap();
    node.start_and_settle(&[]);
    node.lab.node.nft("delete table ip t").unwrap();
    let to = SocketAddr::new(cluster_ip(SERVED, Family::V4), 80);
    let mut flow = node.lab.open(Place::Pod(1), Protocol::Tcp, to).unwrap();
    assert!(flow.ask(PATIENCE).answer().is_some());
    for more in [&[][..], &["--masquerade-all"], &[]] {
        node.start_and_settle(more);
        assert!(flow.ask(PATIENCE).answer().is_some(), "an open connection goes on, {more:?}");
        let mut next = node.lab.open(Place::Pod(1), Protocol::Tcp, to).unwrap();
        assert!(next.ask(PATIENCE).answer().is_some(), "a new one, {more:?}");
    }
}

// Another program of rules is another version mark: the table is replaced in one transaction.
#[test]
fn upgraded_to_another_program_and_back() {
    let mut node = with_services();
    node.start_and_settle(&[]);
    let before = partners(&node);
    let old = node.tables().v4.table.unwrap().comment;
    let to = SocketAddr::new(cluster_ip(SERVED, Family::V4), 80);
    let mut flow = node.lab.open(Place::Pod(1), Protocol::Tcp, to).unwrap();
    let clients = Clients::start(&node.lab, &everywhere(SERVED, NODE_PORT));
    for _ in 0..3 {
        node.start_and_settle(&["--masquerade-all"]);
        assert_ne!(node.tables().v4.table.unwrap().comment, old, "another mark");
        assert_eq!(partners(&node), before, "affinity after the upgrade");
        node.like_fresh(&["--masquerade-all"]);
        node.start_and_settle(&[]);
        assert_eq!(partners(&node), before, "affinity after the downgrade");
    }
    assert!(flow.ask(PATIENCE).answer().is_some(), "an open connection goes on");
    clients.none_failed("6 changes of the program");
    assert_eq!(node.tables().v4.table.unwrap().comment, old);
    node.like_fresh(&[]);
    assert!(node.log().contains("Replace"), "the log tells");
}

/// A table as kube-proxy's nftables mode lays it out, reduced to one service.
fn foreign_table() -> String {
    let table = |family: Family| {
        let (name, ip) = (family.nft(), family.nft());
        let address = if family == Family::V4 { "ipv4_addr" } else { "ipv6_addr" };
        let cluster_ip = cluster_ip(SERVED, family);
        let to = SocketAddr::new(pod_ip(0, family), 8080);
        format!(
            "add table {name} kube-proxy\n\
             delete table {name} kube-proxy\n\
             table {name} kube-proxy {{\n\
               comment \"rules for kube-proxy\"\n\
               map service-ips {{\n\
                 type {address} . inet_proto . inet_service : verdict\n\
                 elements = {{ {cluster_ip} . tcp . 80 : goto service-a,\n\
                               {cluster_ip} . udp . 80 : goto service-a }}\n\
               }}\n\
               map service-nodeports {{\n\
                 type inet_proto . inet_service : verdict\n\
                 elements = {{ tcp . {NODE_PORT} : goto external-a, udp . {NODE_PORT} : goto external-a }}\n\
               }}\n\
               chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}\n\
               chain endpoint-a {{ meta l4proto {{ tcp, udp }} dnat to {to}; }}\n\
               chain service-a {{ goto endpoint-a; }}\n\
               chain external-a {{ jump mark-for-masquerade; goto service-a; }}\n\
               chain services {{\n\
                 {ip} daddr . meta l4proto . th dport vmap @service-ips\n\
                 fib daddr type local meta l4proto . th dport vmap @service-nodeports\n\
               }}\n\
               chain masquerading {{ meta mark & 0x4000 != 0 meta mark set meta mark xor 0x4000 masquerade; }}\n\
               chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
               chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
               chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}\n\
             }}\n"
        )
    };
    Family::BOTH.map(table).concat()
}

/// The sticky service in a table as kube-proxy's nftables mode lays it out: a set of clients for each
/// endpoint.
fn foreign_affinity() -> String {
    let (mut sets, mut chains, mut rules) = (String::new(), String::new(), String::new());
    for n in 0..3 {
        let (ip, name) =
            (remote_pod_ip(n, Family::V4), format!("ABCDEFG{n}-default/sticky/tcp/tcp"));
        let (set, chain) =
            (format!("affinity-{name}__{ip}/8080"), format!("endpoint-{name}__{ip}/8080"));
        sets += &format!("set {set} {{ type ipv4_addr; flags dynamic,timeout; timeout 3h; }}\n");
        chains += &format!(
            "chain {chain} {{ update @{set} {{ ip saddr }}; meta l4proto tcp dnat to {ip}:8080; }}\n"
        );
        rules += &format!("ip saddr @{set} goto {chain}\n");
    }
    let endpoint = |n| {
        let ip = remote_pod_ip(n, Family::V4);
        format!("{n} : goto endpoint-ABCDEFG{n}-default/sticky/tcp/tcp__{ip}/8080")
    };
    let all = [0, 1, 2].map(endpoint).join(", ");
    let cluster_ip = cluster_ip(STICKY, Family::V4);
    format!(
        "table ip kube-proxy {{ comment \"rules for kube-proxy\"\n{sets}{chains}\
           chain service-b {{ {rules} numgen random mod 3 vmap {{ {all} }}\n }}\n\
           map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict;\n\
             elements = {{ {cluster_ip} . tcp . 80 : goto service-b }}\n }}\n\
           chain services {{ ip daddr . meta l4proto . th dport vmap @service-ips; }}\n\
           chain masquerading {{ ip daddr 10.244.1.0/24 fib saddr type local masquerade; }}\n\
           chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}\n\
           chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
           chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}\n\
         }}\n"
    )
}

// Whom another proxy of this mode sent somewhere is sent there by us, too.
#[test]
fn affinity_of_another_proxy_is_kept() {
    let mut node = with_services();
    node.lab.node.nft(&foreign_affinity()).unwrap();
    let before = partners(&node);
    assert_eq!(partners(&node), before, "their own affinity");
    node.start_and_settle(&[]);
    assert!(node.tables().v4.sets.keys().all(|name| !name.as_str().starts_with("affinity-")));
    for _ in 0..5 {
        assert_eq!(partners(&node), before, "ours");
    }
    println!("{} clients stay at {before:?}", before.len());
    node.like_fresh(&[]);
}

// From another nftables kube-proxy to us and from us to it, each in one transaction per family: also
// after a crash, which leaves tables that nobody else can add to.
#[test]
fn taken_over_from_another_proxy_and_handed_to_it() {
    let mut node = with_services();
    node.lab.node.nft(&foreign_table()).unwrap();
    let to = SocketAddr::new(cluster_ip(SERVED, Family::V4), 80);
    let mut flow = node.lab.open(Place::Pod(1), Protocol::Tcp, to).unwrap();
    let clients = Clients::start(&node.lab, &everywhere(SERVED, NODE_PORT));
    for _ in 0..3 {
        node.start_and_settle(&[]);
        node.like_fresh(&[]);
        let running = node.run(&["release"]);
        assert_eq!(running.status.code(), Some(1), "{running:?}");
        node.kill();
        let refused = node.lab.node.nft(&foreign_table()).expect_err("a crash").to_string();
        assert!(refused.contains("Operation not supported"), "{refused}");
        let released = node.run(&["release"]);
        assert!(released.status.success(), "{released:?}");
        node.lab.node.nft(&foreign_table()).unwrap();
    }
    node.start_and_settle(&[]);
    assert!(flow.ask(PATIENCE).answer().is_some(), "an open connection goes on");
    clients.none_failed("4 take-overs, 3 hand-overs");
    node.like_fresh(&[]);
}
