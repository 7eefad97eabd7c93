//! The objects Kubeweir decides about, reduced to what decisions need.
//!
//! Place in the flow: sources ([`crate::api`], [`crate::manifest`]) end here; everything behind the
//! store sees only these types. Nothing in this module knows Kubernetes' own types, nftables,
//! clocks or I/O.

pub mod address;
mod family;
mod service;

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use family::{Families, Family, PerFamily, Protocol};
pub use service::{
    EndConnections, Endpoint, EndpointSlice, ExternalScope, Hints, Service, ServicePort,
    ServiceType, SlicePort, TrafficPolicy,
};

/// The kinds of objects a source delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// core/v1 Service.
    Service,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
    /// core/v1 Node; only this node's own object is of interest.
    Node,
    /// networking.k8s.io/v1 ServiceCIDR.
    ServiceCidr,
}

impl Kind {
    /// Every kind, in the order in which a cold start reads them.
    pub const ALL: [Kind; 4] = [Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// One object as a source hands it over.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A Service that passed the selectors of B-069.
    Service(Arc<Service>),
    /// A slice that passed the selector of B-070.
    EndpointSlice(Arc<EndpointSlice>),
    Node(Arc<Node>),
    ServiceCidr(Arc<ServiceCidr>),
}

impl Object {
    pub fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Node(_) => Kind::Node,
            Object::ServiceCidr(_) => Kind::ServiceCidr,
        }
    }

    /// The object's name; cluster-scoped objects have an empty namespace.
    pub fn name(&self) -> &ObjectName {
        match self {
            Object::Service(o) => &o.name,
            Object::EndpointSlice(o) => &o.name,
            Object::Node(o) => &o.name,
            Object::ServiceCidr(o) => &o.name,
        }
    }
}

/// What a source tells the engine.
///
/// Shape: per kind, either single changes or a `Replace` with the complete list; a kind counts as
/// listed from its first `Replace` on (B-190).
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// An object is new or different.
    Apply(Object),
    /// An object is gone.
    Delete(Kind, ObjectName),
    /// The complete list of one kind: what is missing from it is gone. Every object is of that kind.
    Replace(Kind, Vec<Object>),
}

/// A part of an object that could not be used, and why. The rest of the object is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skip {
    pub kind: Kind,
    pub object: ObjectName,
    /// Path of the field, as a user would write it: `spec.externalIPs[1]`.
    pub field: String,
    pub reason: String,
    /// Whether upstream logs this as an error, as information, or not at all (section 4.10).
    pub level: SkipLevel,
}

/// How loudly a [`Skip`] is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipLevel {
    /// Something is wrong with the object.
    Error,
    /// Worth knowing, not wrong.
    Info,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}: {}", self.kind, self.object, self.field, self.reason)
    }
}

// Names of objects and of service ports.

/// Namespace and name of an object. Ordered by namespace, then name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObjectName {
    /// Empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A namespaced name.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        ObjectName { namespace: namespace.into(), name: name.into() }
    }

    /// What a person writes: `namespace/name`, of the characters that names consist of; a name alone is
    /// of `namespace`, if there is one.
    pub fn parse(text: &str, namespace: Option<&str>) -> Option<Self> {
        let (namespace, name) = text.split_once('/').or(namespace.map(|own| (own, text)))?;
        let is_name = |part: &str| {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            !part.is_empty() && part.chars().all(fits)
        };
        (is_name(namespace) && is_name(name)).then(|| ObjectName::new(namespace, name))
    }

    /// The name of a cluster-scoped object.
    pub fn cluster_scoped(name: impl Into<Arc<str>>) -> Self {
        ObjectName { namespace: "".into(), name: name.into() }
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ObjectName {
    /// Sources share equal namespaces, so most comparisons need not look at theirs.
    fn cmp(&self, other: &Self) -> Ordering {
        let namespaces = if Arc::ptr_eq(&self.namespace, &other.namespace) {
            Ordering::Equal
        } else {
            self.namespace.cmp(&other.namespace)
        };
        namespaces.then_with(|| self.name.cmp(&other.name))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One port of one service: the unit that rules are built for.
///
/// Prints as upstream prints it: `namespace/name:port`, without the colon for an unnamed port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    pub service: ObjectName,
    /// `ports[].name`; empty for an unnamed port.
    pub port: Arc<str>,
    /// `ports[].protocol`. Two ports may share a name only across protocols in hand-written slices.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() {
            write!(f, "{}", self.service)
        } else {
            write!(f, "{}:{}", self.service, self.port)
        }
    }
}

// This node and the cluster's service networks.

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`, cluster-scoped.
    pub name: ObjectName,
    /// Label `topology.kubernetes.io/zone`; `None` when missing or empty (B-118).
    pub zone: Option<Arc<str>>,
    /// `status.addresses`: all InternalIPs in order, then all ExternalIPs in order (B-055).
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`, in order.
    pub pod_cidrs: Vec<IpNet>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// It carries the taint `ToBeDeletedByClusterAutoscaler` (B-230).
    pub to_be_deleted: bool,
}

impl Node {
    /// The node's address of each family: the first of the list and the first later one of the
    /// other family (section 3.3).
    pub fn node_ips(&self) -> PerFamily<Option<IpAddr>> {
        PerFamily::from_fn(|family| {
            self.addresses.iter().copied().find(|ip| Family::of(ip) == family)
        })
    }

    /// The family of the first address.
    pub fn primary_family(&self) -> Option<Family> {
        self.addresses.first().map(Family::of)
    }
}

/// One ServiceCIDR object. Readiness and deletion are ignored (section 5.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCidr {
    /// `metadata.name`, cluster-scoped.
    pub name: ObjectName,
    /// `spec.cidrs`.
    pub cidrs: Vec<IpNet>,
}

/// Addresses currently assigned to the node's interfaces, both families.
///
/// Shape: sorted, without duplicates. Source: rtnetlink.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeAddresses(pub Vec<IpAddr>);
