//! Modes other than nftables: the rules are nftables, what users notice is that mode's (table 5.10).

use std::net::{IpAddr, SocketAddr};

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{
    NODE_IP, Outcome, PATIENCE, Place, SECOND_NODE_IP, cluster_ip, pod_ip, remote_pod_ip,
};

use crate::objects::{node_port, slice};
use crate::site::{METRICS, Proxy, Site};

const NODE_PORT: u16 = 30080;

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

/// A packet in the middle of a TCP flow that conntrack knows nothing of.
fn invalid(site: &Site) -> Outcome {
    site.node().sysctl("net/netfilter/nf_conntrack_tcp_loose", "0").unwrap();
    let to = SocketAddr::new(remote_pod_ip(0, Family::V4), 8080);
    let mut flow = site.lab_ref().open(Place::Pod(1), Protocol::Tcp, to).unwrap();
    assert!(flow.ask(PATIENCE).answer().is_some());
    let source = pod_ip(1, Family::V4).to_string();
    site.node().feed("conntrack", &["-D", "-s", &source], "").unwrap();
    flow.ask(kubeweir::testing::lab::SILENCE)
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
    assert!(answers(&site, Place::Host, IpAddr::from([127, 0, 0, 1])));
    assert!(!answers(&site, Place::Host, "::1".parse().unwrap()), "never for IPv6");
    assert_ne!(wrong_port(&site), Outcome::Refused);
    assert_eq!(invalid(&site), Outcome::Silent);
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
    assert!(invalid(&site).answer().is_some(), "INVALID packets pass");
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
