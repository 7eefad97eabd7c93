//! From messages to the model: the rules of sections 3.3 and 4.2 to 4.5 of the behaviour reference.
//!
//! The same for every encoding and for manifests. Pure; what cannot be used is reported with the
//! path of its field, the rest is used.

mod endpoint_slice;
mod service;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::message::ObjectMeta;
use super::{Decoded, Interner};
use crate::model::address::{parse_cidr, parse_ip};
use crate::model::{
    Family, Kind, Node, Object, ObjectName, Protocol, ServiceCidr, Skip, SkipLevel,
};
use crate::wire::message::{self, LABEL_ZONE, NodeAddress};

/// A message that becomes an object.
pub(super) trait ToModel: prost::Message + Default {
    const KIND: Kind;

    fn metadata(&self) -> Option<&ObjectMeta>;

    /// The object, or `None` when it must not be used; reasons go to `conversion`.
    fn to_model(&self, conversion: &mut Conversion<'_>) -> Option<Object>;
}

/// Converts one message. `allow_external_ips`: feature gate AllowServiceExternalIPs.
pub(super) fn decoded<M: ToModel>(
    message: &M,
    allow_external_ips: bool,
    interner: &mut Interner,
) -> Decoded {
    let no_metadata = ObjectMeta::default();
    let metadata = message.metadata().unwrap_or(&no_metadata);
    let name = object_name(M::KIND, metadata, interner);
    let mut conversion = Conversion {
        kind: M::KIND,
        name: name.clone(),
        metadata,
        allow_external_ips,
        interner,
        skips: Vec::new(),
    };
    let object =
        if conversion.names_are_valid() { message.to_model(&mut conversion) } else { None };
    let skips = conversion.skips;
    let resource_version = metadata.resource_version.clone().unwrap_or_default();
    Decoded { name, resource_version, object, skips }
}

/// The name of an object as written; cluster-scoped kinds lose a namespace.
pub(super) fn object_name(
    kind: Kind,
    metadata: &ObjectMeta,
    interner: &mut Interner,
) -> ObjectName {
    let namespace = match kind {
        Kind::Service | Kind::EndpointSlice => metadata.namespace.as_deref().unwrap_or_default(),
        Kind::Node | Kind::ServiceCidr => "",
    };
    let name = metadata.name.as_deref().unwrap_or_default();
    ObjectName { namespace: interner.intern(namespace), name: name.into() }
}

/// The conversion of one object: what it needs and what it reports.
pub(super) struct Conversion<'a> {
    kind: Kind,
    name: ObjectName,
    metadata: &'a ObjectMeta,
    allow_external_ips: bool,
    interner: &'a mut Interner,
    skips: Vec<Skip>,
}

impl Conversion<'_> {
    fn error(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.skip(field.into(), reason.into(), SkipLevel::Error);
    }

    /// A field keeps something from being used, and that may well be intended.
    fn inform(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.skip(field.into(), reason.into(), SkipLevel::Info);
    }

    fn skip(&mut self, field: String, reason: String, level: SkipLevel) {
        let (kind, object) = (self.kind, self.name.clone());
        self.skips.push(Skip { kind, object, field, reason, level });
    }

    /// Names end up in rules and logs, so even a manifest's are held to the API's charset.
    fn names_are_valid(&mut self) -> bool {
        let name = self.name.clone();
        let valid_name = match self.kind {
            Kind::Service => is_label(&name.name),
            Kind::EndpointSlice | Kind::Node | Kind::ServiceCidr => is_subdomain(&name.name),
        };
        if !valid_name {
            self.error("metadata.name", format!("{:?} is no valid name", name.name));
            return false;
        }
        let namespaced = matches!(self.kind, Kind::Service | Kind::EndpointSlice);
        if namespaced && !is_label(&name.namespace) {
            self.error("metadata.namespace", format!("{:?} is no valid name", name.namespace));
            return false;
        }
        true
    }

    /// An address, IPv4 with leading zeros allowed (B-087), IPv4 in IPv6 notation IPv4; reported when it
    /// is none.
    fn address(&mut self, field: impl FnOnce() -> String, value: &str) -> Option<IpAddr> {
        let address = parse_ip(value);
        if address.is_none() {
            self.error(field(), format!("{value:?} is no IP address"));
        }
        address
    }

    /// A CIDR, host bits cleared, white space around it ignored (B-088); reported when it is none.
    /// Blank text is none either, but silently (B-086).
    fn cidr(&mut self, field: impl FnOnce() -> String, value: &str) -> Option<IpNet> {
        let trimmed = value.trim();
        let net = parse_cidr(trimmed).map(|net| net.trunc());
        if net.is_none() && !trimmed.is_empty() {
            self.error(field(), format!("{value:?} is no CIDR"));
        }
        net
    }

    /// A list of CIDRs without duplicates; `list` is the path of the list.
    fn cidrs(&mut self, list: &str, values: &[String]) -> Vec<IpNet> {
        let mut nets = Vec::with_capacity(values.len());
        for (i, value) in values.iter().enumerate() {
            if let Some(net) = self.cidr(|| format!("{list}[{i}]"), value) {
                push_unique(&mut nets, net);
            }
        }
        nets
    }

    /// A port's number between 1 and 65535; reported otherwise.
    fn port_number(&mut self, field: impl FnOnce() -> String, value: Option<i32>) -> Option<u16> {
        let number = value.and_then(|port| u16::try_from(port).ok()).filter(|&port| port != 0);
        if number.is_none() {
            let reason = match value {
                None => "no port number: ports without a number are not supported".to_owned(),
                Some(port) => format!("{port} is not between 1 and 65535"),
            };
            self.error(field(), reason);
        }
        number
    }

    /// A port's protocol, TCP by default; reported when it is unknown.
    fn protocol(
        &mut self,
        field: impl FnOnce() -> String,
        value: Option<&str>,
    ) -> Option<Protocol> {
        match value {
            None | Some("") => Some(Protocol::Tcp),
            Some(text) => {
                let protocol = Protocol::from_api(text);
                if protocol.is_none() {
                    self.error(field(), format!("{text:?} is none of TCP, UDP, SCTP"));
                }
                protocol
            }
        }
    }

    /// A port's name, empty or a DNS label; reported otherwise.
    fn port_name(&mut self, field: impl FnOnce() -> String, value: &str) -> Option<Arc<str>> {
        if value.is_empty() || is_label(value) {
            return Some(self.interner.intern(value));
        }
        self.error(field(), format!("{value:?} is no valid port name"));
        None
    }
}

/// The family that the API names `IPv4` or `IPv6`.
fn family_from_api(value: &str) -> Option<Family> {
    match value {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        _ => None,
    }
}

fn push_unique<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

/// Longest DNS label, RFC 1123.
const MAX_LABEL: usize = 63;
/// Longest DNS subdomain that the API accepts as a name.
const MAX_SUBDOMAIN: usize = 253;

/// A DNS label as of RFC 1123: lower-case letters, digits, inner hyphens, at most 63.
fn is_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && has_label_charset(text)
}

/// Labels joined by dots, at most 253 characters. As in the API, a label's own length is not limited.
fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(has_label_charset)
}

fn has_label_charset(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| *byte == b'-' || alphanumeric(byte))
}

// Nodes (section 3.3) and ServiceCIDRs.

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
