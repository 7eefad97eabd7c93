//! Services: sections 4.2 and 4.3.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Conversion, ToModel, family_from_api, push_unique};
use crate::model::{
    EndConnections, Family, Kind, Object, Service, ServicePort, ServiceType, TrafficPolicy,
};
use crate::wire::message::{
    self, ANNOTATION_END_CONNECTIONS, LABEL_SERVICE_PROXY_NAME, ObjectMeta, ServiceSpec,
};

/// What the API server fills in for `sessionAffinityConfig.clientIP.timeoutSeconds`; manifests have
/// no server.
const DEFAULT_AFFINITY_TIMEOUT: u32 = 10_800;
/// The API's upper bound of that timeout.
const MAX_AFFINITY_TIMEOUT: u32 = 86_400;

impl ToModel for message::Service {
    const KIND: Kind = Kind::Service;

    fn metadata(&self) -> Option<&ObjectMeta> {
        self.metadata.as_ref()
    }

    fn to_model(&self, conversion: &mut Conversion<'_>) -> Option<Object> {
        let no_spec = ServiceSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&no_spec);
        if !is_selected(conversion.metadata, spec) {
            return None;
        }
        let created = conversion.metadata.creation_timestamp.and_then(|time| time.seconds);
        let kind = conversion.service_type(spec);
        let external_policy = conversion
            .policy("spec.externalTrafficPolicy", spec.external_traffic_policy.as_deref());
        let service = Service {
            name: conversion.name.clone(),
            created: created.unwrap_or_default(),
            kind,
            cluster_ips: conversion.cluster_ips(spec),
            ports: conversion.service_ports(&spec.ports),
            external_ips: conversion.external_ips(&spec.external_ips),
            load_balancer_ips: conversion.load_balancer_ips(self),
            source_ranges: conversion
                .cidrs("spec.loadBalancerSourceRanges", &spec.load_balancer_source_ranges),
            session_affinity: conversion.session_affinity(spec),
            internal_policy: conversion
                .policy("spec.internalTrafficPolicy", spec.internal_traffic_policy.as_deref()),
            external_policy,
            health_check_node_port: conversion.health_check_node_port(spec, kind, external_policy),
            end_connections: conversion.end_connections(),
        };
        Some(Object::Service(Arc::new(service)))
    }
}

/// The selectors of B-069 once more: manifests have no server that applies them.
fn is_selected(metadata: &ObjectMeta, spec: &ServiceSpec) -> bool {
    metadata.label(LABEL_SERVICE_PROXY_NAME).is_none() && spec.cluster_ip.as_deref() != Some("None")
}

