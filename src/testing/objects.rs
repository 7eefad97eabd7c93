//! Terse builders of model objects.

use std::sync::Arc;

use crate::model::{
    Endpoint, EndpointSlice, Family, Node, Object, ObjectName, Protocol, Service, ServiceCidr,
    ServicePort, ServiceType, SlicePort, TrafficPolicy,
};

/// `namespace/name`, or `name` in namespace `default`.
pub fn name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    ObjectName::new(namespace, name)
}

/// A ClusterIP Service without ports.
pub fn service(name_text: &str, cluster_ips: &[&str]) -> Service {
    Service {
        name: name(name_text),
        created: 0,
        kind: ServiceType::ClusterIp,
        cluster_ips: cluster_ips.iter().map(|ip| ip.parse().expect("an address")).collect(),
        ports: Vec::new(),
        external_ips: Vec::new(),
        load_balancer_ips: Vec::new(),
        source_ranges: Vec::new(),
        session_affinity: None,
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        end_connections: Default::default(),
    }
}

pub fn port(name: &str, protocol: Protocol, port: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort { name: name.into(), protocol, port, node_port }
}

/// A slice of a service with one port and ready endpoints `address@node`, or `address` without node.
pub fn slice(
    slice_name: &str,
    service_name: &str,
    (port_name, protocol, number): (&str, Protocol, u16),
    endpoints: &[&str],
) -> EndpointSlice {
    let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| endpoint(text)).collect();
    let service = name(service_name);
    EndpointSlice {
        name: ObjectName::new(service.namespace.clone(), slice_name),
        family: endpoints.first().map_or(Family::V4, |e| Family::of(&e.address)),
        service,
        ports: vec![SlicePort { name: port_name.into(), protocol, port: number }],
        endpoints,
        trigger_time: None,
    }
}

/// A ready endpoint, from `address@node` or `address`.
pub fn endpoint(text: &str) -> Endpoint {
    let (address, node) = match text.split_once('@') {
        Some((address, node)) => (address, Some(Arc::from(node))),
        None => (text, None),
    };
    Endpoint {
        address: address.parse().expect("an address"),
        ready: true,
        serving: true,
        terminating: false,
        node,
        hints: None,
    }
}

pub fn node(node_name: &str, zone: Option<&str>, addresses: &[&str]) -> Node {
    Node {
        name: ObjectName::cluster_scoped(node_name),
        zone: zone.map(Arc::from),
        addresses: addresses.iter().map(|ip| ip.parse().expect("an address")).collect(),
        pod_cidrs: Vec::new(),
        deleting: false,
        to_be_deleted: false,
    }
}

pub fn service_cidr(cidr_name: &str, cidrs: &[&str]) -> ServiceCidr {
    ServiceCidr {
        name: ObjectName::cluster_scoped(cidr_name),
        cidrs: cidrs.iter().map(|net| net.parse().expect("a network")).collect(),
    }
}

impl From<Service> for Object {
    fn from(service: Service) -> Object {
        Object::Service(Arc::new(service))
    }
}

impl From<EndpointSlice> for Object {
    fn from(slice: EndpointSlice) -> Object {
        Object::EndpointSlice(Arc::new(slice))
    }
}

impl From<Node> for Object {
    fn from(node: Node) -> Object {
        Object::Node(Arc::new(node))
    }
}

impl From<ServiceCidr> for Object {
    fn from(cidr: ServiceCidr) -> Object {
        Object::ServiceCidr(Arc::new(cidr))
    }
}
