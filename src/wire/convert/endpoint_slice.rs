//! EndpointSlices.

use std::sync::Arc;

use super::{Conversion, ToModel, is_label};
use crate::model::{self, Family, Kind, Object, ObjectName, Protocol, SlicePort};
use crate::wire::message::{
    ANNOTATION_TRIGGER_TIME, Endpoint, EndpointPort, EndpointSlice, Hint, LABEL_HEADLESS,
    LABEL_SERVICE_NAME, ObjectMeta,
};

impl ToModel for EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn metadata(&self) -> Option<&ObjectMeta> {
        self.metadata.as_ref()
    }

    fn to_model(&self, name: ObjectName, convert: &mut Conversion<'_>) -> Option<Object> {
        let metadata = self.metadata.as_ref()?;
        // A headless Service's (B-070). The API server's selector does the same for watches.
        if metadata.label(LABEL_HEADLESS).is_some() {
            return None;
        }
        let service = metadata.label(LABEL_SERVICE_NAME).unwrap_or_default();
        if !is_label(service) {
            let field = format!("metadata.labels[{LABEL_SERVICE_NAME}]");
            convert.note(field, format!("{service:?} names no Service"));
            return None;
        }
        let family = match self.address_type.as_deref() {
            Some("IPv4") => Family::V4,
            Some("IPv6") => Family::V6,
            other => {
                let reason = format!("address type {:?} is not supported", other.unwrap_or(""));
                convert.note("addressType", reason);
                return None;
            }
        };
        Some(Object::EndpointSlice(Arc::new(model::EndpointSlice {
            service: ObjectName::new(name.namespace.clone(), service),
            name,
            family,
            ports: ports(&self.ports, convert),
            endpoints: endpoints(&self.endpoints, family, convert),
            trigger_time: trigger_time(metadata, convert),
        })))
    }
}

/// Ports without name, or without number ("all ports"), are not implemented upstream either (B-098).
fn ports(list: &[EndpointPort], convert: &mut Conversion<'_>) -> Vec<SlicePort> {
    let mut ports = Vec::with_capacity(list.len());
    for (at, port) in list.iter().enumerate() {
        let field = |name: &str| format!("ports[{at}].{name}");
        let Some(name) = port.name.as_deref() else {
            convert.wrong(field("name"), "missing");
            continue;
        };
        let number = port.port.unwrap_or(0);
        let Some(number) = u16::try_from(number).ok().filter(|number| *number > 0) else {
            convert.wrong(field("port"), format!("{number} is not in 1 to 65535"));
            continue;
        };
        let protocol = match port.protocol.as_deref() {
            None | Some("") => Some(Protocol::Tcp),
            Some(text) => Protocol::from_api(text),
        };
        let Some(protocol) = protocol else {
            let text = port.protocol.as_deref().unwrap_or_default();
            convert.wrong(field("protocol"), format!("unknown protocol {text:?}"));
            continue;
        };
        ports.push(SlicePort { name: convert.interner.intern(name), protocol, port: number });
    }
    ports
}

fn endpoints(
    list: &[Endpoint],
    family: Family,
    convert: &mut Conversion<'_>,
) -> Vec<model::Endpoint> {
    let mut endpoints = Vec::with_capacity(list.len());
    for (at, endpoint) in list.iter().enumerate() {
        let Some(text) = endpoint.addresses.first() else {
            convert.wrong(format!("endpoints[{at}].addresses"), "no address");
            continue;
        };
        let field = format!("endpoints[{at}].addresses[0]");
        let Some(address) = convert.address(&field, text) else { continue };
        if Family::of(&address) != family {
            convert.wrong(field, format!("{text} is not of the slice's family {family}"));
            continue;
        }
        let conditions = endpoint.conditions.unwrap_or_default();
        let node = endpoint.node_name.as_deref();
        let hints = endpoint.hints.as_ref();
        endpoints.push(model::Endpoint {
            address,
            ready: conditions.ready.unwrap_or(true),
            serving: conditions.serving.unwrap_or(true),
            terminating: conditions.terminating.unwrap_or(false),
            node: node.map(|node| convert.interner.intern(node)),
            zone_hints: hints.map(|h| names(&h.for_zones, convert)).unwrap_or_default(),
            node_hints: hints.map(|h| names(&h.for_nodes, convert)).unwrap_or_default(),
        });
    }
    endpoints
}

fn names(hints: &[Hint], convert: &mut Conversion<'_>) -> Vec<Arc<str>> {
    let names = hints.iter().filter_map(|hint| hint.name.as_deref());
    names.map(|name| convert.interner.intern(name)).collect()
}

fn trigger_time(metadata: &ObjectMeta, convert: &mut Conversion<'_>) -> Option<i64> {
    let text = metadata.annotation(ANNOTATION_TRIGGER_TIME)?;
    let parsed: Result<jiff::Timestamp, _> = text.parse();
    let nanoseconds = parsed.ok().and_then(|time| i64::try_from(time.as_nanosecond()).ok());
    if nanoseconds.is_none() {
        let field = format!("metadata.annotations[{ANNOTATION_TRIGGER_TIME}]");
        convert.wrong(field, format!("{text:?} is no RFC 3339 time"));
    }
    nanoseconds
}
