//! EndpointSlices: sections 4.4 and 4.5.

use std::sync::Arc;

use super::{Conversion, ToModel, family_from_api, is_label};
use crate::model::{Endpoint, EndpointSlice, Family, Hints, Kind, Object, ObjectName, SlicePort};
use crate::wire::message::{
    self, ANNOTATION_TRIGGER_TIME, Hint, LABEL_HEADLESS, LABEL_SERVICE_NAME, ObjectMeta,
};

impl ToModel for message::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn metadata(&self) -> Option<&ObjectMeta> {
        self.metadata.as_ref()
    }

    fn to_model(&self, conversion: &mut Conversion<'_>) -> Option<Object> {
        // The selector of B-070 once more: manifests have no server that applies it.
        if conversion.metadata.label(LABEL_HEADLESS).is_some() {
            return None;
        }
        let service = conversion.owner()?;
        let family = conversion.family(self.address_type.as_deref().unwrap_or_default())?;
        let slice = EndpointSlice {
            name: conversion.name.clone(),
            service,
            family,
            ports: conversion.slice_ports(&self.ports),
            endpoints: conversion.endpoints(&self.endpoints, family),
            trigger_time: conversion.trigger_time(),
        };
        Some(Object::EndpointSlice(Arc::new(slice)))
    }
}

impl Conversion<'_> {
    /// The Service of the slice, from its label (B-093).
    fn owner(&mut self) -> Option<ObjectName> {
        let field = || format!("metadata.labels[{LABEL_SERVICE_NAME}]");
        match self.metadata.label(LABEL_SERVICE_NAME) {
            None | Some("") => {
                self.inform(field(), "the slice belongs to no Service");
                None
            }
            Some(name) if is_label(name) => Some(ObjectName {
                namespace: self.name.namespace.clone(),
                name: self.interner.intern(name),
            }),
            Some(name) => {
                self.error(field(), format!("{name:?} is no valid name of a Service"));
                None
            }
        }
    }

    /// `addressType`; other than IPv4 and IPv6 there is FQDN, which no proxy serves (B-094).
    fn family(&mut self, address_type: &str) -> Option<Family> {
        let family = family_from_api(address_type);
        if family.is_none() {
            self.inform("addressType", format!("unsupported address type {address_type:?}"));
        }
        family
    }

    fn slice_ports(&mut self, ports: &[message::EndpointPort]) -> Vec<SlicePort> {
        let mut usable = Vec::with_capacity(ports.len());
        for (i, port) in ports.iter().enumerate() {
            usable.extend(self.slice_port(i, port));
        }
        usable
    }

    /// B-098: neither a nil name nor a nil number can be matched to a Service's port.
    fn slice_port(&mut self, i: usize, port: &message::EndpointPort) -> Option<SlicePort> {
        let field = |name: &str| format!("ports[{i}].{name}");
        let Some(name) = port.name.as_deref() else {
            self.error(field("name"), "no name");
            return None;
        };
        Some(SlicePort {
            name: self.port_name(|| field("name"), name)?,
            protocol: self.protocol(|| field("protocol"), port.protocol.as_deref())?,
            port: self.port_number(|| field("port"), port.port)?,
        })
    }

    fn endpoints(&mut self, endpoints: &[message::Endpoint], family: Family) -> Vec<Endpoint> {
        let mut usable = Vec::with_capacity(endpoints.len());
        for (i, endpoint) in endpoints.iter().enumerate() {
            usable.extend(self.endpoint(i, endpoint, family));
        }
        usable
    }

    /// Only the first address counts (B-099), and there must be one (B-100). Absent conditions are
    /// those of a ready endpoint (B-101).
    fn endpoint(
        &mut self,
        i: usize,
        endpoint: &message::Endpoint,
        family: Family,
    ) -> Option<Endpoint> {
        let Some(address) = endpoint.addresses.first() else {
            self.error(format!("endpoints[{i}].addresses"), "no address");
            return None;
        };
        let field = || format!("endpoints[{i}].addresses[0]");
        let address = self.address(field, address)?;
        if Family::of(&address) != family {
            self.error(field(), format!("{address} is no {family} address"));
            return None;
        }
        let conditions = endpoint.conditions.unwrap_or_default();
        let node = endpoint.node_name.as_deref().filter(|name| !name.is_empty());
        let node = node.map(|name| self.interner.intern(name));
        let hints = endpoint.hints.as_ref().and_then(|hints| self.hints(hints));
        Some(Endpoint {
            address,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            node,
            hints,
        })
    }

    fn hints(&mut self, hints: &message::EndpointHints) -> Option<Arc<Hints>> {
        let hints = Hints {
            zones: self.hint_names(&hints.for_zones),
            nodes: self.hint_names(&hints.for_nodes),
        };
        (hints != Hints::default()).then(|| self.interner.intern_hints(hints))
    }

    fn hint_names(&mut self, hints: &[Hint]) -> Box<[Arc<str>]> {
        let names = hints.iter().map(|hint| hint.name.as_deref().unwrap_or_default());
        names.map(|name| self.interner.intern(name)).collect()
    }

    fn trigger_time(&mut self) -> Option<i64> {
        let text = self.metadata.annotation(ANNOTATION_TRIGGER_TIME)?;
        let time: Option<jiff::Timestamp> = text.parse().ok();
        let nanoseconds = time.and_then(|time| i64::try_from(time.as_nanosecond()).ok());
        if nanoseconds.is_none() {
            let field = format!("metadata.annotations[{ANNOTATION_TRIGGER_TIME}]");
            self.error(field, format!("{text:?} is no time as of RFC 3339"));
        }
        nanoseconds
    }
}
