//! Stale UDP flows after a change of slices.

use std::net::SocketAddr;

use kubeweir::model::{Family, Kind, Protocol};
use kubeweir::testing::lab::{Flow, NODE_IP, PATIENCE, Place, SILENCE, cluster_ip};

use crate::objects::{node_port, service, slice};
use crate::site::{METRICS, Site};

const NODE_PORT: u16 = 30053;
const V4: [(&str, &str); 1] = [("ip_family", "IPv4")];

fn answered_by(flow: &mut Flow, server: &str) -> bool {
    flow.ask(PATIENCE).answer().is_some_and(|answer| answer.server == server)
}

// B-218, B-219, B-222, B-223, B-226: flows by ClusterIP and NodePort move to the endpoint
// that is there; TCP stays. A change of the Service alone is a reason to look, too: its new frontend
// may have flows from before (B16 of the review). With the last endpoint they end (1.37,
// kubernetes#139629): their steady sender reaches the next one.
#[test]
fn stale_flows() {
    let site = Site::lab();
    site.server.put(&node_port("dns", 1, NODE_PORT));
    site.server.put(&slice("dns", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    let done = || {
        let name = "kubeproxy_conntrack_reconciler_sync_duration_seconds_count";
        site.scrape().value(name, &V4).unwrap_or(0.0)
    };
    site.wait(&proxy, "the first reconciliation", || done() == 1.0);
    let lab = site.lab_ref();
    let by_cluster_ip = |port| SocketAddr::new(cluster_ip(1, Family::V4), port);
    let mut udp = [
        lab.open(Place::Pod(1), Protocol::Udp, by_cluster_ip(53)).unwrap(),
        lab.open(Place::Outside, Protocol::Udp, SocketAddr::new(NODE_IP.v4, NODE_PORT)).unwrap(),
    ];
    let mut tcp = lab.open(Place::Pod(1), Protocol::Tcp, by_cluster_ip(80)).unwrap();
    assert!(udp.iter_mut().all(|flow| answered_by(flow, "pod-0")));
    assert!(answered_by(&mut tcp, "pod-0"));

    let mut external = node_port("dns", 1, NODE_PORT);
    external["spec"]["externalIPs"] = serde_json::json!(["198.51.100.9"]);
    site.server.put(&external);
    site.wait(&proxy, "the external IP", || site.table(Family::V4).contains("198.51.100.9"));
    site.wait(&proxy, "a look at flows for the new frontend", || done() == 2.0);
    assert!(udp.iter_mut().all(|flow| answered_by(flow, "pod-0")), "nothing is stale");

    site.server.put(&slice("dns", Family::V4, &[Place::Pod(2)]));
    site.wait(&proxy, "the next reconciliation", || done() == 3.0);
    assert!(udp.iter_mut().all(|flow| answered_by(flow, "pod-2")));
    assert!(answered_by(&mut tcp, "pod-0"), "TCP stays where it is");
    let deleted = "kubeproxy_conntrack_reconciler_deleted_entries_total";
    assert_eq!(site.scrape().value(deleted, &V4), Some(2.0));

    site.server.delete(Kind::EndpointSlice, "default", "dns-v4");
    site.wait(&proxy, "the refusal", || {
        site.table(Family::V4).contains("default/dns") && site.table(Family::V4).contains("refused")
    });
    site.wait(&proxy, "the reconciliation without endpoints", || done() == 4.0);
    for flow in &mut udp {
        assert_eq!(flow.ask(SILENCE).answer(), None, "the endpoint is gone");
    }
    site.server.put(&slice("dns", Family::V4, &[Place::Pod(0)]));
    for flow in &mut udp {
        site.wait(&proxy, "the new endpoint", || answered_by(flow, "pod-0"));
    }
}

// kubernetes#122740: upstream clears the UDP entries of every Service when it starts, so that their clients
// are sent to other endpoints. Here they stay where they are, after an end in order and after a crash.
#[test]
fn a_restart_moves_no_udp_flow() {
    let site = Site::lab();
    site.server.put(&node_port("dns", 1, NODE_PORT));
    site.server.put(&slice("dns", Family::V4, &[Place::Pod(0), Place::Pod(1), Place::Pod(2)]));
    let mut proxy = site.start();
    // A busy machine may need longer for a restart than a flow of one question lasts.
    site.node().sysctl("net/netfilter/nf_conntrack_udp_timeout", "600").unwrap();
    let lab = site.lab_ref();
    let destinations = [
        (Place::Outside, SocketAddr::new(NODE_IP.v4, NODE_PORT)),
        (Place::Host, SocketAddr::new(cluster_ip(1, Family::V4), 53)),
    ];
    let mut flows = Vec::new();
    for (from, to) in destinations.into_iter().cycle().take(10) {
        let mut flow = lab.open(from, Protocol::Udp, to).unwrap();
        site.wait(&proxy, "an answer", || flow.ask(PATIENCE).answer().is_some());
        let server = flow.ask(PATIENCE).answer().unwrap().server.clone();
        flows.push((flow, server));
    }
    for crash in [false, true] {
        if crash {
            drop(proxy);
        } else {
            proxy.terminate();
        }
        proxy = site.start();
        site.wait(&proxy, "the metrics", || site.listens([127, 0, 0, 1].into(), METRICS));
        let count = |name| site.scrape().value(name, &V4);
        let looks = "kubeproxy_conntrack_reconciler_sync_duration_seconds_count";
        site.wait(&proxy, "a look at the flows", || count(looks) >= Some(1.0));
        for (flow, server) in &mut flows {
            assert!(answered_by(flow, server), "crash: {crash}");
        }
        assert_eq!(count("kubeproxy_conntrack_reconciler_deleted_entries_total"), Some(0.0));
    }
}

// B-220, B-225: terminating endpoints keep their flows while they serve; another port does not.
#[test]
fn terminating_and_renumbered() {
    let site = Site::lab();
    site.server.put(&service("dns", 1));
    site.server.put(&slice("dns", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    let to = SocketAddr::new(cluster_ip(1, Family::V4), 53);
    let mut flow = site.lab_ref().open(Place::Pod(1), Protocol::Udp, to).unwrap();
    assert!(answered_by(&mut flow, "pod-0"));
    let mut changed = slice("dns", Family::V4, &[Place::Pod(0), Place::Pod(2)]);
    changed["endpoints"][0]["conditions"] =
        serde_json::json!({ "ready": false, "serving": true, "terminating": true });
    site.server.put(&changed);
    site.wait_served(&proxy, 1, "pod-2");
    assert!(answered_by(&mut flow, "pod-0"));
    let mut other_port = slice("dns", Family::V4, &[Place::Pod(0)]);
    other_port["ports"][1]["port"] = 8443.into();
    site.server.put(&other_port);
    site.wait(&proxy, "the other port", || {
        let answer = flow.ask(PATIENCE);
        answer.answer().is_some_and(|answer| answer.endpoint.port() == 8443)
    });
}
