//! API objects as an API server holds them, on the lab's addresses.

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{
    NODE_CIDR, NODE_IP, NODE_NAME, Place, SERVICE_CIDR, cluster_ip, pod_ip, remote_pod_ip,
};
use serde_json::{Value, json};

/// The node under test.
pub fn node() -> Value {
    let address = |family| json!({ "type": "InternalIP", "address": NODE_IP[family] });
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": NODE_NAME, "labels": {} },
        "spec": { "podCIDRs": Family::BOTH.map(|family| NODE_CIDR[family].to_string()) },
        "status": { "addresses": Family::BOTH.map(address) },
    })
}

pub fn service_cidr() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": { "name": "kubernetes" },
        "spec": { "cidrs": Family::BOTH.map(|family| SERVICE_CIDR[family].to_string()) },
    })
}

/// A dual-stack ClusterIP Service in namespace `default` with the `n`-th ClusterIPs and the ports
/// `http` (TCP 80) and `dns` (UDP 53).
pub fn service(name: &str, n: usize) -> Value {
    let [v4, v6] = Family::BOTH.map(|family| cluster_ip(n, family).to_string());
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": "default", "labels": {} },
        "spec": {
            "type": "ClusterIP", "clusterIP": v4, "clusterIPs": [v4, v6],
            "ipFamilies": ["IPv4", "IPv6"],
            "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [
                { "name": "http", "protocol": "TCP", "port": 80 },
                { "name": "dns", "protocol": "UDP", "port": 53 },
            ],
        },
    })
}

/// The same as a NodePort Service; both ports have this number.
pub fn node_port(name: &str, n: usize, port: u16) -> Value {
    let mut service = service(name, n);
    service["spec"]["type"] = "NodePort".into();
    service["spec"]["externalTrafficPolicy"] = "Cluster".into();
    for at in 0..2 {
        service["spec"]["ports"][at]["nodePort"] = port.into();
    }
    service
}

/// A LoadBalancer Service with `externalTrafficPolicy: Local` and this health-check node port.
pub fn balanced(name: &str, n: usize, check: u16) -> Value {
    let mut service = service(name, n);
    service["spec"]["type"] = "LoadBalancer".into();
    service["spec"]["externalTrafficPolicy"] = "Local".into();
    service["spec"]["healthCheckNodePort"] = check.into();
    service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.10" }] } });
    service
}

/// One family's slice of a service of [`service`]; pods serve both on 8080.
pub fn slice(service: &str, family: Family, endpoints: &[Place]) -> Value {
    let endpoint = |place: &Place| {
        let (address, node) = match *place {
            Place::Pod(n) => (pod_ip(n, family), NODE_NAME),
            Place::RemotePod(n) => (remote_pod_ip(n, family), "elsewhere"),
            other => panic!("{other:?} is no pod"),
        };
        let conditions = json!({ "ready": true, "serving": true, "terminating": false });
        json!({ "addresses": [address], "conditions": conditions, "nodeName": node })
    };
    let suffix = if family == Family::V4 { "v4" } else { "v6" };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{suffix}"), "namespace": "default",
            "labels": { "kubernetes.io/service-name": service }, "annotations": {},
        },
        "addressType": family.to_string(),
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [
            { "name": "http", "protocol": "TCP", "port": 8080 },
            { "name": "dns", "protocol": "UDP", "port": 8080 },
        ],
    })
}

/// The port of a service of [`service`] for a protocol.
pub fn port(protocol: Protocol) -> u16 {
    if protocol == Protocol::Udp { 53 } else { 80 }
}
