//! Modes other than nftables: the rules are nftables, what users notice is that mode's (table 5.10).

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{
    Dial, Flow, NODE_IP, Outcome, PATIENCE, Place, SECOND_NODE_IP, SILENCE, cluster_ip,
    external_ip, pod_ip, remote_pod_ip,
};
use kubeweir::testing::slowed;
use serde_json::{Value, json};

use crate::objects::{node_port, slice};
use crate::site::{METRICS, Proxy, SOON, Site};

const NODE_PORT: u16 = 30080;

const INVALID: &str = "kubeproxy_iptables_ct_state_invalid_dropped_packets_total";
const ACCEPTED: &str = "kubeproxy_iptables_localhost_nodeports_accepted_packets_total";
const DROPPED: &str = "kubeweir_dropped_packets_total";

fn started(mode: &str) -> (Site, Proxy) {
    let site = Site::lab();
    site.server.put(&node_port("web", 1, NODE_PORT));
    for family in Family::BOTH {
        site.server.put(&slice("web", family, &[Place::Pod(0)]));
    }
    let proxy = site.start_config(|config| config["mode"] = mode.into());
    site.wait_served(&proxy, 1, "pod-0");
    (site, proxy)
}

fn answers(site: &Site, from: Place, address: IpAddr) -> bool {
    let to = SocketAddr::new(address, NODE_PORT);
    site.dial(from, Protocol::Tcp, to).answer().is_some()
}

/// Packets in a counter of the IPv4 table, as nft tells them.
fn counted(site: &Site, name: &str) -> f64 {
    let list = ["-j", "list", "counter", "ip", "kube-proxy", name];
    let told = site.node().feed("nft", &list, "").unwrap();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    let objects = told["nftables"].as_array().unwrap();
    objects.iter().find_map(|object| object["counter"]["packets"].as_f64()).unwrap()
}

/// A packet in the middle of a TCP flow that conntrack knows nothing of.
fn invalid(site: &Site, patience: Duration) -> Outcome {
    site.node().sysctl("net/netfilter/nf_conntrack_tcp_loose", "0").unwrap();
    let to = SocketAddr::new(remote_pod_ip(0, Family::V4), 8080);
    let mut flow = site.lab_ref().open(Place::Pod(1), Protocol::Tcp, to).unwrap();
    assert!(flow.ask(PATIENCE).answer().is_some());
    let source = pod_ip(1, Family::V4).to_string();
    site.node().feed("conntrack", &["-D", "-s", &source], "").unwrap();
    flow.ask(patience)
}

fn wrong_port(site: &Site) -> Outcome {
    let to = SocketAddr::new(cluster_ip(1, Family::V4), 81);
    site.dial(Place::Pod(1), Protocol::Tcp, to)
}

// B-042, B-068, B-153, B-250: blank is iptables mode: NodePorts on all addresses and on IPv4's
// loopback, unused ports of a ClusterIP fall through, INVALID packets are dropped; one line says so.
#[test]
fn blank_is_iptables() {
    let (site, proxy) = started("");
    // KEP-5343, 1.37: that the default will change is said in the log and as an Event.
    let event = site.wait_event("UnsetProxyMode");
    assert_eq!(event["type"], "Warning");
    assert!(proxy.log().contains("The proxy mode is not set"), "{}", proxy.log());
    assert_eq!(site.get(METRICS, "/proxyMode").text(), "iptables");
    assert_eq!(proxy.log().matches("Rules are written with nftables").count(), 1);
    assert!(proxy.log().contains("primary"), "nodePortAddresses is unset: {}", proxy.log());
    for family in Family::BOTH {
        assert!(answers(&site, Place::Outside, NODE_IP[family]), "{family}");
        assert!(answers(&site, Place::Outside, SECOND_NODE_IP[family]), "{family}");
    }
    counts_what_localhost_dials(&site);
    assert!(!answers(&site, Place::Host, "::1".parse().unwrap()), "never for IPv6");
    assert_ne!(wrong_port(&site), Outcome::Refused);
    let dropped = [("ip_family", "IPv4"), ("reason", "invalid")];
    assert_eq!(site.scrape().value(DROPPED, &dropped), Some(0.0));
    assert_eq!(site.scrape().value(INVALID, &[]), Some(0.0));
    assert_eq!(invalid(&site, SILENCE), Outcome::Silent);
    let packets = counted(&site, "invalid");
    assert!(packets > 0.0);
    site.wait(&proxy, "nobody to say it again", || {
        let scrape = site.scrape();
        let told = scrape.value(INVALID, &[]);
        told.is_some_and(|told| told >= packets && told == counted(&site, "invalid"))
            && scrape.value(DROPPED, &dropped) == told
    });
}

