//! Services.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{Conversion, ToModel, is_label};
use crate::model::address::parse_cidr;
use crate::model::{self, Family, Kind, Object, ObjectName, Protocol, ServiceType, TrafficPolicy};
use crate::wire::message::{
    LABEL_SERVICE_PROXY_NAME, LoadBalancerIngress, ObjectMeta, Service, ServicePort, ServiceSpec,
};

/// `timeoutSeconds` of `ClientIP` affinity where API defaulting did not run (manifests).
const DEFAULT_AFFINITY: u32 = 10800;
/// Longest `timeoutSeconds` the API admits.
const LONGEST_AFFINITY: u32 = 86400;

impl ToModel for Service {
    const KIND: Kind = Kind::Service;

    fn metadata(&self) -> Option<&ObjectMeta> {
        self.metadata.as_ref()
    }

    fn to_model(&self, name: ObjectName, convert: &mut Conversion<'_>) -> Option<Object> {
        let metadata = self.metadata.as_ref()?;
        // Another proxy's (B-074). The API server's selector does the same for watches.
        if metadata.label(LABEL_SERVICE_PROXY_NAME).is_some() {
            return None;
        }
        let empty = ServiceSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&empty);
        let kind = service_type(spec, convert);
        let balancer = self.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = balancer.map_or(&[][..], |balancer| &balancer.ingress);
        Some(Object::Service(Arc::new(model::Service {
            created: metadata.creation_timestamp.and_then(|time| time.seconds).unwrap_or(0),
            kind,
            cluster_ips: cluster_ips(spec, convert),
            ports: ports(spec, convert),
            external_ips: external_ips(spec, convert),
            load_balancer_ips: load_balancer_ips(ingress, convert),
            source_ranges: source_ranges(spec, convert),
            session_affinity: affinity(spec, convert),
            internal_policy: policy(
                "spec.internalTrafficPolicy",
                spec.internal_traffic_policy.as_deref(),
                convert,
            ),
            external_policy: policy(
                "spec.externalTrafficPolicy",
                spec.external_traffic_policy.as_deref(),
                convert,
            ),
            health_check_node_port: health_check(spec, kind, convert),
            name,
        })))
    }
}

fn service_type(spec: &ServiceSpec, convert: &mut Conversion<'_>) -> ServiceType {
    match spec.r#type.as_deref() {
        None | Some("" | "ClusterIP") => ServiceType::ClusterIp,
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        Some(other) => {
            convert.wrong("spec.type", format!("unknown type {other:?}, ClusterIP is assumed"));
            ServiceType::ClusterIp
        }
    }
}

fn policy(field: &str, text: Option<&str>, convert: &mut Conversion<'_>) -> TrafficPolicy {
    match text {
        Some("Local") => TrafficPolicy::Local,
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some(other) => {
            convert.wrong(field, format!("unknown policy {other:?}, Cluster is assumed"));
            TrafficPolicy::Cluster
        }
    }
}

/// At most one address per family. Without `ipFamilies` (old objects) it is `clusterIP` alone (B-079).
fn cluster_ips(spec: &ServiceSpec, convert: &mut Conversion<'_>) -> Vec<IpAddr> {
    let headless = |text: &str| text.is_empty() || text == "None";
    let single = spec.cluster_ip.as_deref().unwrap_or_default();
    if headless(single) {
        return Vec::new();
    }
    if spec.ip_families.is_empty() {
        return convert.address("spec.clusterIP", single).into_iter().collect();
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    let listed = spec.ip_families.iter().zip(&spec.cluster_ips).enumerate();
    for (at, (family, text)) in listed.filter(|(_, (_, text))| !headless(text)) {
        let field = format!("spec.clusterIPs[{at}]");
        let Some(address) = convert.address(&field, text) else { continue };
        let wanted = if family == "IPv6" { Family::V6 } else { Family::V4 };
        if Family::of(&address) != wanted {
            convert.wrong(field, format!("{text} is not of family {family}"));
        } else if addresses.iter().any(|known| Family::of(known) == wanted) {
            convert.wrong(field, format!("a second address of family {family}"));
        } else {
            addresses.push(address);
        }
    }
    addresses
}

fn ports(spec: &ServiceSpec, convert: &mut Conversion<'_>) -> Vec<model::ServicePort> {
    let mut ports = Vec::with_capacity(spec.ports.len());
    for (at, port) in spec.ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{at}].{name}");
        match service_port(port, convert) {
            Ok(port) => ports.push(port),
            Err((name, reason)) => convert.wrong(field(name), reason),
        }
    }
    ports
}

