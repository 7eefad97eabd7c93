//! EndpointSlices.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Family, ObjectName, Protocol};

/// One EndpointSlice of one service and family.
///
/// Shape: ports and endpoints in the object's order, unusable entries already left out
/// (section 4.4). Slices are kept one by one and merged when a service is built, because an
/// endpoint may move from one slice to another (B-104).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The Service it belongs to, from label `kubernetes.io/service-name`, same namespace.
    pub service: ObjectName,
    /// From `addressType`.
    pub family: Family,
    /// Usable ports.
    pub ports: Vec<SlicePort>,
    /// Usable endpoints.
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

/// One endpoint of a slice.
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
