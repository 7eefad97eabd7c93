//! Clusters of any size, made of objects in memory.

use std::net::{IpAddr, Ipv4Addr};

use kubeweir::model::Change;
use kubeweir::model::{
    Endpoint, EndpointSlice, Family, Kind, ObjectName, Protocol, Service, ServicePort, ServiceType,
    SlicePort, TrafficPolicy,
};
use kubeweir::wire::Interner;

/// Name of the node that is measured.
pub const NODE: &str = "node-0";
/// Nodes over which endpoints are spread evenly.
const NODES: u32 = 100;
/// Namespaces over which services are spread evenly.
const NAMESPACES: u32 = 50;
/// Endpoints in one slice at most, as the controller makes them.
const SLICE: u32 = 100;
/// First ClusterIP: 10.64.0.0/10 holds every size used here.
const SERVICES_AT: u32 = 0x0a40_0000;
/// First endpoint: 100.64.0.0/10.
const PODS_AT: u32 = 0x6440_0000;

/// So many services with so many endpoints each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Services, one TCP port each.
    pub services: u32,
    /// Ready endpoints of each.
    pub endpoints: u32,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} x {}", self.services, self.endpoints)
    }
}

impl Size {
    /// The complete lists, services first. Equal strings are shared, as the decoder shares them.
    pub fn lists(self) -> [Change; 2] {
        let mut interner = Interner::default();
        let services = (0..self.services).map(|i| {
            let mut service = service(i);
            share(&mut interner, &mut service.name);
            service.into()
        });
        let services = services.collect();
        let slices = (0..self.services).flat_map(|i| self.slices(i)).map(|mut slice| {
            share(&mut interner, &mut slice.name);
            share(&mut interner, &mut slice.service);
            for node in slice.endpoints.iter_mut().filter_map(|endpoint| endpoint.node.as_mut()) {
                *node = interner.intern(node);
            }
            slice.into()
        });
        let slices = slices.collect();
        [Change::Replace(Kind::Service, services), Change::Replace(Kind::EndpointSlice, slices)]
    }

    /// The slices of a service.
    pub fn slices(self, index: u32) -> Vec<EndpointSlice> {
        let pods = (0..self.endpoints).map(|j| pod(index * self.endpoints + j));
        let endpoints: Vec<Endpoint> = pods.collect();
        let chunks = endpoints.chunks(SLICE as usize).enumerate();
        chunks.map(|(at, endpoints)| slice(index, at, endpoints.to_vec())).collect()
    }
}

fn share(interner: &mut Interner, name: &mut ObjectName) {
    name.namespace = interner.intern(&name.namespace);
    name.name = interner.intern(&name.name);
}

/// The name of a service.
pub fn name(index: u32) -> ObjectName {
    ObjectName::new(format!("team-{}", index % NAMESPACES), format!("service-{index}"))
}

/// The ClusterIP of a service.
pub fn cluster_ip(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(SERVICES_AT + 1 + index)
}

/// A ClusterIP Service with one port.
pub fn service(index: u32) -> Service {
    Service {
        name: name(index),
        created: i64::from(index),
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![cluster_ip(index).into()],
        ports: vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
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

/// A ready endpoint.
pub fn pod(number: u32) -> Endpoint {
    Endpoint {
        address: IpAddr::V4(Ipv4Addr::from(PODS_AT + number)),
        ready: true,
        serving: true,
        terminating: false,
        node: Some(format!("node-{}", number % NODES).into()),
        hints: None,
    }
}

/// One slice of a service.
pub fn slice(index: u32, at: usize, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let service = name(index);
    EndpointSlice {
        name: ObjectName::new(service.namespace.clone(), format!("{}-{at}", service.name)),
        service,
        family: Family::V4,
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints,
        trigger_time: None,
    }
}
