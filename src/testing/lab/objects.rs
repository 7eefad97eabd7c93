//! Terse builders of the objects that the lab's tests feed to Kubeweir.
//!
//! They build model objects with the API server's defaults; namespaces are all `default`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{NODE_CIDR, NODE_IP, Place, SERVICE_CIDR, cluster_ip, pod_ip, remote_pod_ip};
use crate::model::{
    Endpoint, EndpointSlice, Family, Node, Object, ObjectName, Protocol, Service, ServiceCidr,
    ServicePort, ServiceType, SlicePort, TrafficPolicy,
};
use crate::testing::objects;

pub const NODE_NAME: &str = "node";

/// Name of the second node.
const REMOTE_NODE_NAME: &str = "elsewhere";

#[derive(Debug, Clone)]
pub struct ServiceBuilder(Service);

/// A dual-stack ClusterIP Service without ports whose ClusterIPs are the `n`-th.
pub fn service(name: &str, n: usize) -> ServiceBuilder {
    let mut service = objects::service(name, &[]);
    service.cluster_ips = Family::BOTH.map(|family| cluster_ip(n, family)).to_vec();
    ServiceBuilder(service)
}

impl ServiceBuilder {
    /// One more port, for one protocol.
    pub fn port(mut self, name: &str, protocol: Protocol, port: u16) -> Self {
        self.0.ports.push(ServicePort { name: name.into(), protocol, port, node_port: None });
        self
    }

    /// One more port with a NodePort; makes it a NodePort Service unless it is more already.
    pub fn node_port(mut self, name: &str, protocol: Protocol, port: u16, node_port: u16) -> Self {
        let node_port = Some(node_port);
        self.0.ports.push(ServicePort { name: name.into(), protocol, port, node_port });
        if self.0.kind == ServiceType::ClusterIp {
            self.0.kind = ServiceType::NodePort;
        }
        self
    }

    /// Two ports of one number, `name-tcp` and `name-udp`.
    pub fn twins(self, name: &str, port: u16, node_port: Option<u16>) -> Self {
        self.each(&[Protocol::Tcp, Protocol::Udp], name, port, node_port)
    }

    /// Ports of one number, one for each protocol, such as `name-sctp`.
    pub fn each(
        self,
        protocols: &[Protocol],
        name: &str,
        port: u16,
        node_port: Option<u16>,
    ) -> Self {
        protocols.iter().fold(self, |built, &protocol| {
            let name = format!("{name}-{protocol}");
            match node_port {
                Some(node_port) => built.node_port(&name, protocol, port, node_port),
                None => built.port(&name, protocol, port),
            }
        })
    }

    /// One more external IP.
    pub fn external_ip(mut self, ip: IpAddr) -> Self {
        self.0.external_ips.push(ip);
        self
    }

    /// One more address of a load balancer; makes it a LoadBalancer Service.
    pub fn load_balancer_ip(mut self, ip: IpAddr) -> Self {
        self.0.load_balancer_ips.push(ip);
        self.0.kind = ServiceType::LoadBalancer;
        self
    }

    /// One more source range.
    pub fn source_range(mut self, net: IpNet) -> Self {
        self.0.source_ranges.push(net);
        self
    }

    /// Affinity by client IP with this timeout in seconds.
    pub fn sticky(mut self, seconds: u32) -> Self {
        self.0.session_affinity = Some(seconds);
        self
    }

    /// `internalTrafficPolicy: Local`.
    pub fn internal_local(mut self) -> Self {
        self.0.internal_policy = TrafficPolicy::Local;
        self
    }

    /// `externalTrafficPolicy: Local`.
    pub fn external_local(mut self) -> Self {
        self.0.external_policy = TrafficPolicy::Local;
        self
    }

    pub fn model(self) -> Service {
        self.0
    }

    /// The Service as a source delivers it.
    pub fn object(self) -> Object {
        self.0.into()
    }
}

#[derive(Debug, Clone)]
pub struct EndpointBuilder(Endpoint);

/// A ready endpoint: a pod here or elsewhere, or a host-network process of the node.
pub fn endpoint(place: Place, family: Family) -> EndpointBuilder {
    let (address, node) = match place {
        Place::Pod(n) => (pod_ip(n, family), NODE_NAME),
        Place::RemotePod(n) => (remote_pod_ip(n, family), REMOTE_NODE_NAME),
        Place::Host => (NODE_IP[family], NODE_NAME),
        Place::Outside | Place::OutsideAt(_) => panic!("nothing outside is an endpoint"),
    };
    EndpointBuilder(objects::endpoint(&format!("{address}@{node}")))
}

impl EndpointBuilder {
    /// Neither ready nor serving.
    pub fn unready(mut self) -> Self {
        (self.0.ready, self.0.serving) = (false, false);
        self
    }

    /// Serving, but neither ready nor terminating.
    pub fn idle(mut self) -> Self {
        self.0.ready = false;
        self
    }

    /// Terminating, and still serving.
    pub fn terminating(mut self) -> Self {
        (self.0.ready, self.0.terminating) = (false, true);
        self
    }

    pub fn model(self) -> Endpoint {
        self.0
    }
}

/// One family's slice of a service.
pub fn slice(
    service: &str,
    family: Family,
    ports: &[(&str, Protocol, u16)],
    endpoints: impl IntoIterator<Item = EndpointBuilder>,
) -> EndpointSlice {
    let suffix = family.nft();
    EndpointSlice {
        name: ObjectName::new("default", format!("{service}-{suffix}")),
        service: ObjectName::new("default", service),
        family,
        ports: ports
            .iter()
            .map(|&(name, protocol, port)| SlicePort { name: name.into(), protocol, port })
            .collect(),
        endpoints: endpoints.into_iter().map(EndpointBuilder::model).collect(),
        trigger_time: None,
    }
}

/// The node under test.
pub fn node() -> Node {
    Node {
        addresses: Family::BOTH.map(|family| NODE_IP[family]).to_vec(),
        pod_cidrs: Family::BOTH.map(|family| NODE_CIDR[family]).to_vec(),
        ..objects::node(NODE_NAME, None, &[])
    }
}

/// The cluster's service networks.
pub fn service_cidr() -> ServiceCidr {
    ServiceCidr {
        name: ObjectName::cluster_scoped("kubernetes"),
        cidrs: Family::BOTH.map(|family| SERVICE_CIDR[family]).to_vec(),
    }
}
