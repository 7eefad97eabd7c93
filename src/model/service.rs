//! Services.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Family, ObjectName, Protocol};

/// `spec.type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ServiceType {
    /// Cluster-internal.
    ClusterIp,
    NodePort,
    /// With a load balancer's addresses.
    LoadBalancer,
    /// A DNS alias; contributes nothing (B-075, B-077).
    ExternalName,
}

/// `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TrafficPolicy {
    /// Every endpoint of the cluster.
    #[default]
    Cluster,
    /// Only endpoints on this node.
    Local,
}

/// A Service, both families together.
///
/// Shape: `ports` in the object's order; addresses canonical, without duplicates. Items that could
/// not be parsed are absent (they were reported as [`super::Skip`]s).
/// Source: section 4.2 and 4.3 of the behaviour reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: ObjectName,
    /// `metadata.creationTimestamp`, seconds since 1970; the older of two services keeps a contested
    /// frontend.
    pub created: i64,
    /// `spec.type`.
    pub kind: ServiceType,
    /// The ClusterIP of each family, at most one per family; none for headless Services (B-078, B-079).
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` whose `ipMode` is absent or `VIP` (B-083, B-084).
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`; see [`Service::source_ranges`].
    pub source_ranges: Vec<IpNet>,
    /// `ClientIP` affinity's timeout in seconds; `None` without affinity.
    pub session_affinity: Option<u32>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy` as written; see [`Service::external_policy`].
    pub external_policy: TrafficPolicy,
    /// `spec.healthCheckNodePort` of a LoadBalancer Service with `externalTrafficPolicy: Local`.
    pub health_check_node_port: Option<u16>,
    /// What becomes of TCP connections to endpoints that are gone: an annotation of ours.
    pub end_connections: EndConnections,
}

/// One entry of `spec.ports`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// `name`; empty for an unnamed port.
    pub name: Arc<str>,
    pub protocol: Protocol,
    pub port: u16,
    /// `nodePort`; honoured irrespective of the Service's type (B-082).
    pub node_port: Option<u16>,
}

/// Whether, and under which policy, a service port can be reached from outside the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternalScope {
    /// No NodePort, no external address of the family.
    None,
    /// Reachable, and sent to every endpoint.
    Cluster,
    /// Reachable, and sent to local endpoints only.
    Local,
}

impl Service {
    /// The ClusterIP of a family. `None` means that the Service is not served in that family at all
    /// (section 4.2).
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        if self.kind == ServiceType::ExternalName {
            return None;
        }
        self.cluster_ips.iter().copied().find(|ip| Family::of(ip) == family)
    }

    /// The external policy that applies: `Local` counts only on LoadBalancer and NodePort Services
    /// and on ClusterIP ones with external IPs (B-091).
    pub fn external_policy(&self) -> TrafficPolicy {
        let applies = match self.kind {
            ServiceType::LoadBalancer | ServiceType::NodePort => true,
            ServiceType::ClusterIp => !self.external_ips.is_empty(),
            ServiceType::ExternalName => false,
        };
        if applies { self.external_policy } else { TrafficPolicy::Cluster }
    }

    /// How a port of the Service is exposed in a family.
    pub fn external_scope(&self, port: &ServicePort, family: Family) -> ExternalScope {
        let of_family = |ips: &[IpAddr]| ips.iter().any(|ip| Family::of(ip) == family);
        let exposed = port.node_port.is_some()
            || of_family(&self.external_ips)
            || of_family(&self.load_balancer_ips);
        match (exposed, self.external_policy()) {
            (false, _) => ExternalScope::None,
            (true, TrafficPolicy::Cluster) => ExternalScope::Cluster,
            (true, TrafficPolicy::Local) => ExternalScope::Local,
        }
    }

    /// The source ranges that restrict a family's load-balancer addresses: empty means unrestricted,
    /// which is also the case when one of the ranges admits everybody (B-089) or when none is of the
    /// family.
    pub fn source_ranges(&self, family: Family) -> Vec<IpNet> {
        let ranges: Vec<IpNet> = self
            .source_ranges
            .iter()
            .copied()
            .filter(|net| Family::of_net(net) == family)
            .collect();
        if ranges.iter().any(|net| net.prefix_len() == 0) { Vec::new() } else { ranges }
    }
}

/// What becomes of TCP connections to endpoints that are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EndConnections {
    /// What the node is configured to do.
    #[default]
    AsNode,
    /// They stay, as upstream has it.
    Never,
    /// They are ended after this time.
    After(std::time::Duration),
}

impl EndConnections {
    /// After which time they are ended, given what the node does.
    pub fn after(self, node: Option<std::time::Duration>) -> Option<std::time::Duration> {
        match self {
            EndConnections::AsNode => node,
            EndConnections::Never => None,
            EndConnections::After(time) => Some(time),
        }
    }
}

// EndpointSlices.

/// One EndpointSlice of one service and family.
///
/// Shape: ports and endpoints in the object's order, unusable entries already left out
/// (section 4.4). Slices are kept one by one and merged when a service is built, because an
/// endpoint may move from one slice to another (B-104).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: ObjectName,
    /// The Service it belongs to, from label `kubernetes.io/service-name`, same namespace.
    pub service: ObjectName,
    /// From `addressType`.
    pub family: Family,
    pub ports: Vec<SlicePort>,
    pub endpoints: Vec<Endpoint>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`, nanoseconds since 1970 (B-257).
    pub trigger_time: Option<i64>,
}

/// A port of a slice; matched to a service port by name and protocol, never by number (B-097).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlicePort {
    /// `name`; empty strings are names too.
    pub name: Arc<str>,
    pub protocol: Protocol,
    /// `port`, never 0.
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The first address, canonical (B-099).
    pub address: IpAddr,
    /// `conditions.ready`, absent means true.
    pub ready: bool,
    /// `conditions.serving`, absent means true, whatever `ready` says.
    pub serving: bool,
    /// `conditions.terminating`, absent means false.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `hints`, shared between endpoints with the same ones; `None` if there are none.
    pub hints: Option<Arc<Hints>>,
}

/// For whom an endpoint is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Hints {
    /// `forZones[].name`.
    pub zones: Box<[Arc<str>]>,
    /// `forNodes[].name`.
    pub nodes: Box<[Arc<str>]>,
}

impl Endpoint {
    /// The zones it is meant for.
    pub fn zone_hints(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }

    /// The nodes it is meant for.
    pub fn node_hints(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }
}
