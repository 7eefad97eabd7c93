//! Nodes (section 3.3) and ServiceCIDRs.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Conversion, ToModel};
use crate::model::{Kind, Node, Object, ServiceCidr};
use crate::wire::message::{self, LABEL_ZONE, NodeAddress, ObjectMeta};

/// The taint of a node that the cluster autoscaler is about to remove (B-230).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

impl ToModel for message::Node {
    const KIND: Kind = Kind::Node;

    fn metadata(&self) -> Option<&ObjectMeta> {
        self.metadata.as_ref()
    }

    fn to_model(&self, conversion: &mut Conversion<'_>) -> Option<Object> {
        let metadata = conversion.metadata;
        let zone = metadata.label(LABEL_ZONE).filter(|zone| !zone.is_empty());
        let (taints, pod_cidrs) = match &self.spec {
            Some(spec) => (&spec.taints[..], &spec.pod_cidrs[..]),
            None => (&[][..], &[][..]),
        };
        let addresses = self.status.as_ref().map(|status| &status.addresses[..]);
        let node = Node {
            name: conversion.name.clone(),
            zone: zone.map(|zone| conversion.interner.intern(zone)),
            addresses: conversion.node_addresses(addresses.unwrap_or_default()),
            pod_cidrs: conversion.cidrs("spec.podCIDRs", pod_cidrs),
            deleting: metadata.deletion_timestamp.is_some(),
            to_be_deleted: taints.iter().any(|taint| taint.key.as_deref() == Some(TO_BE_DELETED)),
        };
        Some(Object::Node(Arc::new(node)))
    }
}

impl ToModel for message::ServiceCidr {
    const KIND: Kind = Kind::ServiceCidr;

    fn metadata(&self) -> Option<&ObjectMeta> {
        self.metadata.as_ref()
    }

    fn to_model(&self, conversion: &mut Conversion<'_>) -> Option<Object> {
        let cidrs = self.spec.as_ref().map(|spec| &spec.cidrs[..]).unwrap_or_default();
        let service_cidr = ServiceCidr {
            name: conversion.name.clone(),
            cidrs: conversion.cidrs("spec.cidrs", cidrs),
        };
        Some(Object::ServiceCidr(Arc::new(service_cidr)))
    }
}

impl Conversion<'_> {
    /// B-055: InternalIPs first, then ExternalIPs; other types do not count.
    fn node_addresses(&mut self, addresses: &[NodeAddress]) -> Vec<IpAddr> {
        let mut usable = Vec::with_capacity(addresses.len());
        for address_type in ["InternalIP", "ExternalIP"] {
            for (i, address) in addresses.iter().enumerate() {
                if address.r#type.as_deref() != Some(address_type) {
                    continue;
                }
                let text = address.address.as_deref().unwrap_or_default();
                usable.extend(self.address(|| format!("status.addresses[{i}].address"), text));
            }
        }
        usable
    }
}