fn service_port(
    port: &ServicePort,
    convert: &mut Conversion<'_>,
) -> Result<model::ServicePort, (&'static str, String)> {
    let name = port.name.as_deref().unwrap_or_default();
    if !name.is_empty() && !is_label(name) {
        return Err(("name", format!("{name:?} is no DNS label")));
    }
    let protocol = match port.protocol.as_deref() {
        None | Some("") => Protocol::Tcp,
        Some(text) => Protocol::from_api(text)
            .ok_or_else(|| ("protocol", format!("unknown protocol {text:?}")))?,
    };
    let number = port.port.unwrap_or(0);
    let out_of_range = |number: i32| format!("{number} is not in 1 to 65535");
    let number = u16::try_from(number)
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| ("port", out_of_range(number)))?;
    let node_port = match port.node_port.unwrap_or(0) {
        0 => None,
        number => Some(u16::try_from(number).map_err(|_| ("nodePort", out_of_range(number)))?),
    };
    Ok(model::ServicePort {
        name: convert.interner.intern(name),
        protocol,
        port: number,
        node_port,
    })
}

/// Blank entries are skipped silently, others loudly (B-086).
fn external_ips(spec: &ServiceSpec, convert: &mut Conversion<'_>) -> Vec<IpAddr> {
    if !convert.allow_external_ips {
        return Vec::new();
    }
    let mut addresses = Vec::new();
    let listed = spec.external_ips.iter().enumerate();
    for (at, text) in listed.filter(|(_, text)| !text.trim().is_empty()) {
        push(&mut addresses, convert.address(&format!("spec.externalIPs[{at}]"), text));
    }
    addresses
}

/// Only addresses that the proxy is to handle: `ipMode: Proxy` and host names are not (B-083, B-084).
fn load_balancer_ips(ingress: &[LoadBalancerIngress], convert: &mut Conversion<'_>) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (at, entry) in ingress.iter().enumerate() {
        let vip = matches!(entry.ip_mode.as_deref(), None | Some("" | "VIP"));
        let text = entry.ip.as_deref().unwrap_or_default();
        if vip && !text.is_empty() {
            let field = format!("status.loadBalancer.ingress[{at}].ip");
            push(&mut addresses, convert.address(&field, text));
        }
    }
    addresses
}

fn push(addresses: &mut Vec<IpAddr>, address: Option<IpAddr>) {
    addresses.extend(address.filter(|address| !addresses.contains(address)).into_iter());
}

fn source_ranges(spec: &ServiceSpec, convert: &mut Conversion<'_>) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for (at, text) in spec.load_balancer_source_ranges.iter().enumerate() {
        let trimmed = text.trim();
        match parse_cidr(trimmed) {
            Some(net) => ranges.push(net.trunc()),
            None if trimmed.is_empty() => {}
            None => convert.wrong(
                format!("spec.loadBalancerSourceRanges[{at}]"),
                format!("{trimmed:?} is no CIDR"),
            ),
        }
    }
    ranges
}

fn affinity(spec: &ServiceSpec, convert: &mut Conversion<'_>) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let configured = spec.session_affinity_config.and_then(|config| config.client_ip);
    let seconds = configured.and_then(|client| client.timeout_seconds);
    let Some(seconds) = seconds else { return Some(DEFAULT_AFFINITY) };
    let valid = u32::try_from(seconds).ok().filter(|s| (1..=LONGEST_AFFINITY).contains(s));
    if valid.is_none() {
        convert.wrong(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            format!("{seconds} is not in 1 to {LONGEST_AFFINITY}, {DEFAULT_AFFINITY} is assumed"),
        );
    }
    Some(valid.unwrap_or(DEFAULT_AFFINITY))
}

fn health_check(
    spec: &ServiceSpec,
    kind: ServiceType,
    convert: &mut Conversion<'_>,
) -> Option<u16> {
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    if kind != ServiceType::LoadBalancer || !local {
        return None;
    }
    let number = spec.health_check_node_port.unwrap_or(0);
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    if port.is_none() {
        convert.wrong("spec.healthCheckNodePort", format!("{number} is no port"));
    }
    port
}