impl Conversion<'_> {
    fn service_type(&mut self, spec: &ServiceSpec) -> ServiceType {
        match spec.r#type.as_deref() {
            None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
            Some("NodePort") => ServiceType::NodePort,
            Some("LoadBalancer") => ServiceType::LoadBalancer,
            Some("ExternalName") => ServiceType::ExternalName,
            Some(other) => {
                self.error("spec.type", format!("unknown type {other:?}, taken as ClusterIP"));
                ServiceType::ClusterIp
            }
        }
    }

    fn policy(&mut self, field: &str, value: Option<&str>) -> TrafficPolicy {
        match value {
            None | Some("" | "Cluster") => TrafficPolicy::Cluster,
            Some("Local") => TrafficPolicy::Local,
            Some(other) => {
                self.error(field, format!("unknown policy {other:?}, taken as Cluster"));
                TrafficPolicy::Cluster
            }
        }
    }

    /// Old objects have no `ipFamilies`: then `clusterIP` counts (B-079). Otherwise each family's
    /// address stands in `clusterIPs` where `ipFamilies` names the family (B-078). None at all with
    /// an empty `clusterIP` (B-076).
    fn cluster_ips(&mut self, spec: &ServiceSpec) -> Vec<IpAddr> {
        let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
        if cluster_ip.is_empty() {
            return Vec::new();
        }
        if spec.ip_families.is_empty() {
            return self.address(|| "spec.clusterIP".to_owned(), cluster_ip).into_iter().collect();
        }
        let mut cluster_ips = Vec::with_capacity(spec.ip_families.len());
        for family in Family::BOTH {
            let of_family = |name: &String| family_from_api(name) == Some(family);
            let Some(i) = spec.ip_families.iter().position(of_family) else { continue };
            let Some(text) = spec.cluster_ips.get(i) else { continue };
            let field = || format!("spec.clusterIPs[{i}]");
            match self.address(field, text) {
                Some(ip) if Family::of(&ip) == family => cluster_ips.push(ip),
                Some(ip) => self.error(field(), format!("{ip} is no {family} address")),
                None => {}
            }
        }
        cluster_ips
    }

    fn service_ports(&mut self, ports: &[message::ServicePort]) -> Vec<ServicePort> {
        let mut usable: Vec<ServicePort> = Vec::with_capacity(ports.len());
        for (i, port) in ports.iter().enumerate() {
            let Some(port) = self.service_port(i, port) else { continue };
            let twin = |other: &ServicePort| {
                other.protocol == port.protocol
                    && (other.name == port.name || other.port == port.port)
            };
            if usable.iter().any(twin) {
                let reason = format!("another {} port has the same name or number", port.protocol);
                self.error(format!("spec.ports[{i}]"), reason);
            } else {
                usable.push(port);
            }
        }
        usable
    }

    fn service_port(&mut self, i: usize, port: &message::ServicePort) -> Option<ServicePort> {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        let name = port.name.as_deref().unwrap_or_default();
        let name = self.port_name(|| field("name"), name)?;
        let protocol = self.protocol(|| field("protocol"), port.protocol.as_deref())?;
        let number = self.port_number(|| field("port"), port.port)?;
        let node_port = match port.node_port {
            None | Some(0) => None,
            some => self.port_number(|| field("nodePort"), some),
        };
        Some(ServicePort { name, protocol, port: number, node_port })
    }

    fn external_ips(&mut self, values: &[String]) -> Vec<IpAddr> {
        let mut external_ips = Vec::new();
        if !self.allow_external_ips {
            return external_ips;
        }
        for (i, value) in values.iter().enumerate() {
            if value.trim().is_empty() {
                continue;
            }
            if let Some(ip) = self.address(|| format!("spec.externalIPs[{i}]"), value) {
                push_unique(&mut external_ips, ip);
            }
        }
        external_ips
    }

    fn load_balancer_ips(&mut self, service: &message::Service) -> Vec<IpAddr> {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let mut ips = Vec::new();
        for (i, ingress) in status.iter().flat_map(|status| status.ingress.iter().enumerate()) {
            let text = ingress.ip.as_deref().unwrap_or_default();
            let is_vip = matches!(ingress.ip_mode.as_deref(), None | Some("VIP"));
            if text.is_empty() || !is_vip {
                continue;
            }
            let field = || format!("status.loadBalancer.ingress[{i}].ip");
            if let Some(ip) = self.address(field, text) {
                push_unique(&mut ips, ip);
            }
        }
        ips
    }

    fn session_affinity(&mut self, spec: &ServiceSpec) -> Option<u32> {
        match spec.session_affinity.as_deref() {
            None | Some("" | "None") => return None,
            Some("ClientIP") => {}
            Some(other) => {
                self.error("spec.sessionAffinity", format!("unknown affinity {other:?}"));
                return None;
            }
        }
        let config = spec.session_affinity_config.and_then(|config| config.client_ip);
        let Some(seconds) = config.and_then(|client_ip| client_ip.timeout_seconds) else {
            return Some(DEFAULT_AFFINITY_TIMEOUT);
        };
        match u32::try_from(seconds) {
            Ok(timeout) if (1..=MAX_AFFINITY_TIMEOUT).contains(&timeout) => Some(timeout),
            _ => {
                self.error(
                    "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
                    format!("{seconds} is not between 1 and 86400, taken as 10800"),
                );
                Some(DEFAULT_AFFINITY_TIMEOUT)
            }
        }
    }

    fn end_connections(&mut self) -> EndConnections {
        let Some(text) = self.metadata.annotation(ANNOTATION_END_CONNECTIONS) else {
            return EndConnections::AsNode;
        };
        if text == "never" {
            return EndConnections::Never;
        }
        let time = text.parse::<jiff::SignedDuration>().ok();
        match time.and_then(|time| std::time::Duration::try_from(time).ok()) {
            Some(time) => EndConnections::After(time),
            None => {
                let field = format!("metadata.annotations[{ANNOTATION_END_CONNECTIONS}]");
                self.error(&field, format!("{text:?} is neither a duration nor never, ignored"));
                EndConnections::AsNode
            }
        }
    }

    fn health_check_node_port(
        &mut self,
        spec: &ServiceSpec,
        kind: ServiceType,
        external_policy: TrafficPolicy,
    ) -> Option<u16> {
        if kind != ServiceType::LoadBalancer || external_policy != TrafficPolicy::Local {
            return None;
        }
        let port = spec.health_check_node_port.or(Some(0));
        self.port_number(|| "spec.healthCheckNodePort".to_owned(), port)
    }
}
