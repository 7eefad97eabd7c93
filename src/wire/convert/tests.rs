//! Tables over [`Decoder::document`]: what becomes of single fields.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::model::{
    EndConnections, EndpointSlice, Family, Kind, Node, Object, Protocol, Service, ServiceType,
    SkipLevel, TrafficPolicy,
};
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

pub(super) fn slice_with(patch: Value) -> Decoded {
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
pub(super) fn slice(decoded: &Decoded) -> Arc<EndpointSlice> {
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
pub(super) fn fields(decoded: &Decoded) -> Vec<String> {
    let errors = decoded.skips.iter().filter(|skip| skip.level == SkipLevel::Error);
    errors.map(|skip| skip.field.clone()).collect()
}

pub(super) fn ip(text: &str) -> IpAddr {
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

// As Go reads it: also what stands within IPv6 has leading zeros, and a network of mapped addresses is one of
// IPv4. The second parser that was here refused both.
#[test]
fn ipv4_within_ipv6_is_ipv4() {
    let service = service(&service_with(json!({"spec": {
        "externalIPs": ["::ffff:192.168.099.022"],
        "loadBalancerSourceRanges": ["::ffff:203.0.113.9/121"],
    }})));
    assert_eq!(service.external_ips, [ip("192.168.99.22")]);
    assert_eq!(service.source_ranges[0].to_string(), "203.0.113.0/25");
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

// Services.

// B-075: headless Services are not even taken, ExternalName ones have no ClusterIP of any family.
// B-076, B-077, B-078, B-079
#[test]
fn cluster_ips() {
    let cases: [(&str, Value, &[&str], &[&str]); 9] = [
        ("single stack", json!({}), &["10.96.0.10"], &[]),
        ("empty", json!({"clusterIP": ""}), &[], &[]),
        (
            "dual stack, IPv6 first",
            json!({"clusterIPs": ["fd00::a", "10.96.0.10"], "ipFamilies": ["IPv6", "IPv4"]}),
            &["10.96.0.10", "fd00::a"],
            &[],
        ),
        ("no ipFamilies", json!({"ipFamilies": null}), &["10.96.0.10"], &[]),
        (
            "no ipFamilies: clusterIPs do not count",
            json!({"ipFamilies": [], "clusterIP": "fd00::b", "clusterIPs": ["10.1.1.1"]}),
            &["fd00::b"],
            &[],
        ),
        (
            "second family not yet allocated",
            json!({"ipFamilies": ["IPv4", "IPv6"]}),
            &["10.96.0.10"],
            &[],
        ),
        (
            "ExternalName keeps its address but is served in no family",
            json!({"type": "ExternalName"}),
            &["10.96.0.10"],
            &[],
        ),
        ("not an address", json!({"clusterIPs": ["10.96.0"]}), &[], &["spec.clusterIPs[0]"]),
        ("of the wrong family", json!({"clusterIPs": ["fd00::a"]}), &[], &["spec.clusterIPs[0]"]),
    ];
    for (case, spec, expected, skipped) in cases {
        let decoded = service_with(json!({"spec": spec}));
        let expected: Vec<IpAddr> = expected.iter().map(|text| ip(text)).collect();
        assert_eq!(service(&decoded).cluster_ips, expected, "{case}");
        assert_eq!(fields(&decoded), skipped, "{case}");
    }
    let external = service(&service_with(json!({"spec": {"type": "ExternalName"}})));
    assert_eq!(external.cluster_ip(Family::V4), None);
    let headless = service_with(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}));
    assert_eq!((headless.object, headless.skips), (None, vec![]));
}

// B-069, B-074: the label excludes whatever its value; without a server, too.
#[test]
fn services_of_another_proxy_are_not_taken() {
    for value in ["other", ""] {
        let labels = json!({"service.kubernetes.io/service-proxy-name": value});
        let decoded = service_with(json!({"metadata": {"labels": labels}}));
        assert_eq!((decoded.object, decoded.skips), (None, vec![]), "{value:?}");
    }
}

// B-080, B-081, B-082: same number under three protocols; node ports whatever the type.
#[test]
fn ports_stand_for_themselves() {
    let ports = json!([
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "nodePort": 30053},
        {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 0},
        {"name": "sctp", "port": 53, "protocol": "SCTP"},
        {"name": "metrics", "port": 9153, "targetPort": "metrics"},
    ]);
    let decoded = service_with(json!({"spec": {"ports": ports}}));
    let ports: Vec<_> = service(&decoded)
        .ports
        .iter()
        .map(|port| (port.name.to_string(), port.protocol, port.port, port.node_port))
        .collect();
    let expected = [
        ("dns-tcp".to_owned(), Protocol::Tcp, 53, Some(30053)),
        ("dns".to_owned(), Protocol::Udp, 53, None),
        ("sctp".to_owned(), Protocol::Sctp, 53, None),
        ("metrics".to_owned(), Protocol::Tcp, 9153, None),
    ];
    assert_eq!(ports, expected);
    assert_eq!(decoded.skips, []);
}

#[test]
fn impossible_ports_are_reported_and_the_others_kept() {
    let cases = [
        ("port 0", json!({"name": "a", "port": 0}), "spec.ports[0].port"),
        ("port 65536", json!({"name": "a", "port": 65536}), "spec.ports[0].port"),
        ("negative", json!({"name": "a", "port": -1}), "spec.ports[0].port"),
        ("no port", json!({"name": "a"}), "spec.ports[0].port"),
        ("protocol", json!({"name": "a", "port": 1, "protocol": "ICMP"}), "spec.ports[0].protocol"),
        (
            "lower case",
            json!({"name": "a", "port": 1, "protocol": "tcp"}),
            "spec.ports[0].protocol",
        ),
        ("hostile name", json!({"name": "a\"; flush", "port": 1}), "spec.ports[0].name"),
        ("long name", json!({"name": "a".repeat(64), "port": 1}), "spec.ports[0].name"),
        ("twin number", json!({"name": "a", "port": 80}), "spec.ports[1]"),
        ("twin name", json!({"name": "http", "port": 81}), "spec.ports[1]"),
    ];
    for (case, port, field) in cases {
        let ports = json!([port, {"name": "http", "port": 80}]);
        let decoded = service_with(json!({"spec": {"ports": ports}}));
        assert_eq!(service(&decoded).ports.len(), 1, "{case}");
        assert_eq!(fields(&decoded), [field], "{case}");
    }
    let ports = json!([{"name": "http", "port": 80, "nodePort": 70000}]);
    let decoded = service_with(json!({"spec": {"ports": ports}}));
    assert_eq!(service(&decoded).ports[0].node_port, None);
    assert_eq!(fields(&decoded), ["spec.ports[0].nodePort"]);
}

// B-083, B-084
#[test]
fn ingress_addresses() {
    let ingress = json!([
        {"ip": "203.0.113.1", "ipMode": "VIP"},
        {"ip": "203.0.113.2"},
        {"ip": "203.0.113.3", "ipMode": "Proxy"},
        {"hostname": "lb.example"},
        {"ip": "", "hostname": "lb.example", "ipMode": "VIP"},
        {"ip": "lb.example"},
        {"ip": "2001:db8::1"},
    ]);
    let decoded = service_with(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
    let expected = [ip("203.0.113.1"), ip("203.0.113.2"), ip("2001:db8::1")];
    assert_eq!(service(&decoded).load_balancer_ips, expected);
    assert_eq!(fields(&decoded), ["status.loadBalancer.ingress[5].ip"]);
}

// B-085, B-086, B-088
#[test]
fn external_ips_and_source_ranges() {
    let decoded = service_with(json!({"spec": {
        "externalIPs": ["192.0.2.1", "", "  ", "nonsense", " 192.0.2.2", "2001:db8::1", "192.0.2.1"],
        "loadBalancerSourceRanges":
            [" 203.0.113.7/25\t", "", " ", "203.0.113.0", "203.0.113.0/33", "2001:db8::/32"],
    }}));
    let service = service(&decoded);
    assert_eq!(service.external_ips, [ip("192.0.2.1"), ip("2001:db8::1")]);
    let ranges: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["203.0.113.0/25", "2001:db8::/32"]);
    let expected = [
        "spec.externalIPs[3]",
        "spec.externalIPs[4]",
        "spec.loadBalancerSourceRanges[3]",
        "spec.loadBalancerSourceRanges[4]",
    ];
    let mut reported = fields(&decoded);
    reported.sort();
    assert_eq!(reported, expected);
}

// B-089
#[test]
fn a_range_of_everybody_lifts_the_restriction_of_its_family() {
    let ranges = json!(["203.0.113.0/24", "0.0.0.0/0", "2001:db8::/32"]);
    let service = service(&service_with(json!({"spec": {"loadBalancerSourceRanges": ranges}})));
    assert_eq!(service.source_ranges(Family::V4), []);
    assert_eq!(service.source_ranges(Family::V6).len(), 1);
}

// B-090
#[test]
fn the_annotation_of_source_ranges_is_ignored() {
    let annotations =
        json!({"service.beta.kubernetes.io/load-balancer-source-ranges": "192.0.2.0/24"});
    let decoded = service_with(json!({"metadata": {"annotations": annotations}}));
    assert_eq!((service(&decoded).source_ranges.len(), decoded.skips.len()), (0, 0));
}

#[test]
fn the_annotation_of_ended_connections() {
    let with = |text: &str| {
        let annotations = json!({"kubeweir.io/end-connections-after": text});
        service_with(json!({"metadata": {"annotations": annotations}}))
    };
    let secs = |n| EndConnections::After(std::time::Duration::from_secs(n));
    let cases = [("30s", secs(30)), ("1m30s", secs(90)), ("0s", secs(0))];
    for (text, expected) in cases.into_iter().chain([("never", EndConnections::Never)]) {
        let conversion = with(text);
        assert_eq!(service(&conversion).end_connections, expected, "{text}");
        assert_eq!(fields(&conversion), [""; 0], "{text}");
    }
    assert_eq!(service(&service_with(json!({}))).end_connections, EndConnections::AsNode);
    for text in ["", "soon", "-5s", "30"] {
        let conversion = with(text);
        assert_eq!(service(&conversion).end_connections, EndConnections::AsNode, "{text:?}");
        let annotation = "metadata.annotations[kubeweir.io/end-connections-after]";
        assert_eq!(fields(&conversion), [annotation], "{text:?}");
    }
}

#[test]
fn without_the_gate_there_are_no_external_ips() {
    let document = json!({
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {"clusterIP": "10.0.0.1", "externalIPs": ["192.0.2.1", "nonsense"]},
    });
    let decoded = Decoder::new(false).document(Kind::Service, &document).expect("a Service");
    assert_eq!((service(&decoded).external_ips.len(), decoded.skips.len()), (0, 0));
}

#[test]
fn session_affinity() {
    let timeout = |seconds: i32| json!({"clientIP": {"timeoutSeconds": seconds}});
    let cases = [
        ("none", json!("None"), Value::Null, None, 0),
        ("absent", Value::Null, timeout(5), None, 0),
        ("default", json!("ClientIP"), Value::Null, Some(10800), 0),
        ("no timeout", json!("ClientIP"), json!({"clientIP": {}}), Some(10800), 0),
        ("set", json!("ClientIP"), timeout(600), Some(600), 0),
        ("zero", json!("ClientIP"), timeout(0), Some(10800), 1),
        ("too long", json!("ClientIP"), timeout(86401), Some(10800), 1),
        ("unknown", json!("Cookie"), Value::Null, None, 1),
    ];
    for (case, affinity, config, expected, skips) in cases {
        let spec = json!({"sessionAffinity": affinity, "sessionAffinityConfig": config});
        let decoded = service_with(json!({"spec": spec}));
        assert_eq!(service(&decoded).session_affinity, expected, "{case}");
        assert_eq!(decoded.skips.len(), skips, "{case}");
    }
}

// B-091: Local on a plain ClusterIP Service has no effect.
#[test]
fn policies() {
    let cases = [
        ("absent", json!({}), TrafficPolicy::Cluster, TrafficPolicy::Cluster, 0),
        (
            "Local on ClusterIP",
            json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}),
            TrafficPolicy::Local,
            TrafficPolicy::Cluster,
            0,
        ),
        (
            "Local on NodePort",
            json!({"type": "NodePort", "externalTrafficPolicy": "Local"}),
            TrafficPolicy::Cluster,
            TrafficPolicy::Local,
            0,
        ),
        (
            "Local on ClusterIP with external IPs",
            json!({"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local"}),
            TrafficPolicy::Cluster,
            TrafficPolicy::Local,
            0,
        ),
        (
            "unknown",
            json!({"type": "NodePort", "externalTrafficPolicy": "Near", "internalTrafficPolicy": "Near"}),
            TrafficPolicy::Cluster,
            TrafficPolicy::Cluster,
            2,
        ),
    ];
    for (case, spec, internal, external, skips) in cases {
        let decoded = service_with(json!({"spec": spec}));
        let service = service(&decoded);
        assert_eq!(
            (service.internal_policy, service.external_policy()),
            (internal, external),
            "{case}"
        );
        assert_eq!(decoded.skips.len(), skips, "{case}");
    }
    let unknown = service_with(json!({"spec": {"type": "Teapot"}}));
    assert_eq!(service(&unknown).kind, ServiceType::ClusterIp);
    assert_eq!(fields(&unknown), ["spec.type"]);
}

