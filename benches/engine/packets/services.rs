//! The Services that are dialled, described once for every layout.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use kubeweir::model::{
    Change, Endpoint, EndpointSlice, Family, Kind, ObjectName, Protocol, Service, ServicePort,
    ServiceType, SlicePort, TrafficPolicy,
};

use crate::cluster::NODE;

/// The port of every Service.
pub const PORT: u16 = 80;
/// The port that every endpoint listens on.
pub const ENDPOINT_PORT: u16 = 8080;
/// Seconds of session affinity.
pub const AFFINITY: u32 = 10_800;
/// Endpoints of Services that nobody dials.
const ENDPOINTS: u32 = 10;
/// Endpoints of the first Services have numbers from here on, so many apart.
const DIALLED_AT: u32 = 1_000_000;
const APART: u32 = 2_048;

/// One Service. What is dialled has a TCP and a UDP port of the same number, what is beside it TCP only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spec {
    index: u32,
    /// How many endpoints; all but the first are on other nodes.
    pub endpoints: u32,
    /// `sessionAffinity: ClientIP`.
    pub sticky: bool,
    /// A NodePort and a load-balancer address.
    pub external: bool,
    /// Source ranges, which admit the client.
    pub ranges: bool,
    /// `externalTrafficPolicy: Local`.
    pub local: bool,
}

/// The Services that are dialled, by what they have.
pub mod dialled {
    use super::Spec;

    const PLAIN: Spec = Spec {
        index: 0,
        endpoints: 1,
        sticky: false,
        external: false,
        ranges: false,
        local: false,
    };
    /// With so many endpoints.
    pub const ONE: Spec = PLAIN;
    pub const THREE: Spec = Spec { index: 1, endpoints: 3, ..PLAIN };
    pub const TEN: Spec = Spec { index: 2, endpoints: 10, ..PLAIN };
    pub const HUNDRED: Spec = Spec { index: 3, endpoints: 100, ..PLAIN };
    pub const THOUSAND: Spec = Spec { index: 4, endpoints: 1_000, ..PLAIN };
    /// Only ClusterIPs.
    pub const ALL_PLAIN: [Spec; 5] = [ONE, THREE, TEN, HUNDRED, THOUSAND];

    pub const EXTERNAL: Spec = Spec { index: 5, endpoints: 10, external: true, ..PLAIN };
    pub const RANGES: Spec = Spec { index: 6, ranges: true, ..EXTERNAL };
    pub const STICKY: Spec = Spec { index: 7, endpoints: 10, sticky: true, ..PLAIN };
    pub const LOCAL: Spec = Spec { index: 8, local: true, ..EXTERNAL };
    /// What few clusters use.
    pub const ALL_SPECIAL: [Spec; 4] = [EXTERNAL, RANGES, STICKY, LOCAL];
}

/// A cluster: how many Services, and whether what few clusters use is among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cluster {
    pub services: u32,
    pub special: bool,
}

impl Cluster {
    /// Its Services. Those beside the dialled ones have a ClusterIP and ten endpoints.
    pub fn specs(self) -> Vec<Spec> {
        let special = dialled::ALL_SPECIAL.into_iter().filter(|_| self.special);
        let mut specs: Vec<Spec> = dialled::ALL_PLAIN.into_iter().chain(special).collect();
        let beside = DIALLED..self.services.max(DIALLED);
        specs.extend(beside.map(|index| Spec { index, endpoints: ENDPOINTS, ..dialled::ONE }));
        specs
    }

    /// The complete lists, as a source delivers them.
    pub fn lists(self, family: Family) -> [Change; 2] {
        let specs = self.specs();
        let services = specs.iter().map(|spec| spec.service(family).into()).collect();
        let slices = specs.iter().flat_map(|spec| spec.slices(family)).map(Into::into).collect();
        [Change::Replace(Kind::Service, services), Change::Replace(Kind::EndpointSlice, slices)]
    }
}

/// Indices below are those of dialled Services.
const DIALLED: u32 = 16;

/// The pods' network.
pub fn pod_cidr(family: Family) -> &'static str {
    match family {
        Family::V4 => "100.64.0.0/10",
        Family::V6 => "fd64::/64",
    }
}

/// The part of it in which all endpoints are.
pub fn server_cidr(family: Family) -> &'static str {
    match family {
        Family::V4 => "100.64.0.0/11",
        Family::V6 => "fd64::/107",
    }
}

/// Where all ClusterIPs are.
pub fn service_cidr(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.64.0.0/10",
        Family::V6 => "fd60::/64",
    }
}

