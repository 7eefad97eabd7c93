//! The agent's own Node: waiting for it, and what its changes do.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use kubeweir::model::{Family, Kind, Protocol};
use kubeweir::node::object::NODE_TIMEOUT;
use kubeweir::testing::api_server::Ask;
use kubeweir::testing::lab::{NODE_CIDR, NODE_IP, NODE_NAME, Place};
use serde_json::{Value, json};

use crate::objects::{node, node_port, service, slice};
use crate::site::{HEALTHZ, Proxy, SOON, Site};

const ZONE: &str = "topology.kubernetes.io/zone";

fn in_zone(zone: &str) -> Value {
    let mut node = node();
    node["metadata"]["labels"][ZONE] = zone.into();
    node
}

/// Puts a Node and waits until the agent has seen it: it asks to be left alone, which shows.
fn put_and_wait(site: &Site, proxy: &Proxy, mut node: Value) {
    node["spec"]["taints"] = json!([{ "key": "ToBeDeletedByClusterAutoscaler" }]);
    site.server.put(&node);
    site.wait(proxy, "the Node is seen", || site.get(HEALTHZ, "/healthz").status == 503);
}

// B-060, Q-19: the zone of the start counts, a new one at once; another label means nothing.
#[test]
fn zone() {
    let site = Site::lab();
    site.server.put(&in_zone("a"));
    site.server.put(&service("web", 1));
    let mut hinted = slice("web", Family::V4, &[Place::Pod(0), Place::RemotePod(1)]);
    for (at, zone) in ["a", "b"].into_iter().enumerate() {
        hinted["endpoints"][at]["hints"] = json!({ "forZones": [{ "name": zone }] });
    }
    site.server.put(&hinted);
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    for _ in 0..10 {
        let outcome = site.dial_cluster_ip(Place::Pod(1), Protocol::Tcp, 1);
        assert_eq!(outcome.answer().unwrap().server, "pod-0");
    }
    site.server.put(&in_zone("b"));
    site.wait_served(&proxy, 1, "remote-1");

    let queued = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
    let last = || site.scrape().value(queued, &[("ip_family", "IPv4")]);
    let before = last();
    let mut other = in_zone("b");
    other["metadata"]["labels"]["other"] = "changed".into();
    put_and_wait(&site, &proxy, other);
    assert_eq!(last(), before);
}

// B-058, B-059: other node IPs, other podCIDRs outside NodeCIDR mode, and no Node at all: the agent
// goes on with what it had.
#[test]
fn other_addresses_and_deletion() {
    let site = Site::lab();
    site.server.put(&node_port("web", 1, 30080));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    let at_node = SocketAddr::new(NODE_IP.v4, 30080);
    let served = || site.dial(Place::Outside, Protocol::Tcp, at_node).answer().is_some();
    site.wait(&proxy, "the NodePort", served);
    let before = site.table(Family::V4);
    let mut moved = node();
    moved["status"]["addresses"] = json!([{ "type": "InternalIP", "address": "192.0.2.77" }]);
    moved["spec"]["podCIDRs"] = json!(["10.99.0.0/24"]);
    put_and_wait(&site, &proxy, moved);
    assert_eq!(site.table(Family::V4), before);
    site.server.delete(Kind::Node, "", NODE_NAME);
    site.server.put(&service("later", 2));
    site.wait(&proxy, "a later change", || site.table(Family::V4).contains("10.96.0.2"));
    assert!(served());
}

// B-058: in NodeCIDR mode other podCIDRs end the process.
#[test]
fn other_pod_cidrs_in_node_cidr_mode() {
    let site = Site::bare();
    let proxy = site.start_config(|config| config["detectLocalMode"] = "NodeCIDR".into());
    let mut moved = node();
    moved["spec"]["podCIDRs"] = json!(["10.99.0.0/24"]);
    site.server.put(&moved);
    let (code, log) = proxy.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("podCIDRs changed"), "{log}");
}

// B-052, B-055: neither port nor rule before the Node has an address; then everything goes on.
#[test]
fn the_node_is_waited_for() {
    let site = Site::bare();
    site.server.delete(Kind::Node, "", NODE_NAME);
    let mut other = node();
    other["metadata"]["name"] = "another".into();
    site.server.put(&other);
    let config = site.config(|_| {});
    let proxy = site.launch(&[&config, &format!("--hostname-override={NODE_NAME}")]);
    site.wait_watched(Kind::Node);
    let request = site.server.requests().into_iter().find(|r| r.kind == Some(Kind::Node)).unwrap();
    assert_eq!(request.query["fieldSelector"], format!("metadata.name={NODE_NAME}"));
    let mut without = node();
    without["status"]["addresses"] = json!([]);
    site.server.put(&without);
    site.server.wait("the Node is sent", SOON, |server| server.streamed() > 0);
    assert!(!site.listens(IpAddr::from([127, 0, 0, 1]), HEALTHZ));
    assert_eq!(site.server.count(Kind::Service, Ask::Watch), 0);
    site.server.put(&node());
    site.wait(&proxy, "the first sync", || site.is_synced());
    assert!(!proxy.log().contains("loopback"), "{}", proxy.log());
    let accepted = format!("elements = {{ {} }}", NODE_IP.v4);
    assert!(site.table(Family::V4).contains(&accepted), "its first InternalIP takes NodePorts");
}

// B-053: a Node that does not appear is waited for half a minute; then everything goes on with
// loopback node IPs.
#[test]
fn a_missing_node_is_waited_for_half_a_minute() {
    let site = Site::bare();
    site.server.delete(Kind::Node, "", NODE_NAME);
    let config = site.config(|_| {});
    let started = Instant::now();
    let proxy = site.launch(&[&config, &format!("--hostname-override={NODE_NAME}")]);
    site.wait_until(started + NODE_TIMEOUT + SOON, &proxy, "the first sync", || site.is_synced());
    assert!(started.elapsed() >= NODE_TIMEOUT, "{:?}", started.elapsed());
    let line = proxy.wait_log(&["Going on with loopback node IPs"]);
    assert!(line.contains("timeout waiting for node to exist"), "{line}");
    assert!(line.contains("set --hostname-override"), "what to do about it: {line}");
    let table = site.table(Family::V4);
    assert!(!table.contains("set nodeport-ips"), "no node IP is known to take NodePorts: {table}");
}

// B-054: in NodeCIDR mode neither port nor rule before the Node has podCIDRs, which end the wait
// when they come.
#[test]
fn pod_cidrs_are_waited_for_in_node_cidr_mode() {
    let site = Site::bare();
    let mut without = node();
    without["spec"].as_object_mut().unwrap().remove("podCIDRs");
    site.server.put(&without);
    let config = site.config(|config| config["detectLocalMode"] = "NodeCIDR".into());
    let proxy = site.launch(&[&config, &format!("--hostname-override={NODE_NAME}")]);
    site.wait_watched(Kind::Node);
    let mut labelled = without;
    labelled["metadata"]["labels"]["other"] = "changed".into();
    let before = site.server.streamed();
    site.server.put(&labelled);
    site.server.wait("the change is sent", SOON, |server| server.streamed() > before);
    assert!(!site.listens(IpAddr::from([127, 0, 0, 1]), HEALTHZ) && !site.is_synced());
    assert_eq!(site.server.count(Kind::Service, Ask::Watch), 0);
    site.server.put(&node());
    site.wait(&proxy, "the first sync", || site.is_synced());
    for family in Family::BOTH {
        assert!(site.table(family).contains(&format!("saddr != {}", NODE_CIDR[family])));
    }
}