/// The first packet of each connection to a NodePort on a loopback address, and of no other.
fn counts_what_localhost_dials(site: &Site) {
    let accepted = || site.scrape().value(ACCEPTED, &[]);
    assert_eq!(accepted(), Some(0.0));
    let loopback = |last| IpAddr::from([127, 0, 0, last]);
    for last in [1, 1, 2] {
        assert!(answers(site, Place::Host, loopback(last)));
    }
    assert!(answers(site, Place::Host, NODE_IP.v4));
    let unused = SocketAddr::new(loopback(1), NODE_PORT + 1);
    assert_eq!(site.dial(Place::Host, Protocol::Tcp, unused), Outcome::Refused);
    assert_eq!(accepted(), Some(3.0));
}

// B-136, B-154, B-156, B-216: the same dials in nftables mode, where all of that is otherwise.
#[test]
fn nftables_differs() {
    let (site, proxy) = started("nftables");
    assert!(!proxy.log().contains("The proxy mode is not set"), "{}", proxy.log());
    assert!(!proxy.log().contains("Rules are written with nftables"), "{}", proxy.log());
    assert!(answers(&site, Place::Outside, NODE_IP.v4));
    assert!(!answers(&site, Place::Outside, SECOND_NODE_IP.v4));
    assert!(!answers(&site, Place::Host, IpAddr::from([127, 0, 0, 1])));
    assert_eq!(wrong_port(&site), Outcome::Refused);
    assert!(invalid(&site, PATIENCE).answer().is_some(), "INVALID packets pass");
    let read = |key: &str| {
        let path = format!("/proc/sys/net/ipv4/{key}");
        site.node().run(|| std::fs::read_to_string(path).unwrap())
    };
    assert_eq!(read("conf/all/route_localnet").trim(), "0");
}

// B-250: ipvs mode starts and says that it goes; it has no rule for unused ports either.
#[test]
fn ipvs() {
    let (site, proxy) = started("ipvs");
    assert_eq!(site.get(METRICS, "/proxyMode").text(), "ipvs");
    assert_eq!(proxy.log().matches("Rules are written with nftables").count(), 1);
    let event = site.wait_event("IPVSDeprecation");
    assert_eq!(event["type"], "Warning");
    assert!(answers(&site, Place::Outside, SECOND_NODE_IP.v4));
    assert_ne!(wrong_port(&site), Outcome::Refused);
}

// C4: what is served for being local, here by a route alone, is masqueraded and remembered by the same
// test. The endpoint is on another node: without that its answer would not pass here.
#[test]
fn node_ports_on_addresses_that_a_route_makes_local() {
    let site = Site::lab();
    let mut web = node_port("web", 1, NODE_PORT);
    web["spec"]["sessionAffinity"] = "ClientIP".into();
    site.server.put(&web);
    for family in Family::BOTH {
        let route = format!("route add local {} dev lo", external_ip(6, family));
        site.node().ip(&route).unwrap();
        site.server.put(&slice("web", family, &[0, 1, 2].map(Place::RemotePod)));
    }
    let proxy = site.start_config(|config| config["mode"] = "iptables".into());
    site.wait_outcome(&proxy, Place::Pod(1), 1, |outcome| outcome.answer().is_some());
    for family in Family::BOTH {
        for ip in [external_ip(6, family), NODE_IP[family]] {
            let to = SocketAddr::new(ip, NODE_PORT);
            let dial = Dial::new(Protocol::Tcp, to);
            let outcomes = site.lab_ref().dial(Place::Outside, dial, 8);
            let answers: Vec<_> = outcomes.iter().filter_map(Outcome::answer).collect();
            assert_eq!(answers.len(), 8, "{to}: {outcomes:?}");
            assert!(answers.iter().all(|answer| answer.masqueraded()), "{to}: {answers:?}");
            assert!(answers.iter().all(|a| a.server == answers[0].server), "{to}: {answers:?}");
        }
    }
}

/// What a CNI plug-in's port forwarding to a pod looks like; `nft` registers it now.
fn forward_host_port(site: &Site) {
    let rules = Family::BOTH.map(|family| {
        let table = if family == Family::V4 { "ip" } else { "ip6" };
        let (ip, pod) = (NODE_IP[family], SocketAddr::new(pod_ip(1, family), 8080));
        format!(
            "table {table} hostports
            delete table {table} hostports
            table {table} hostports {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat
                    {table} daddr {ip} tcp dport 80 dnat to {pod}
                }}
            }}"
        )
    });
    site.node().nft(&rules.join("\n")).unwrap();
}

