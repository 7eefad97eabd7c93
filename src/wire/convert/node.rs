//! Nodes.

use std::sync::Arc;

use super::{Conversion, ToModel};
use crate::model::address::parse_cidr;
use crate::model::{self, Kind, Object, ObjectName};
use crate::wire::message::{LABEL_ZONE, Node, ObjectMeta};

/// Set by the cluster autoscaler on a node it is about to remove (B-230).
const TAINT_TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

impl ToModel for Node {
    const KIND: Kind = Kind::Node;

    fn metadata(&self) -> Option<&ObjectMeta> {
        self.metadata.as_ref()
    }

    fn to_model(&self, name: ObjectName, convert: &mut Conversion<'_>) -> Option<Object> {
        let metadata = self.metadata.as_ref()?;
        let zone = metadata.label(LABEL_ZONE).filter(|zone| !zone.is_empty());
        let mut pod_cidrs = Vec::new();
        for (at, text) in self.spec.iter().flat_map(|spec| &spec.pod_cidrs).enumerate() {
            match parse_cidr(text) {
                Some(net) => pod_cidrs.push(net.trunc()),
                None => {
                    convert.wrong(format!("spec.podCIDRs[{at}]"), format!("{text:?} is no CIDR"));
                }
            }
        }
        let mut taints = self.spec.iter().flat_map(|spec| &spec.taints);
        Some(Object::Node(Arc::new(model::Node {
            zone: zone.map(|zone| convert.interner.intern(zone)),
            addresses: addresses(self, convert),
            pod_cidrs,
            deleting: metadata.deletion_timestamp.is_some(),
            to_be_deleted: taints.any(|taint| taint.key.as_deref() == Some(TAINT_TO_BE_DELETED)),
            name,
        })))
    }
}

/// All InternalIPs in order, then all ExternalIPs in order; other types do not count (B-055).
fn addresses(node: &Node, convert: &mut Conversion<'_>) -> Vec<std::net::IpAddr> {
    let mut addresses = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        let listed = node.status.iter().flat_map(|status| &status.addresses).enumerate();
        for (at, entry) in listed.filter(|(_, entry)| entry.r#type.as_deref() == Some(wanted)) {
            let text = entry.address.as_deref().unwrap_or_default();
            addresses.extend(convert.address(&format!("status.addresses[{at}].address"), text));
        }
    }
    addresses
}
