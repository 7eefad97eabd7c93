//! Neighbours that take a kernel with more than every kernel has: `make kernels` runs these in its guests.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{
    Agent, Dial, Flow, NODE_IP, NODE_NAME, Netns, Outcome, PATIENCE, Place, REMOTE_NODE_IP,
    SILENCE, Server, cluster_ip, external_ip, pod_ip,
};

use serde_json::json;

use crate::manifests::{Web, cluster};
use crate::neighbours::{dial, sent};
use crate::nfqueue::Queue;
use crate::node::Node;

const V4: Family = Family::V4;
const NODE_PORT: u16 = 30_010;

fn served_by(node: &Node, from: Place, to: (IpAddr, u16)) -> Option<String> {
    dial(node, from, to).answer().map(|answer| answer.server.clone())
}

fn web(endpoints: &[Place]) -> Web {
    Web { node_port: Some(NODE_PORT), ..Web::new("web", 10, endpoints) }
}

// keepalived, MetalLB and the like give a load balancer's address to the node, on a link of its own.
#[test]
#[ignore = "needs a kernel with dummy links: make kernels"]
fn a_dummy_link_holds_the_load_balancers_address() {
    let mut node = Node::new();
    let balancer = external_ip(20, V4);
    let service = Web { load_balancer_ips: vec![balancer], ..web(&[Place::Pod(0)]) };
    node.write("web", &service.objects());
    node.lab.node.ip("link add dummy0 type dummy\nlink set dummy0 up").unwrap();
    node.start_and_settle(&[]);
    for change in ["add", "del", "add"] {
        node.lab.node.ip(&format!("addr {change} {balancer}/32 dev dummy0")).unwrap();
        for from in [Place::Outside, Place::Pod(1), Place::Host, Place::RemotePod(1)] {
            let by = served_by(&node, from, (balancer, 80));
            assert_eq!(by.as_deref(), Some("pod-0"), "{change}, from {from:?}");
        }
    }
}

// WireGuard, as Cilium, Calico and Flannel use it between nodes.
#[test]
#[ignore = "needs a kernel with WireGuard: make kernels"]
fn wireguard_carries_pod_traffic_between_nodes() {
    let mut node = Node::new();
    node.write("web", &web(&[Place::RemotePod(0), Place::RemotePod(1)]).objects());
    let ends = [
        (&node.lab.node, NODE_IP.v4, "10.99.0.1", "10.244.1.0/24", "10.99.0.2"),
        (&node.lab.elsewhere, REMOTE_NODE_IP.v4, "10.99.0.2", "10.244.0.0/24", "10.99.0.1"),
    ];
    let key = |netns: &Netns| netns.feed("wg", &["genkey"], "").unwrap();
    let keys = [key(ends[0].0), key(ends[1].0)];
    let public = |key: &str| ends[0].0.feed("wg", &["pubkey"], key).unwrap().trim().to_owned();
    for (at, (netns, _, own, pods, gateway)) in ends.iter().enumerate() {
        let (file, peer) = (node.directory.path().join(format!("key-{at}")), 1 - at);
        fs::write(&file, &keys[at]).unwrap();
        netns.ip(&format!("link add wg0 type wireguard\naddr add {own}/24 dev wg0")).unwrap();
        let (peer_key, endpoint) = (public(&keys[peer]), format!("{}:51820", ends[peer].1));
        let file = file.to_str().unwrap();
        let set = ["set", "wg0", "listen-port", "51820", "private-key", file, "peer", &peer_key];
        let more =
            ["allowed-ips", "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16", "endpoint", &endpoint];
        netns.feed("wg", &[&set[..], &more[..]].concat(), "").unwrap();
        let route = format!("link set wg0 up\nroute replace {pods} via {gateway} dev wg0");
        netns.ip(&route).unwrap();
    }
    node.start_and_settle(&[]);
    let before = sent(&node.lab.node, "wg0");
    for _ in 0..20 {
        let kept = dial(&node, Place::Pod(1), (cluster_ip(10, V4), 80));
        assert!(!kept.answer().expect("over the tunnel").masqueraded(), "{kept:?}");
        for (from, to) in
            [(Place::Host, (cluster_ip(10, V4), 80)), (Place::Outside, (NODE_IP.v4, NODE_PORT))]
        {
            let outcome = dial(&node, from, to);
            let seen = outcome.answer().unwrap_or_else(|| panic!("{from:?}: {outcome:?}")).seen;
            assert_eq!(seen.ip(), IpAddr::from([10, 99, 0, 1]), "the tunnel's own address");
        }
    }
    assert!(sent(&node.lab.node, "wg0") - before >= 180, "a handshake and a question each");
}

