//! Manifests of the lab's objects.

use std::net::IpAddr;

use kubeweir::model::Family;
use kubeweir::testing::lab::{
    NODE_CIDR, NODE_IP, NODE_NAME, Place, SERVICE_CIDR, cluster_ip, pod_ip, remote_pod_ip,
};
use serde_json::{Value, json};

/// A dual-stack Service over TCP and UDP, by default port 80 to 8080.
#[derive(Debug, Clone)]
pub struct Web {
    pub name: String,
    /// Its ClusterIPs are the n-th.
    pub n: usize,
    pub port: u16,
    /// The endpoints' port.
    pub target: u16,
    pub node_port: Option<u16>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub sticky: bool,
    pub internal_local: bool,
    pub external_local: bool,
    /// Of the load balancer; everyone if there are none.
    pub source_ranges: Vec<&'static str>,
    pub endpoints: Vec<Place>,
}

impl Web {
    pub fn new(name: &str, n: usize, endpoints: &[Place]) -> Web {
        Web {
            name: name.to_owned(),
            n,
            port: 80,
            target: 8080,
            node_port: None,
            load_balancer_ips: Vec::new(),
            sticky: false,
            internal_local: false,
            external_local: false,
            source_ranges: Vec::new(),
            endpoints: endpoints.to_vec(),
        }
    }

    /// The Service and its two slices.
    pub fn objects(&self) -> Vec<Value> {
        let slices = Family::BOTH.map(|family| self.slice(family));
        [vec![self.service()], slices.to_vec()].concat()
    }

    fn service(&self) -> Value {
        let ips = Family::BOTH.map(|family| cluster_ip(self.n, family).to_string());
        let port = |protocol: &str| {
            let mut port = json!({
                "name": protocol.to_lowercase(), "protocol": protocol, "port": self.port,
                "targetPort": self.target,
            });
            if let Some(node_port) = self.node_port {
                port["nodePort"] = node_port.into();
            }
            port
        };
        let kind = match (self.node_port, self.load_balancer_ips.is_empty()) {
            (_, false) => "LoadBalancer",
            (Some(_), _) => "NodePort",
            (None, _) => "ClusterIP",
        };
        let mut spec = json!({
            "type": kind, "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": ["IPv4", "IPv6"],
            "ports": [port("TCP"), port("UDP")],
        });
        if self.sticky {
            spec["sessionAffinity"] = "ClientIP".into();
            spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 10_800 } });
        }
        if self.internal_local {
            spec["internalTrafficPolicy"] = "Local".into();
        }
        if !self.source_ranges.is_empty() {
            spec["loadBalancerSourceRanges"] = json!(self.source_ranges);
        }
        if self.external_local {
            spec["externalTrafficPolicy"] = "Local".into();
        }
        let ingress: Vec<Value> =
            self.load_balancer_ips.iter().map(|ip| json!({ "ip": ip, "ipMode": "VIP" })).collect();
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default" },
            "spec": spec, "status": { "loadBalancer": { "ingress": ingress } },
        })
    }

    fn slice(&self, family: Family) -> Value {
        let ports = [("tcp", "TCP"), ("udp", "UDP")].map(
            |(name, protocol)| json!({ "name": name, "protocol": protocol, "port": self.target }),
        );
        let endpoints: Vec<Value> =
            self.endpoints.iter().map(|place| endpoint(*place, family)).collect();
        slice(&self.name, family, &json!(ports), &endpoints)
    }
}

/// A ready endpoint.
pub fn endpoint(place: Place, family: Family) -> Value {
    let (address, node) = match place {
        Place::Pod(n) => (pod_ip(n, family), NODE_NAME),
        Place::RemotePod(n) => (remote_pod_ip(n, family), "elsewhere"),
        other => panic!("no endpoint at {other:?}"),
    };
    json!({ "addresses": [address], "conditions": { "ready": true }, "nodeName": node })
}

/// A slice of a service.
pub fn slice(service: &str, family: Family, ports: &Value, endpoints: &[Value]) -> Value {
    let kind = if family == Family::V4 { "IPv4" } else { "IPv6" };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{service}-{}", family.nft()), "namespace": "default",
            "labels": { "kubernetes.io/service-name": service },
        },
        "addressType": kind, "ports": ports, "endpoints": endpoints,
    })
}

/// The node under test and the cluster's ServiceCIDR.
pub fn cluster() -> Vec<Value> {
    let addresses: Vec<Value> = Family::BOTH
        .map(|family| json!({ "type": "InternalIP", "address": NODE_IP[family] }))
        .to_vec();
    let pods = Family::BOTH.map(|family| NODE_CIDR[family].to_string());
    vec![
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": NODE_NAME },
            "spec": { "podCIDR": pods[0], "podCIDRs": pods },
            "status": { "addresses": addresses },
        }),
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": { "name": "kubernetes" },
            "spec": { "cidrs": Family::BOTH.map(|family| SERVICE_CIDR[family].to_string()) },
        }),
    ]
}

/// Services that nobody dials, from the `from`-th ClusterIP on. The `round` varies what they have.
pub fn bystanders(from: usize, count: usize, round: usize) -> Vec<Value> {
    let service = |i: usize| {
        let first = i + round;
        let endpoints: Vec<Place> =
            (0..1 + first % 5).map(|k| Place::RemotePod(100 + (first * 3 + k) % 90)).collect();
        let mut web = Web::new(&format!("bystander-{i}"), from + i, &endpoints);
        web.node_port = (i.is_multiple_of(10) && i < 5000).then(|| 31_000 + (i / 10) as u16);
        web
    };
    (0..count).flat_map(|i| service(i).objects()).collect()
}
