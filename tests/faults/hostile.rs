//! Objects that no API server would hand out, and some it would: none stops or slows the others.

use std::collections::BTreeMap;
use std::time::Duration;

use kubeweir::model::{Family, Protocol};
use kubeweir::status::FamilyStatus;
use kubeweir::testing::lab::{Dial, Place, cluster_ip};
use kubeweir::testing::slowed;
use serde_json::{Value, json};

use crate::clients::{Clients, everywhere};
use crate::manifests::{Web, endpoint, slice};
use crate::node::Node;

const SERVED: usize = 10;
const NODE_PORT: u16 = 30_010;

/// The one of which nothing can be used: its entries are too many, though the object is not.
const TOO_MUCH: usize = 70;

/// A good service's change is in force within this, whatever came just before; in a debug build on
/// a busy machine, where five million list entries were seen to take 8 s.
const SOON: Duration = Duration::from_secs(40);

/// A Service like the others, changed.
fn odd(n: usize, change: impl FnOnce(&mut Value)) -> Vec<Value> {
    let endpoints = [Place::Pod(0), Place::RemotePod(0)];
    let mut objects = Web::new(&format!("odd-{n}"), 500 + n, &endpoints).objects();
    change(&mut objects[0]);
    objects
}

/// The same with another change of its IPv4 slice.
fn odd_slice(n: usize, change: impl FnOnce(&mut Value)) -> Vec<Value> {
    let mut objects = odd(n, |_| {});
    change(&mut objects[1]);
    objects
}

fn renamed(n: usize, name: &str) -> Vec<Value> {
    let mut objects = odd(n, |service| service["spec"]["sessionAffinity"] = "ClientIP".into());
    objects[0]["metadata"]["name"] = name.into();
    for slice in &mut objects[1..] {
        slice["metadata"]["labels"]["kubernetes.io/service-name"] = name.into();
    }
    objects
}

fn names() -> Vec<(&'static str, Vec<Value>)> {
    vec![
        ("a name of 300 bytes", renamed(1, &"n".repeat(300))),
        ("a name at the API's limit", renamed(2, &"n".repeat(63))),
        ("a name with a NUL", renamed(3, "a\0b")),
        ("a name with quotes and line ends", renamed(4, "a\"\n}\n;b")),
        ("a name with a slash", renamed(5, "../../x")),
        ("an empty name", renamed(6, "")),
        ("names that are not ASCII", renamed(7, &"\u{1f98a}".repeat(80))),
        (
            "a port name of 500 bytes",
            odd(8, |service| {
                service["spec"]["ports"][0]["name"] = "p".repeat(500).into();
                service["spec"]["sessionAffinity"] = "ClientIP".into();
            }),
        ),
    ]
}