const FLOWTABLE: &str = "table inet cni {
    flowtable fast { hook ingress priority 0; devices = { eth0, eth1, veth0, veth1, veth2 }; }
    chain forward { type filter hook forward priority 0; meta l4proto { tcp, udp } flow add @fast; }
}";

/// Asks until the kernel's flowtable carries a flow of the protocol.
fn offloaded(node: &Node, flow: &mut Flow, protocol: &str, server: &str) {
    node.wait("the flowtable", || {
        let answer = flow.ask(PATIENCE);
        assert_eq!(
            answer.answer().map(|answer| answer.server.as_str()),
            Some(server),
            "{answer:?}"
        );
        let listed = node.lab.node.feed("conntrack", &["-L", "-p", protocol], "").unwrap();
        listed.contains("[OFFLOAD]")
    });
}

/// The frontends of [`web`], each from elsewhere.
fn dialled() -> [(Place, SocketAddr); 2] {
    [
        (Place::Outside, SocketAddr::new(NODE_IP.v4, NODE_PORT)),
        (Place::Pod(2), SocketAddr::new(cluster_ip(10, V4), 80)),
    ]
}

// B-218, B-219: a CNI's flowtable takes packets past every hook. The removal of an endpoint ends its UDP
// flows there, too; TCP stays where it is.
#[test]
#[ignore = "needs a kernel with flowtables: make kernels"]
fn flows_in_a_flowtable_follow_their_endpoints() {
    let mut node = Node::new();
    node.write("web", &web(&[Place::Pod(0)]).objects());
    node.start_and_settle(&[]);
    node.lab.node.nft(FLOWTABLE).unwrap();
    for (from, to) in dialled() {
        node.write("web", &web(&[Place::Pod(0)]).objects());
        node.answered_by(from, Dial::new(Protocol::Udp, to), "pod-0");
        let mut tcp = node.lab.open(from, Protocol::Tcp, to).unwrap();
        offloaded(&node, &mut tcp, "tcp", "pod-0");
        let mut udp = node.lab.open(from, Protocol::Udp, to).unwrap();
        offloaded(&node, &mut udp, "udp", "pod-0");
        node.write("web", &web(&[Place::Pod(1)]).objects());
        let took = node.wait(&format!("the flow from {from:?} to leave its old endpoint"), || {
            udp.ask(PATIENCE).answer().is_some_and(|answer| answer.server == "pod-1")
        });
        println!("{from:?}: at the next endpoint after {took:.1?}");
        let answer = tcp.ask(PATIENCE);
        assert_eq!(answer.answer().map(|a| a.server.as_str()), Some("pod-0"), "{answer:?}");
    }
}

// A Service that asks for it has connections to endpoints that are gone ended in a flowtable, too: they
// leave it, and whoever gets the next packet resets it.
#[test]
#[ignore = "needs a kernel with flowtables: make kernels"]
fn connections_in_a_flowtable_are_ended_on_request() {
    let mut node = Node::new();
    let write = |node: &Node, endpoint| {
        let mut objects = web(&[endpoint]).objects();
        objects[0]["metadata"]["annotations"] =
            json!({ "kubeweir.io/end-connections-after": "1s" });
        node.write("web", &objects);
    };
    write(&node, Place::Pod(0));
    node.start_and_settle(&[]);
    node.lab.node.nft(FLOWTABLE).unwrap();
    for (from, to) in dialled() {
        write(&node, Place::Pod(0));
        node.answered_by(from, Dial::new(Protocol::Tcp, to), "pod-0");
        let mut flow = node.lab.open(from, Protocol::Tcp, to).unwrap();
        offloaded(&node, &mut flow, "tcp", "pod-0");
        write(&node, Place::Pod(1));
        let took = node.wait(&format!("the end of the connection from {from:?}"), || {
            matches!(flow.ask(PATIENCE), Outcome::Failed(ErrorKind::ConnectionReset))
        });
        println!("{from:?}: ended after {took:.1?}");
    }
}

/// What becomes of UDP questions that wait in an nfqueue while something is changed: how many of
/// [`WAITING`] are answered once they are let go. Who gets no answer gives up after `patience`.
fn answered_after(
    node: &mut Node,
    queue: &Queue,
    patience: Duration,
    change: impl FnOnce(&mut Node),
) -> usize {
    let lab = Arc::clone(&node.lab);
    let to = SocketAddr::new(cluster_ip(10, V4), 80);
    let dial = Dial::new(Protocol::Udp, to).timeout(patience);
    std::thread::scope(|scope| {
        let ask = || lab.dial(Place::Pod(1), dial, 1)[0].answer().is_some();
        let dials: Vec<_> = (0..WAITING).map(|_| scope.spawn(ask)).collect();
        let packets: Vec<u32> = (0..WAITING).map(|_| queue.next().expect("a packet")).collect();
        change(node);
        packets.into_iter().for_each(|packet| queue.accept(packet).expect("a verdict"));
        dials.into_iter().filter_map(|dial| dial.join().ok()).filter(|&answered| answered).count()
    })
}

