//! The objects Kubeweir decides about, reduced to what decisions need.
//!
//! Place in the flow: sources ([`crate::api`], [`crate::manifest`]) end here; everything behind the
//! store sees only these types. Nothing in this module knows Kubernetes' own types, nftables,
//! clocks or I/O.

pub mod address;
mod endpoint_slice;
mod family;
mod name;
mod node;
mod service;

pub use endpoint_slice::{Endpoint, EndpointSlice, Hints, SlicePort};
pub use family::{Families, Family, PerFamily, Protocol};
pub use name::{ObjectName, ServicePortName};
pub use node::{Node, NodeAddresses, ServiceCidr};
pub use service::{
    EndConnections, ExternalScope, Service, ServicePort, ServiceType, TrafficPolicy,
};

use std::fmt;
use std::sync::Arc;

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
    /// This node.
    Node(Arc<Node>),
    /// A ServiceCIDR.
    ServiceCidr(Arc<ServiceCidr>),
}

impl Object {
    /// The object's kind.
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
    /// Kind of the object.
    pub kind: Kind,
    /// Name of the object.
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