#[test]
fn health_check_node_ports() {
    let cases = [
        ("LoadBalancer", "Local", Some(30000), Some(30000), 0),
        ("LoadBalancer", "Cluster", Some(30000), None, 0),
        ("NodePort", "Local", Some(30000), None, 0),
        ("LoadBalancer", "Local", Some(0), None, 1),
        ("LoadBalancer", "Local", None, None, 1),
        ("LoadBalancer", "Local", Some(70000), None, 1),
    ];
    for case in cases {
        let (kind, policy, port, expected, skips) = case;
        let decoded = service_with(json!({"spec": {
            "type": kind, "externalTrafficPolicy": policy, "healthCheckNodePort": port,
        }}));
        assert_eq!(service(&decoded).health_check_node_port, expected, "{case:?}");
        assert_eq!(decoded.skips.len(), skips, "{case:?}");
    }
}

// B-092
#[test]
fn load_balancers_need_no_node_ports() {
    let service = service(&service_with(json!({
        "spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}},
    })));
    assert_eq!(service.ports[0].node_port, None);
    assert_eq!(service.load_balancer_ips, [ip("203.0.113.1")]);
}

// B-107: what the model does not hold cannot cause a change.
#[test]
fn metadata_does_not_change_a_service() {
    let before = service_with(json!({"metadata": {"resourceVersion": "1"}}));
    let after = service_with(json!({
        "metadata": {"resourceVersion": "2", "labels": {"a": "b"}, "annotations": {"c": "d"}},
        "spec": {"selector": {"app": "web"}, "trafficDistribution": "PreferClose"},
    }));
    assert_eq!(before.object, after.object);
    assert_eq!(after.resource_version, "2");
}
