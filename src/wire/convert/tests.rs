//! Tables over [`Decoder::document`]: what becomes of single fields.

mod endpoint_slice;
mod service;

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::model::{EndpointSlice, Kind, Node, Object, Service, SkipLevel};
use crate::wire::{Decoded, Decoder};

fn decode(kind: Kind, document: &Value) -> Decoded {
    Decoder::new(true).document(kind, document).expect("document has the shape of its kind")
}

/// A Service with a ClusterIP and port 80, and with `patch` merged over it.
fn service_with(patch: Value) -> Decoded {
    let mut document = json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"],
            "type": "ClusterIP", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
        },
    });
    merge(&mut document, patch);
    decode(Kind::Service, &document)
}

fn slice_with(patch: Value) -> Decoded {
    let mut document = json!({
        "metadata": {
            "name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["10.0.0.1"]}],
    });
    merge(&mut document, patch);
    decode(Kind::EndpointSlice, &document)
}

/// RFC 7386: objects are merged, anything else is replaced.
fn merge(target: &mut Value, patch: Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(target.entry(key).or_insert(Value::Null), value);
            }
        }
        (target, patch) => *target = patch,
    }
}

#[track_caller]
fn service(decoded: &Decoded) -> Arc<Service> {
    match &decoded.object {
        Some(Object::Service(service)) => service.clone(),
        other => panic!("no Service but {other:?}: {:?}", decoded.skips),
    }
}

#[track_caller]
fn slice(decoded: &Decoded) -> Arc<EndpointSlice> {
    match &decoded.object {
        Some(Object::EndpointSlice(slice)) => slice.clone(),
        other => panic!("no EndpointSlice but {other:?}: {:?}", decoded.skips),
    }
}

fn node(document: &Value) -> (Arc<Node>, Vec<String>) {
    let decoded = decode(Kind::Node, document);
    match &decoded.object {
        Some(Object::Node(node)) => (node.clone(), fields(&decoded)),
        other => panic!("no Node but {other:?}"),
    }
}

/// The fields reported as errors.
fn fields(decoded: &Decoded) -> Vec<String> {
    let errors = decoded.skips.iter().filter(|skip| skip.level == SkipLevel::Error);
    errors.map(|skip| skip.field.clone()).collect()
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn names_that_cannot_be_names_are_refused() {
    let long = "a".repeat(64);
    for name in ["", "Web", "a b", "a/b", "-a", "a-", "a.b", "a\n", "\u{e4}", long.as_str()] {
        let decoded = service_with(json!({"metadata": {"name": name}}));
        assert_eq!(
            (&decoded.object, fields(&decoded)),
            (&None, vec!["metadata.name".into()]),
            "{name:?}"
        );
        let decoded = service_with(json!({"metadata": {"namespace": name}}));
        assert_eq!(decoded.object, None, "{name:?}");
        assert_eq!(fields(&decoded), ["metadata.namespace"], "{name:?}");
    }
    assert!(service_with(json!({"metadata": {"name": "a".repeat(63)}})).object.is_some());
    assert!(slice_with(json!({"metadata": {"name": "a.b-c"}})).object.is_some());
    for name in ["a..b", ".a", "a/b", &"a".repeat(254)] {
        assert_eq!(slice_with(json!({"metadata": {"name": name}})).object, None, "{name:?}");
    }
}

// B-087: the values of section 5.11.
#[test]
fn leading_zeros_are_decimal() {
    let service = service(&service_with(json!({
        "spec": {
            "clusterIP": "172.30.0.041", "clusterIPs": ["172.30.0.041"],
            "externalIPs": ["192.168.099.022"],
            "loadBalancerSourceRanges": ["203.0.113.000/025"],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.004"}]}},
    })));
    assert_eq!(service.cluster_ips, [ip("172.30.0.41")]);
    assert_eq!(service.external_ips, [ip("192.168.99.22")]);
    assert_eq!(service.load_balancer_ips, [ip("1.2.3.4")]);
    assert_eq!(service.source_ranges[0].to_string(), "203.0.113.0/25");
    let slice = slice(&slice_with(json!({"endpoints": [{"addresses": ["10.180.00.001"]}]})));
    assert_eq!(slice.endpoints[0].address, ip("10.180.0.1"));
}

#[test]
fn what_is_no_address() {
    let cases = [
        "",
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.256",
        "1.2.3.+4",
        "1..2.3",
        "1.2.3.4 ",
        "0x1.2.3.4",
        "fe80::1%eth0",
        "::g",
    ];
    for text in cases {
        assert_eq!(super::parse_ip(text), None, "{text:?}");
    }
    assert_eq!(super::parse_ip("::ffff:10.0.0.1"), Some(ip("10.0.0.1")));
    for text in
        ["10.0.0.0", "10.0.0.0/", "10.0.0.0/-1", "10.0.0.0/33", "/8", "::/129", "10.0.0.0/8/8"]
    {
        assert_eq!(super::parse_cidr(text), None, "{text:?}");
    }
}

// B-055: InternalIPs before ExternalIPs, in order, of both families.
#[test]
fn node_addresses() {
    let (node, skipped) = node(&json!({
        "metadata": {"name": "node-a"},
        "status": {"addresses": [
            {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "Hostname", "address": "node-a"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "nonsense"},
            {"type": "InternalIP", "address": "2001:db8::1"},
        ]},
    }));
    assert_eq!(node.addresses, [ip("192.0.2.1"), ip("2001:db8::1"), ip("198.51.100.1")]);
    assert_eq!(skipped, ["status.addresses[3].address"]);
}

// B-230: the fields that /healthz looks at.
#[test]
fn nodes_on_their_way_out() {
    let cases = [
        (json!({"metadata": {"name": "n"}}), (false, false)),
        (
            json!({"metadata": {"name": "n", "deletionTimestamp": "2026-11-21T02:49:46Z"}}),
            (true, false),
        ),
        (
            json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "ToBeDeletedByClusterAutoscaler"}]}}),
            (false, true),
        ),
        (
            json!({"metadata": {"name": "n"}, "spec": {"taints": [{"key": "other"}]}}),
            (false, false),
        ),
    ];
    for (document, expected) in cases {
        let (node, _) = node(&document);
        assert_eq!((node.deleting, node.to_be_deleted), expected, "{document}");
    }
}

#[test]
fn a_field_of_the_wrong_type_is_named() {
    let document = json!({
        "metadata": {"name": "web"}, "spec": {"ports": [{"port": 1}, {"port": "http"}]},
    });
    let unreadable = Decoder::new(true).document(Kind::Service, &document).expect_err("unreadable");
    assert_eq!(unreadable.field, "spec.ports[1].port");
    assert!(unreadable.reason.contains("invalid type"), "{unreadable}");
}
