//! The agent's own Node: waiting for it, and what its changes do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use kubeweir::model::{Family, Kind, PerFamily, Protocol};
use kubeweir::node::object::NODE_TIMEOUT;
use kubeweir::testing::api_server::Ask;
use kubeweir::testing::lab::{NODE_CIDR, NODE_IP, NODE_NAME, Outcome, Place, SECOND_NODE_IP};
use kubeweir::testing::slowed;
use serde_json::{Value, json};

use crate::objects::{balanced, node, node_port, service, slice};
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

/// The Node with other addresses.
fn at(addresses: PerFamily<IpAddr>) -> Value {
    let address = |family| json!({ "type": "InternalIP", "address": addresses[family] });
    let mut node = node();
    node["status"]["addresses"] = Family::BOTH.map(address).into();
    node
}

/// What a client outside gets at an address of the node.
fn dial(site: &Site, address: IpAddr, protocol: Protocol) -> Outcome {
    site.dial(Place::Outside, protocol, SocketAddr::new(address, 30080))
}

fn served(site: &Site, address: IpAddr) -> bool {
    let answers = [Protocol::Tcp, Protocol::Udp].map(|protocol| dial(site, address, protocol));
    answers.iter().all(|outcome| outcome.answer().is_some())
}

// C8, B-059: upstream ends when the node IPs change. Here they are followed: NodePorts, masquerading and
// health-check ports move, localhost stays, and flows that are under way go on.
#[test]
fn other_node_ips_are_followed() {
    const CHECK: u16 = 32000;
    let site = Site::lab();
    site.server.put(&node_port("web", 1, 30080));
    site.server.put(&balanced("checked", 2, CHECK));
    for family in Family::BOTH {
        site.server.put(&slice("web", family, &[Place::RemotePod(0)]));
        site.server.put(&slice("checked", family, &[Place::Pod(0)]));
    }
    let proxy = site.start_config(|config| {
        config["featureGates"] = json!({ "KubeProxyNFTablesLocalhostNodePorts": true });
        config["nodePortAddresses"] = json!(["primary", "localhost"]);
    });
    let localhost = |family| match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    for (new, old) in
        [(NODE_IP, SECOND_NODE_IP), (SECOND_NODE_IP, NODE_IP), (NODE_IP, SECOND_NODE_IP)]
    {
        site.server.put(&at(new));
        for family in Family::BOTH {
            site.wait(&proxy, &format!("NodePorts at {}", new[family]), || {
                served(&site, new[family])
                    && dial(&site, old[family], Protocol::Udp) == Outcome::Refused
            });
            assert_eq!(
                dial(&site, old[family], Protocol::Tcp),
                Outcome::Refused,
                "{}",
                old[family]
            );
            // The remote endpoint could not answer the client otherwise: the answer would pass us by.
            let answer = dial(&site, new[family], Protocol::Tcp);
            assert!(answer.answer().unwrap().masqueraded(), "{answer:?}");
            site.wait(&proxy, &format!("the health check at {}", new[family]), || {
                site.listens(new[family], CHECK) && !site.listens(old[family], CHECK)
            });
            let to = SocketAddr::new(localhost(family), 30080);
            let answer = site.dial(Place::Host, Protocol::Tcp, to);
            assert!(answer.answer().is_some(), "{answer:?}");
        }
    }
}

// C8: a Node that loses its addresses for a while keeps those that it had, and a family that is gone
// for good is served as after a start without it: on every address.
#[test]
fn missing_node_ips_are_not_every_address() {
    let site = Site::lab();
    site.server.put(&node_port("web", 1, 30080));
    for family in Family::BOTH {
        site.server.put(&slice("web", family, &[Place::Pod(0)]));
    }
    let proxy = site.start();
    site.wait(&proxy, "the NodePort", || served(&site, NODE_IP.v4));
    let before = Family::BOTH.map(|family| site.table(family));
    let mut without = node();
    without["status"]["addresses"] = json!([]);
    // B-058: outside NodeCIDR mode other podCIDRs mean nothing.
    without["spec"]["podCIDRs"] = json!(["10.99.0.0/24"]);
    put_and_wait(&site, &proxy, without);
    assert_eq!(Family::BOTH.map(|family| site.table(family)), before);
    let mut single = at(NODE_IP);
    single["status"]["addresses"].as_array_mut().unwrap().pop();
    site.server.put(&single);
    site.wait(&proxy, "IPv6 everywhere", || served(&site, SECOND_NODE_IP.v6));
    proxy.wait_log(&["no IPv6 node IP"]);
    assert_eq!(dial(&site, SECOND_NODE_IP.v4, Protocol::Tcp), Outcome::Refused);
    // The table was replaced by one with other rules, and is again.
    site.server.put(&node());
    site.wait(&proxy, "IPv6 on the node IP", || {
        dial(&site, SECOND_NODE_IP.v6, Protocol::Udp) == Outcome::Refused
    });
    assert!(served(&site, NODE_IP.v6) && served(&site, NODE_IP.v4));
}

// B-161: what a source range admits depends on the node IP.
#[test]
fn source_ranges_follow_the_node_ip() {
    let site = Site::bare();
    let mut web = balanced("web", 1, 32000);
    web["spec"]["loadBalancerSourceRanges"] = json!(["192.168.10.0/24"]);
    site.server.put(&web);
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    let own = "192.0.2.10,";
    let admits = || site.table(Family::V4).contains("elements = { 192.0.2.10, 192.168.10.0/24 }");
    site.wait(&proxy, own, admits);
    site.server.put(&at(SECOND_NODE_IP));
    site.wait(&proxy, "without it", || {
        !admits() && site.table(Family::V4).contains("192.168.10.0/24")
    });
    site.server.put(&node());
    site.wait(&proxy, own, admits);
}

// B-059: the Node's deletion ends the process; its rules stay. Another node's does not.
#[test]
fn deletion_ends_the_process() {
    let site = Site::lab();
    site.server.put(&node_port("web", 1, 30080));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    let served = || dial(&site, NODE_IP.v4, Protocol::Tcp).answer().is_some();
    site.wait(&proxy, "the NodePort", served);
    site.server.delete(Kind::Node, "", NODE_NAME);
    let (code, log) = proxy.end();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("the Node was deleted"), "{log}");
    assert!(served(), "the rules stay");
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
    site.wait_until(started + NODE_TIMEOUT + slowed(SOON), &proxy, "the first sync", || {
        site.is_synced()
    });
    assert!(started.elapsed() >= NODE_TIMEOUT, "{:?}", started.elapsed());
    let line = proxy.wait_log(&["Going on with loopback node IPs"]);
    assert!(line.contains("timeout waiting for node to exist"), "{line}");
    assert!(line.contains("set --hostname-override"), "what to do about it: {line}");
    let chosen = |family| site.table(family).contains("set nodeport-ips");
    assert!(
        !chosen(Family::V4),
        "no node IP is known to take NodePorts: {}",
        site.table(Family::V4)
    );
    // C8: it was every address for ever.
    site.server.put(&node());
    site.wait(&proxy, "the node IPs", || Family::BOTH.into_iter().all(chosen));
    let accepted = format!("elements = {{ {} }}", NODE_IP.v4);
    assert!(site.table(Family::V4).contains(&accepted), "{}", site.table(Family::V4));
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