// C5: a load balancer's address that is the node's own, and another program's hostPort there: in
// iptables mode the Service has it, whoever came first.
#[test]
fn host_ports_at_a_services_address() {
    let site = Site::lab();
    let mut web = node_port("web", 1, NODE_PORT);
    web["spec"]["type"] = "LoadBalancer".into();
    let ingress = Family::BOTH.map(|family| json!({ "ip": NODE_IP[family] }));
    web["status"] = json!({ "loadBalancer": { "ingress": ingress } });
    site.server.put(&web);
    for family in Family::BOTH {
        site.server.put(&slice("web", family, &[Place::Pod(0)]));
    }
    let served = |what: &str| {
        for family in Family::BOTH {
            let outcome =
                site.dial(Place::Outside, Protocol::Tcp, SocketAddr::new(NODE_IP[family], 80));
            let server = outcome.answer().map(|answer| answer.server.as_str());
            assert_eq!(server, Some("pod-0"), "{what}: {outcome:?}");
        }
    };
    forward_host_port(&site);
    let proxy = site.start_config(|config| config["mode"] = "iptables".into());
    site.wait_served(&proxy, 1, "pod-0");
    served("the hostPort was first");
    forward_host_port(&site);
    served("the Service was first");
}

// C6: an option of ours has nftables mode drop INVALID packets as iptables mode does.
#[test]
fn invalid_packets_are_dropped_on_request() {
    let site = Site::lab();
    let proxy = site.start_config(|config| {
        config["kubeweir"] = json!({ "dropInvalid": true });
    });
    assert_eq!(invalid(&site, SILENCE), Outcome::Silent, "{}", proxy.log());
}

/// Has the servers elsewhere answer half of all sequence numbers ahead: further than any window, whatever
/// number the connection has come to.
fn answer_ahead(site: &Site) {
    let rules = "table inet window {
        chain output {
            type filter hook output priority 300
            tcp sport 8080 tcp flags & psh != 0 tcp sequence set tcp sequence xor 0x80000000
        }
    }";
    site.lab_ref().elsewhere.nft(rules).unwrap();
}

// C6: an answer out of its window is INVALID and stays untranslated. A pod, or the node in whose name a
// client dialled, knows of no such connection, and resets it at the server. As upstream: nftables mode
// lets that happen, and iptables mode keeps it from pods; so does `dropInvalid`. `tcpBeLiberal` keeps
// both connections.
#[test]
fn answers_out_of_their_window() {
    let site = Site::lab();
    let lab = site.lab_ref();
    site.server.put(&node_port("web", 1, NODE_PORT));
    for family in Family::BOTH {
        site.server.put(&slice("web", family, &[Place::RemotePod(0)]));
    }
    let cases: [(&str, fn(&mut Value), [bool; 2]); 4] = [
        ("nftables", |_| (), [false, false]),
        (
            "dropInvalid",
            |config| config["kubeweir"] = json!({ "dropInvalid": true }),
            [true, false],
        ),
        ("iptables", |config| config["mode"] = "iptables".into(), [true, false]),
        ("tcpBeLiberal", |config| config["conntrack"]["tcpBeLiberal"] = true.into(), [true, true]),
    ];
    for (what, change, kept) in cases {
        let proxy = site.start_config(change);
        proxy.wait_synced();
        site.wait_served(&proxy, 1, "remote-0");
        let flows = |from, to: fn(Family) -> SocketAddr| {
            Family::BOTH.map(|family| lab.open(from, Protocol::Tcp, to(family)).unwrap())
        };
        let mut flows = [
            flows(Place::Pod(1), |f| (cluster_ip(1, f), 80).into()),
            flows(Place::Outside, |f| (NODE_IP[f], NODE_PORT).into()),
        ];
        let answered = |flow: &mut Flow| flow.ask(SOON).answer().is_some();
        assert!(flows.as_flattened_mut().iter_mut().all(answered), "{what}");
        answer_ahead(&site);
        let end = Instant::now() + slowed(SOON);
        let expected = kept.map(|kept| [!kept; 2]);
        let mut broken = [[false; 2]; 2];
        let mut rounds = 0..;
        while rounds.next() < Some(5) || broken != expected && Instant::now() < end {
            let all = flows.as_flattened_mut().iter_mut().zip(broken.as_flattened_mut());
            for (flow, broken) in all {
                let outcome = flow.ask(Duration::from_millis(100));
                assert_eq!(outcome.answer(), None, "{what}");
                *broken |= outcome == Outcome::Failed(ErrorKind::ConnectionReset);
            }
        }
        lab.elsewhere.nft("delete table inet window").unwrap();
        let found = flows.each_mut().map(|flows| flows.each_mut().map(answered));
        assert_eq!(broken, expected, "{what}: to a pod, to the node");
        assert_eq!(found, kept.map(|kept| [kept; 2]), "{what}: to a pod, to the node");
        proxy.terminate();
    }
}
