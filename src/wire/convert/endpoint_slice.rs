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

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::super::tests::{fields, ip, slice, slice_with};
    use crate::model::{Endpoint, Protocol, SkipLevel};

    // B-070
    #[test]
    fn slices_of_headless_services_are_not_taken() {
        let labels = json!({"service.kubernetes.io/headless": ""});
        let decoded = slice_with(json!({"metadata": {"labels": labels}}));
        assert_eq!((decoded.object, decoded.skips), (None, vec![]));
    }

    // B-093, B-094
    #[test]
    fn slices_that_are_ignored() {
        let cases = [
            (
                "no label",
                json!({"metadata": {"labels": null}}),
                "metadata.labels[kubernetes.io/service-name]",
                SkipLevel::Info,
            ),
            (
                "empty label",
                json!({"metadata": {"labels": {"kubernetes.io/service-name": ""}}}),
                "metadata.labels[kubernetes.io/service-name]",
                SkipLevel::Info,
            ),
            ("FQDN", json!({"addressType": "FQDN"}), "addressType", SkipLevel::Info),
            (
                "hostile label",
                json!({"metadata": {"labels": {"kubernetes.io/service-name": "a b"}}}),
                "metadata.labels[kubernetes.io/service-name]",
                SkipLevel::Error,
            ),
        ];
        for (case, patch, field, level) in cases {
            let decoded = slice_with(patch);
            assert_eq!(decoded.object, None, "{case}");
            let skips: Vec<_> =
                decoded.skips.iter().map(|skip| (skip.field.as_str(), skip.level)).collect();
            assert_eq!(skips, [(field, level)], "{case}");
        }
    }

    // B-095
    #[test]
    fn slices_of_any_controller_are_used() {
        for controller in [json!("endpointslice-controller.k8s.io"), json!("me"), Value::Null] {
            let labels = json!({"endpointslice.kubernetes.io/managed-by": controller});
            assert!(slice_with(json!({"metadata": {"labels": labels}})).object.is_some());
        }
    }

    // B-098
    #[test]
    fn slice_ports_need_a_name_and_a_number() {
        let decoded = slice_with(json!({"ports": [
            {"port": 1, "protocol": "TCP"},
            {"name": "a", "protocol": "TCP"},
            {"name": "b", "port": 0},
            {"name": "c", "port": 65536},
            {"name": "", "port": 80},
            {"name": "http", "port": 8080, "protocol": "UDP"},
        ]}));
        let ports: Vec<_> = slice(&decoded)
            .ports
            .iter()
            .map(|port| (port.name.to_string(), port.protocol, port.port))
            .collect();
        let expected =
            [(String::new(), Protocol::Tcp, 80), ("http".to_owned(), Protocol::Udp, 8080)];
        assert_eq!(ports, expected);
        let skipped = ["ports[0].name", "ports[1].port", "ports[2].port", "ports[3].port"];
        assert_eq!(fields(&decoded), skipped);
    }

    // B-099, B-100
    #[test]
    fn endpoints_have_one_address() {
        let decoded = slice_with(json!({"endpoints": [
            {"addresses": ["10.0.0.1", "10.0.0.2"]},
            {"addresses": []},
            {"addresses": null},
            {"addresses": ["10.0.0"]},
            {"addresses": ["fd00::1"]},
            {"addresses": ["10.0.0.3"]},
        ]}));
        let addresses: Vec<IpAddr> = slice(&decoded).endpoints.iter().map(|e| e.address).collect();
        assert_eq!(addresses, [ip("10.0.0.1"), ip("10.0.0.3")]);
        let skipped = [
            "endpoints[1].addresses",
            "endpoints[2].addresses",
            "endpoints[3].addresses[0]",
            "endpoints[4].addresses[0]",
        ];
        assert_eq!(fields(&decoded), skipped);
    }

    // B-101
    #[test]
    fn absent_conditions() {
        let cases = [
            (Value::Null, (true, true, false)),
            (json!({}), (true, true, false)),
            (json!({"ready": null, "serving": null, "terminating": null}), (true, true, false)),
            (json!({"ready": false}), (false, true, false)),
            (json!({"ready": false, "serving": false, "terminating": true}), (false, false, true)),
        ];
        for (conditions, expected) in cases {
            let endpoint = json!({"addresses": ["10.0.0.1"], "conditions": conditions});
            let slice = slice(&slice_with(json!({"endpoints": [endpoint]})));
            let Endpoint { ready, serving, terminating, .. } = slice.endpoints[0];
            assert_eq!((ready, serving, terminating), expected, "{conditions}");
        }
    }

    #[test]
    fn endpoints_share_the_names_of_nodes_and_zones() {
        let endpoint = |ip: &str| {
            json!({
                "addresses": [ip], "nodeName": "node-a",
                "hints": {"forZones": [{"name": "eu-1a"}], "forNodes": [{"name": "node-a"}]},
            })
        };
        let endpoints =
            json!([endpoint("10.0.0.1"), endpoint("10.0.0.2"), {"addresses": ["10.0.0.3"]}]);
        let slice = slice(&slice_with(json!({"endpoints": endpoints})));
        let [first, second, bare] = &slice.endpoints[..] else { panic!("{slice:?}") };
        assert_eq!(first.zone_hints(), [Arc::from("eu-1a")]);
        let hints = |endpoint: &Endpoint| Arc::as_ptr(endpoint.hints.as_ref().expect("hints"));
        assert_eq!(hints(first), hints(second));
        assert!(Arc::ptr_eq(&first.node_hints()[0], second.node.as_ref().expect("a node")));
        assert_eq!((&bare.node, &bare.hints), (&None, &None));
    }

    #[test]
    fn trigger_times() {
        let with = |text: &str| {
            let annotations = json!({"endpoints.kubernetes.io/last-change-trigger-time": text});
            slice_with(json!({"metadata": {"annotations": annotations}}))
        };
        let good = with("1970-01-01T00:00:01.5Z");
        assert_eq!((slice(&good).trigger_time, good.skips.len()), (Some(1_500_000_000), 0));
        let bad = with("yesterday");
        assert_eq!(slice(&bad).trigger_time, None);
        let annotation = "metadata.annotations[endpoints.kubernetes.io/last-change-trigger-time]";
        assert_eq!(fields(&bad), [annotation]);
    }
}