/// A pod by its number.
pub fn pod(number: u32, family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(0x6440_0000 + number).into(),
        Family::V6 => Ipv6Addr::from((0xfd64_u128 << 112) | u128::from(number)).into(),
    }
}

/// The address of the node on which NodePorts answer.
pub fn node_ip(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(192, 168, 0, 1).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(),
    }
}

/// Where clients from outside are.
pub fn outside_cidr(family: Family) -> &'static str {
    match family {
        Family::V4 => "198.51.100.0/24",
        Family::V6 => "2001:db8:7::/64",
    }
}

impl Spec {
    /// Namespace and name.
    pub fn name(&self) -> ObjectName {
        ObjectName::new(format!("team-{}", self.index % 50), format!("service-{}", self.index))
    }

    /// Its ports' protocols.
    pub fn protocols(&self) -> &'static [Protocol] {
        match self.index < DIALLED {
            true => &[Protocol::Tcp, Protocol::Udp],
            false => &[Protocol::Tcp],
        }
    }

    /// What a pod dials.
    pub fn cluster_ip(&self, family: Family) -> SocketAddr {
        let number = 1 + self.index;
        let address: IpAddr = match family {
            Family::V4 => Ipv4Addr::from(0x0a40_0000 + number).into(),
            Family::V6 => Ipv6Addr::from((0xfd60_u128 << 112) | u128::from(number)).into(),
        };
        SocketAddr::new(address, PORT)
    }

    /// What somebody outside dials.
    pub fn load_balancer(&self, family: Family) -> SocketAddr {
        let number = 1 + self.index;
        let address: IpAddr = match family {
            Family::V4 => Ipv4Addr::from(0xcb00_7100 + number).into(),
            Family::V6 => Ipv6Addr::from((0xfd61_u128 << 112) | u128::from(number)).into(),
        };
        SocketAddr::new(address, PORT)
    }

    /// The same on the node's address.
    pub fn node_port(&self, family: Family) -> SocketAddr {
        SocketAddr::new(node_ip(family), 30_000 + self.index as u16)
    }

    /// The endpoints' addresses.
    pub fn pods(&self, family: Family) -> impl Iterator<Item = IpAddr> + use<> {
        let first = match self.index < DIALLED {
            true => DIALLED_AT + self.index * APART,
            false => self.index * ENDPOINTS,
        };
        (first..first + self.endpoints).map(move |number| pod(number, family))
    }

    fn service(&self, family: Family) -> Service {
        let port = |name: &str, protocol| ServicePort {
            name: name.into(),
            protocol,
            port: PORT,
            node_port: self.external.then(|| self.node_port(family).port()),
        };
        let outside = || outside_cidr(family).parse().expect("a network");
        Service {
            name: self.name(),
            created: i64::from(self.index),
            kind: if self.external { ServiceType::LoadBalancer } else { ServiceType::ClusterIp },
            cluster_ips: vec![self.cluster_ip(family).ip()],
            ports: self.protocols().iter().map(|p| port(&p.to_string(), *p)).collect(),
            external_ips: Vec::new(),
            load_balancer_ips: self
                .external
                .then(|| self.load_balancer(family).ip())
                .into_iter()
                .collect(),
            source_ranges: self.ranges.then(outside).into_iter().collect(),
            session_affinity: self.sticky.then_some(AFFINITY),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: match self.local {
                true => TrafficPolicy::Local,
                false => TrafficPolicy::Cluster,
            },
            health_check_node_port: None,
            end_connections: Default::default(),
        }
    }

    fn slices(&self, family: Family) -> Vec<EndpointSlice> {
        let endpoints: Vec<Endpoint> = self
            .pods(family)
            .enumerate()
            .map(|(at, address)| Endpoint {
                address,
                ready: true,
                serving: true,
                terminating: false,
                node: Some(if at == 0 { NODE.into() } else { "elsewhere".into() }),
                hints: None,
            })
            .collect();
        let service = self.name();
        let port =
            |name: &str, protocol| SlicePort { name: name.into(), protocol, port: ENDPOINT_PORT };
        let slice = |(at, endpoints): (usize, &[Endpoint])| EndpointSlice {
            name: ObjectName::new(service.namespace.clone(), format!("{}-{at}", service.name)),
            service: service.clone(),
            family,
            ports: self.protocols().iter().map(|p| port(&p.to_string(), *p)).collect(),
            endpoints: endpoints.to_vec(),
            trigger_time: None,
        };
        endpoints.chunks(100).enumerate().map(slice).collect()
    }
}
