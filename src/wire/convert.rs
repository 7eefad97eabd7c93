//! From messages to the model: sections 3.3 and 4.2 to 4.5 of the behaviour reference.
//!
//! The one conversion for both encodings and for manifests. What cannot be used is skipped with its
//! object, field and reason; the rest is used.

mod endpoint_slice;
mod node;
mod service;

use std::net::IpAddr;
use std::sync::Arc;

use super::message::{ObjectMeta, ServiceCidr};
use super::{Decoded, Interner};
use crate::model::{self, Kind, Object, ObjectName, Skip, SkipLevel};

/// Longest name of an object whose name is a DNS subdomain.
const SUBDOMAIN_LEN: usize = 253;
/// Longest DNS label: namespaces, services, ports.
const LABEL_LEN: usize = 63;

/// A message that becomes an object of the model.
pub trait ToModel: prost::Message + Default {
    /// Its kind.
    const KIND: Kind;

    /// Its metadata.
    fn metadata(&self) -> Option<&ObjectMeta>;

    /// The object; `None` if it must not be used, which is reported unless it is simply not ours.
    fn to_model(&self, name: ObjectName, convert: &mut Conversion<'_>) -> Option<Object>;
}

/// One conversion: what it may share, and what it skipped.
pub struct Conversion<'a> {
    kind: Kind,
    object: ObjectName,
    /// Feature gate AllowServiceExternalIPs (B-050).
    pub allow_external_ips: bool,
    /// Shared strings.
    pub interner: &'a mut Interner,
    skips: Vec<Skip>,
}

impl Conversion<'_> {
    /// Leaves a part out because it is wrong.
    pub fn wrong(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.skip(field.into(), reason.into(), SkipLevel::Error);
    }

    /// Leaves a part out; nothing is wrong with it.
    pub fn note(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.skip(field.into(), reason.into(), SkipLevel::Info);
    }

    fn skip(&mut self, field: String, reason: String, level: SkipLevel) {
        let (kind, object) = (self.kind, self.object.clone());
        self.skips.push(Skip { kind, object, field, reason, level });
    }

    /// An address in any spelling upstream takes (B-087).
    pub fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let address = model::address::parse_ip(text);
        if address.is_none() {
            self.wrong(field, format!("{text:?} is no IP address"));
        }
        address
    }
}

/// Converts a message. Its name is as written, even if nothing else is usable.
pub fn decoded<M: ToModel>(
    message: &M,
    allow_external_ips: bool,
    interner: &mut Interner,
) -> Decoded {
    let missing = ObjectMeta::default();
    let metadata = message.metadata().unwrap_or(&missing);
    let name = object_name(M::KIND, metadata, interner);
    let mut conversion = Conversion {
        kind: M::KIND,
        object: name.clone(),
        allow_external_ips,
        interner,
        skips: Vec::new(),
    };
    let object = match check_name(M::KIND, &name) {
        Ok(()) => message.to_model(name.clone(), &mut conversion),
        Err((field, reason)) => {
            conversion.wrong(field, reason);
            None
        }
    };
    let resource_version = metadata.resource_version.clone().unwrap_or_default();
    Decoded { name, resource_version, object, skips: conversion.skips }
}

/// The name of an object from its metadata.
pub fn object_name(kind: Kind, metadata: &ObjectMeta, interner: &mut Interner) -> ObjectName {
    let name: Arc<str> = metadata.name.as_deref().unwrap_or_default().into();
    match kind {
        Kind::Service | Kind::EndpointSlice => {
            let namespace = interner.intern(metadata.namespace.as_deref().unwrap_or_default());
            ObjectName { namespace, name }
        }
        Kind::Node | Kind::ServiceCidr => ObjectName::cluster_scoped(name),
    }
}

/// Names become parts of chain names and comments: what no API server would admit is refused.
fn check_name(kind: Kind, name: &ObjectName) -> Result<(), (&'static str, String)> {
    let longest = if kind == Kind::Service { LABEL_LEN } else { SUBDOMAIN_LEN };
    let namespaced = matches!(kind, Kind::Service | Kind::EndpointSlice);
    if namespaced && !is_label(&name.namespace) {
        return Err(("metadata.namespace", format!("{:?} is no DNS label", name.namespace)));
    }
    let valid = if kind == Kind::Service {
        is_label(&name.name)
    } else {
        name.name.len() <= longest && name.name.split('.').all(is_subdomain_part)
    };
    if valid { Ok(()) } else { Err(("metadata.name", format!("{:?} is no DNS name", name.name))) }
}

fn is_subdomain_part(text: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let inner = |b: u8| alphanumeric(b) || b == b'-';
    let ends = text.bytes().next().is_some_and(alphanumeric)
        && text.bytes().next_back().is_some_and(alphanumeric);
    ends && text.bytes().all(inner)
}

/// A DNS label as RFC 1123 has it: lower case, digits and hyphens, at most 63 of them.
pub fn is_label(text: &str) -> bool {
    text.len() <= LABEL_LEN && is_subdomain_part(text)
}

impl ToModel for ServiceCidr {
    const KIND: Kind = Kind::ServiceCidr;

    fn metadata(&self) -> Option<&ObjectMeta> {
        self.metadata.as_ref()
    }

    fn to_model(&self, name: ObjectName, convert: &mut Conversion<'_>) -> Option<Object> {
        let mut cidrs = Vec::new();
        for (at, text) in self.spec.iter().flat_map(|spec| &spec.cidrs).enumerate() {
            match model::address::parse_cidr(text) {
                Some(net) => cidrs.push(net.trunc()),
                None => convert.wrong(format!("spec.cidrs[{at}]"), format!("{text:?} is no CIDR")),
            }
        }
        Some(Object::ServiceCidr(Arc::new(model::ServiceCidr { name, cidrs })))
    }
}

#[cfg(test)]
mod tests;
