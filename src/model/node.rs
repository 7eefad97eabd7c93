//! This node and the cluster's service networks.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Family, ObjectName, PerFamily};

/// The Node object of this node.
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
