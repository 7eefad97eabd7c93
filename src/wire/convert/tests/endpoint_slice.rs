//! EndpointSlices.

use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{fields, ip, slice, slice_with};
use crate::model::{Endpoint, Protocol, SkipLevel};

// B-070
#[test]
fn slices_of_headless_services_are_not_taken() {
    let labels = json!({"service.kubernetes.io/headless": ""});
    let decoded = slice_with(json!({"metadata": {"labels": labels}}));
    assert_eq!((decoded.object, decoded.skips), (None, vec![]));
}

// B-093, B-094
#[test]
fn slices_that_are_ignored() {
    let cases = [
        (
            "no label",
            json!({"metadata": {"labels": null}}),
            "metadata.labels[kubernetes.io/service-name]",
            SkipLevel::Info,
        ),
        (
            "empty label",
            json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}),
            "metadata.labels[kubernetes.io/service-name]",
            SkipLevel::Info,
        ),
        ("FQDN", json!({"addressType": "FQDN"}), "addressType", SkipLevel::Info),
        (
            "hostile label",
            json!({"metadata": {"labels": {"kubernetes.io/service-name": "a b"}}}),
            "metadata.labels[kubernetes.io/service-name]",
            SkipLevel::Error,
        ),
    ];
    for (case, patch, field, level) in cases {
        let decoded = slice_with(patch);
        assert_eq!(decoded.object, None, "{case}");
        let skips: Vec<_> =
            decoded.skips.iter().map(|skip| (skip.field.as_str(), skip.level)).collect();
        assert_eq!(skips, [(field, level)], "{case}");
    }
}

// B-095
#[test]
fn slices_of_any_controller_are_used() {
    for controller in [json!("endpointslice-controller.k8s.io"), json!("me"), Value::Null] {
        let labels = json!({"endpointslice.kubernetes.io/managed-by": controller});
        assert!(slice_with(json!({"metadata": {"labels": labels}})).object.is_some());
    }
}

// B-098
#[test]
fn slice_ports_need_a_name_and_a_number() {
    let decoded = slice_with(json!({"ports": [
        {"port": 1, "protocol": "TCP"},
        {"name": "a", "protocol": "TCP"},
        {"name": "b", "port": 0},
        {"name": "c", "port": 65536},
        {"name": "", "port": 80},
        {"name": "http", "port": 8080, "protocol": "UDP"},
    ]}));
    let ports: Vec<_> = slice(&decoded)
        .ports
        .iter()
        .map(|port| (port.name.to_string(), port.protocol, port.port))
        .collect();
    let expected = [(String::new(), Protocol::Tcp, 80), ("http".to_owned(), Protocol::Udp, 8080)];
    assert_eq!(ports, expected);
    let skipped = ["ports[0].name", "ports[1].port", "ports[2].port", "ports[3].port"];
    assert_eq!(fields(&decoded), skipped);
}

// B-099, B-100
#[test]
fn endpoints_have_one_address() {
    let decoded = slice_with(json!({"endpoints": [
        {"addresses": ["10.0.0.1", "10.0.0.2"]},
        {"addresses": []},
        {"addresses": null},
        {"addresses": ["10.0.0"]},
        {"addresses": ["fd00::1"]},
        {"addresses": ["10.0.0.3"]},
    ]}));
    let addresses: Vec<IpAddr> = slice(&decoded).endpoints.iter().map(|e| e.address).collect();
    assert_eq!(addresses, [ip("10.0.0.1"), ip("10.0.0.3")]);
    let skipped = [
        "endpoints[1].addresses",
        "endpoints[2].addresses",
        "endpoints[3].addresses[0]",
        "endpoints[4].addresses[0]",
    ];
    assert_eq!(fields(&decoded), skipped);
}

// B-101
#[test]
fn absent_conditions() {
    let cases = [
        (Value::Null, (true, true, false)),
        (json!({}), (true, true, false)),
        (json!({"ready": null, "serving": null, "terminating": null}), (true, true, false)),
        (json!({"ready": false}), (false, true, false)),
        (json!({"ready": false, "serving": false, "terminating": true}), (false, false, true)),
    ];
    for (conditions, expected) in cases {
        let endpoint = json!({"addresses": ["10.0.0.1"], "conditions": conditions});
        let slice = slice(&slice_with(json!({"endpoints": [endpoint]})));
        let Endpoint { ready, serving, terminating, .. } = slice.endpoints[0];
        assert_eq!((ready, serving, terminating), expected, "{conditions}");
    }
}

#[test]
fn endpoints_share_the_names_of_nodes_and_zones() {
    let endpoint = |ip: &str| {
        json!({
            "addresses": [ip], "nodeName": "node-a",
            "hints": {"forZones": [{"name": "eu-1a"}], "forNodes": [{"name": "node-a"}]},
        })
    };
    let endpoints =
        json!([endpoint("10.0.0.1"), endpoint("10.0.0.2"), {"addresses": ["10.0.0.3"]}]);
    let slice = slice(&slice_with(json!({"endpoints": endpoints})));
    let [first, second, bare] = &slice.endpoints[..] else { panic!("{slice:?}") };
    assert_eq!(first.zone_hints(), [Arc::from("eu-1a")]);
    let hints = |endpoint: &Endpoint| Arc::as_ptr(endpoint.hints.as_ref().expect("hints"));
    assert_eq!(hints(first), hints(second));
    assert!(Arc::ptr_eq(&first.node_hints()[0], second.node.as_ref().expect("a node")));
    assert_eq!((&bare.node, &bare.hints), (&None, &None));
}

#[test]
fn trigger_times() {
    let with = |text: &str| {
        let annotations = json!({"endpoints.kubernetes.io/last-change-trigger-time": text});
        slice_with(json!({"metadata": {"annotations": annotations}}))
    };
    let good = with("1970-01-01T00:00:01.5Z");
    assert_eq!((slice(&good).trigger_time, good.skips.len()), (Some(1_500_000_000), 0));
    let bad = with("yesterday");
    assert_eq!(slice(&bad).trigger_time, None);
    let annotation = "metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]";
    assert_eq!(fields(&bad), [annotation]);
}