const WAITING: usize = 20;

/// Longer than any change takes: nobody is to give up before it is over.
const LONG: Duration = PATIENCE.saturating_mul(6);

// kubernetes-sigs/kube-network-policies#402: a network policy engine has new connections wait in an
// nfqueue. Changes of Services leave them there, a restart does, too, where it adopts its table; where
// base chains are replaced, the kernel drops all that wait in the namespace: their senders send again.
#[test]
#[ignore = "needs a kernel with nfqueue: make kernels"]
fn packets_wait_in_an_nfqueue_while_rules_change() {
    let mut node = Node::new();
    node.write("web", &web(&[Place::Pod(0)]).objects());
    node.start_and_settle(&[]);
    let queue = node.lab.node.run(|| Queue::bind(0)).expect("nfnetlink_queue");
    let policy = "table inet netpol {
        chain forward {
            type filter hook forward priority 10;
            ct state new meta l4proto udp queue num 0
        }
    }";
    node.lab.node.nft(policy).unwrap();
    let answered = answered_after(&mut node, &queue, LONG, |node| {
        node.write("web", &web(&[Place::Pod(0), Place::Pod(2)]).objects());
        let endpoint = pod_ip(2, V4).to_string();
        let list = ["list", "map", "ip", "kube-proxy", "endpoints-4"];
        node.wait("the second endpoint", || {
            node.lab.node.feed("nft", &list, "").is_ok_and(|text| text.contains(&endpoint))
        });
    });
    assert_eq!(answered, WAITING, "a changed Service");
    let answered = answered_after(&mut node, &queue, LONG, |node| node.start_and_settle(&[]));
    assert_eq!(answered, WAITING, "a restart after a crash");
    let another = ["--masquerade-all"];
    // Most are lost, and are waited for in vain.
    let replaced = |node: &mut Node| node.start_and_settle(&another);
    let answered = answered_after(&mut node, &queue, PATIENCE, replaced);
    println!("{answered} of {WAITING} are left when another program replaces the table");
    // Whatever was lost: who sends again is served.
    let answered = answered_after(&mut node, &queue, LONG, |_| {});
    assert_eq!(answered, WAITING, "after the replacement");
}

// A kernel without IPv6 (`ipv6.disable=1`): dual-stack Services are served over IPv4.
#[test]
#[ignore = "needs a kernel booted with ipv6.disable=1: make kernels"]
fn a_node_without_ipv6() {
    assert!(!Path::new("/proc/sys/net/ipv6").exists(), "boot with ipv6.disable=1");
    let (node, pod) = (Netns::new("node").unwrap(), Netns::new("pod").unwrap());
    let (own, gateway) = (pod_ip(0, V4), "10.244.0.1");
    let links = format!(
        "link add veth0 type veth peer name eth0 netns {}\nlink set veth0 up\n\
         addr add {gateway}/24 dev veth0\naddr add {}/32 dev lo\nroute add default dev veth0",
        pod.path(),
        NODE_IP.v4
    );
    node.ip(&links).unwrap();
    node.sysctl("net/ipv4/ip_forward", "1").unwrap();
    let route =
        format!("addr add {own}/24 dev eth0\nlink set eth0 up\nroute add default via {gateway}");
    pod.ip(&route).unwrap();
    let address = SocketAddr::new(own, 8080);
    let _server =
        Server::start(&pod, "pod-0", &[Protocol::Tcp, Protocol::Udp], &[address]).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let items = [cluster(), web(&[Place::Pod(0)]).objects()].concat();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
    fs::write(directory.path().join("all.json"), list.to_string()).unwrap();
    let manifests = directory.path().to_str().unwrap();
    let args =
        ["run", "--manifests", manifests, "--node", NODE_NAME, "--cluster-cidr=10.244.0.0/16"];
    let log = directory.path().join("log");
    let file = fs::File::create(&log).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_kubeweir"));
    let _agent = Agent::start(&node, program, &args.map(Into::into), &file).unwrap();
    let frontends =
        [SocketAddr::new(cluster_ip(10, V4), 80), SocketAddr::new(NODE_IP.v4, NODE_PORT)];
    for (protocol, to) in [Protocol::Tcp, Protocol::Udp].into_iter().zip(frontends) {
        for netns in [&node, &pod] {
            let log = || fs::read_to_string(&log).unwrap();
            crate::node::wait(
                &format!("{to} from {}", netns.name()),
                || netns.dial(Dial::new(protocol, to).timeout(SILENCE)).answer().is_some(),
                log,
            );
        }
    }
}