fn services() -> Vec<(&'static str, Vec<Value>)> {
    let spec = |n, key: &'static str, value: Value| odd(n, move |s| s["spec"][key] = value);
    let port =
        |n, key: &'static str, value: Value| odd(n, move |s| s["spec"]["ports"][0][key] = value);
    let ranges: Vec<String> =
        (0..1000).map(|i| format!("10.{}.{}.0/{}", i / 250, i % 250, 8 + i % 25)).collect();
    let many_ports: Vec<Value> = (1..=5000)
        .map(|i| json!({ "name": format!("p{i}"), "protocol": "TCP", "port": i }))
        .collect();
    let rival = cluster_ip(SERVED, Family::V4).to_string();
    vec![
        ("no spec", odd(20, |s| s["spec"] = Value::Null)),
        ("a spec that is a list", odd(21, |s| s["spec"] = json!([1, 2]))),
        ("no ports", spec(22, "ports", json!([]))),
        ("port 0", port(23, "port", json!(0))),
        ("port 65536", port(24, "port", json!(65_536))),
        ("port -1", port(25, "port", json!(-1))),
        ("port 1e300", port(26, "port", json!(1e300))),
        ("a protocol nobody knows", port(27, "protocol", json!("QUIC"))),
        ("SCTP", port(28, "protocol", json!("SCTP"))),
        ("5000 ports", spec(29, "ports", json!(many_ports))),
        (
            "the same port twice",
            odd(30, |s| {
                let first = s["spec"]["ports"][0].clone();
                s["spec"]["ports"].as_array_mut().unwrap().extend([first.clone(), first]);
            }),
        ),
        ("ClusterIPs of no family", spec(31, "clusterIPs", json!(["x", "300.1.1.1", ""]))),
        ("ClusterIPs None and some", spec(32, "clusterIPs", json!(["None", "10.96.5.5"]))),
        ("a ClusterIP of ours", spec(33, "clusterIPs", json!([rival]))),
        ("ClusterIP 0.0.0.0", spec(34, "clusterIPs", json!(["0.0.0.0"]))),
        ("a multicast ClusterIP", spec(35, "clusterIPs", json!(["224.0.0.1", "ff02::1"]))),
        (
            "affinity for 0 s",
            odd(36, |s| {
                s["spec"]["sessionAffinity"] = "ClientIP".into();
                s["spec"]["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 0 } });
            }),
        ),
        (
            "affinity for 68 years",
            odd(37, |s| {
                s["spec"]["sessionAffinity"] = "ClientIP".into();
                let seconds = json!({ "clientIP": { "timeoutSeconds": i32::MAX } });
                s["spec"]["sessionAffinityConfig"] = seconds;
            }),
        ),
        (
            "affinity before the epoch",
            odd(38, |s| {
                s["spec"]["sessionAffinity"] = "ClientIP".into();
                s["spec"]["sessionAffinityConfig"] =
                    json!({ "clientIP": { "timeoutSeconds": -5 } });
            }),
        ),
        (
            "overlapping source ranges",
            odd(39, |s| {
                s["spec"]["type"] = "LoadBalancer".into();
                s["spec"]["loadBalancerSourceRanges"] = json!(ranges);
                s["status"]["loadBalancer"]["ingress"] = json!([{ "ip": "198.51.100.39" }]);
            }),
        ),
        ("external IPs that are the node's", spec(40, "externalIPs", json!(["192.168.10.1"]))),
        (
            "an annotation of a megabyte",
            odd(41, |s| {
                s["metadata"]["annotations"] = json!({ "a": "x".repeat(1 << 20) });
            }),
        ),
        (
            "a NodePort of ours",
            odd(42, |s| {
                s["spec"]["type"] = "NodePort".into();
                s["spec"]["ports"][0]["nodePort"] = NODE_PORT.into();
                s["metadata"]["creationTimestamp"] = "2030-01-01T00:00:00Z".into();
            }),
        ),
    ]
}

fn slices() -> Vec<(&'static str, Vec<Value>)> {
    let web = json!([{ "name": "tcp", "protocol": "TCP", "port": 8080 }]);
    let crowd = |n: usize| {
        let mut objects = odd(n, |_| {});
        // Twenty slices of a thousand, each endpoint in two of them.
        objects.extend((0..20).map(|i| {
            let of = |k: usize| {
                let number = (i * 500 + k) % 10_000;
                json!({
                    "addresses": [format!("10.245.{}.{}", number / 250, number % 250)],
                    "conditions": {}, "nodeName": "elsewhere",
                })
            };
            let endpoints: Vec<Value> = (0..1000).map(of).collect();
            let mut slice = slice(&format!("odd-{n}"), Family::V4, &web, &endpoints);
            slice["metadata"]["name"] = format!("crowd-{i}").into();
            slice
        }));
        objects
    };
    let product = |n: usize| {
        let named = |i: usize| json!({ "name": format!("p{i}"), "protocol": "TCP", "port": i });
        let ports: Vec<Value> = (1..=5000).map(named).collect();
        let of = |k: usize| json!({ "addresses": [format!("10.246.{}.{}", k / 250, k % 250)] });
        let endpoints: Vec<Value> = (0..1000).map(of).collect();
        let mut objects = odd(n, |service| service["spec"]["ports"] = ports.clone().into());
        objects[1] = slice(&format!("odd-{n}"), Family::V4, &json!(ports), &endpoints);
        objects
    };
    vec![
        ("20 000 endpoints", crowd(60)),
        ("5000 ports of 1000 endpoints", product(TOO_MUCH)),
        (
            "addresses of the other family",
            odd_slice(61, |s| {
                s["endpoints"] = json!([endpoint(Place::Pod(0), Family::V6)]);
            }),
        ),
        ("an address type nobody knows", odd_slice(62, |s| s["addressType"] = "FQDN".into())),
        ("no addresses", odd_slice(63, |s| s["endpoints"] = json!([{ "addresses": [] }]))),
        ("no service", odd_slice(64, |s| s["metadata"]["labels"] = json!({}))),
        ("ports without numbers", odd_slice(65, |s| s["ports"] = json!([{ "name": "tcp" }]))),
        (
            "endpoints at 0.0.0.0, loopback, multicast",
            odd_slice(66, |s| {
                s["endpoints"] = json!([
                    { "addresses": ["0.0.0.0"] }, { "addresses": ["127.0.0.1"] },
                    { "addresses": ["224.0.0.1"] }, { "addresses": ["255.255.255.255"] },
                ]);
            }),
        ),
        (
            "an endpoint that is its own service",
            odd_slice(67, |s| {
                s["endpoints"] = json!([{ "addresses": [cluster_ip(567, Family::V4)] }]);
            }),
        ),
        ("endpoints null", odd_slice(68, |s| s["endpoints"] = Value::Null)),
        (
            "hints and zones of a megabyte",
            odd_slice(69, |s| {
                let zone = "z".repeat(1 << 20);
                s["endpoints"][0]["zone"] = zone.clone().into();
                s["endpoints"][0]["hints"] = json!({ "forZones": [{ "name": zone }] });
            }),
        ),
    ]
}

fn all() -> Vec<(&'static str, Vec<Value>)> {
    [names(), services(), slices()].concat()
}

// Every kind of nonsense comes, stays through a restart, and goes, while a good service is dialled.
#[test]
fn nonsense_neither_stops_nor_slows_the_rest() {
    let mut node = Node::new();
    let mut served = Web::new("a-served", SERVED, &[Place::Pod(0), Place::RemotePod(0)]);
    served.node_port = Some(NODE_PORT);
    node.write("a-served", &served.objects());
    node.start_and_settle(&["--service-counters"]);
    let clients = Clients::start(&node.lab, &everywhere(SERVED, NODE_PORT));
    let cases = all();
    for (i, (title, objects)) in cases.iter().enumerate() {
        node.write(&format!("odd-{i:03}"), objects);
        // What comes after it is in force soon: nothing waits behind it.
        let endpoint = Place::Pod(1 + i % 2);
        let canary = Web::new("canary", SERVED + 1, &[endpoint]);
        node.write("canary", &canary.objects());
        let to = std::net::SocketAddr::new(cluster_ip(SERVED + 1, Family::V4), 80);
        let server = format!("pod-{}", 1 + i % 2);
        let took = node.answered_by(Place::Pod(0), Dial::new(Protocol::Tcp, to), &server);
        println!("{took:>8.0?}  {title}");
        assert!(took < slowed(SOON), "{title} slows the rest: {took:?}");
    }
    node.start_and_settle(&["--service-counters"]);
    let families = node.status().unwrap().families;
    assert!(families["IPv6"].quarantine.is_empty(), "{:?}", families["IPv6"].quarantine);
    let [aside] = &families["IPv4"].quarantine[..] else { panic!("{:?}", families["IPv4"]) };
    assert_eq!(aside.service, format!("default/odd-{TOO_MUCH}"));
    assert!(aside.reason.starts_with("5000000 list entries"), "{aside:?}");
    node.like_fresh(&["--service-counters"]);
    for i in 0..cases.len() {
        node.write(&format!("odd-{i:03}"), &[]);
    }
    let served_and_canary = |families: &BTreeMap<String, FamilyStatus>| {
        families.values().all(|family| family.summary.totals.services == 2)
    };
    node.wait("the end of all nonsense", || {
        node.status().is_some_and(|status| served_and_canary(&status.families))
    });
    clients.none_failed(&format!("{} kinds of nonsense", cases.len()));
    assert!(!node.log().contains("panicked"), "{}", node.log());
    node.like_fresh(&["--service-counters"]);
}
