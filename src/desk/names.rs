//! What people call things: Pods and Services by name, looked up with the person's own rights.

use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use kube::Api;

use super::Room;
use super::cluster::within;
use super::error::DeskError;
use crate::api::addresses_of_pod;
use crate::model::address::{parse_destination, parse_ip, split_protocol};
use crate::model::{Family, ObjectName, Protocol};

/// Where a connection begins: the addresses that it may have.
pub async fn source(
    room: &Room<'_>,
    namespace: Option<&str>,
    text: &str,
) -> Result<Vec<IpAddr>, DeskError> {
    if let Some(address) = parse_ip(text) {
        return Ok(vec![address]);
    }
    let name = named(room, namespace, text)?;
    let api: Api<Pod> = Api::namespaced(room.asker.client.clone(), &name.namespace);
    let pod =
        within(room.asker.patience, &format!("looking up pod {name}"), api.get(&name.name)).await?;
    match addresses_of_pod(&pod) {
        none if none.is_empty() => Err(unclear(text, "the pod has no address yet")),
        addresses => Ok(addresses),
    }
}

/// Where it goes: the addresses of a Service's port, or the one that was written.
pub async fn destination(
    room: &Room<'_>,
    namespace: Option<&str>,
    text: &str,
) -> Result<(Vec<SocketAddr>, Protocol), DeskError> {
    if let Some((address, protocol)) = parse_destination(text) {
        return Ok((vec![address], protocol));
    }
    let (rest, protocol) = split_protocol(text);
    let (service, port) = match rest.rsplit_once(':') {
        Some((service, port)) => (service, Some(port)),
        None => (rest, None),
    };
    let name = named(room, namespace, service)?;
    let api: Api<Service> = Api::namespaced(room.asker.client.clone(), &name.namespace);
    let what = format!("looking up Service {name}");
    let service = within(room.asker.patience, &what, api.get(&name.name)).await?;
    frontends(&service, port, protocol).map_err(|reason| unclear(text, &reason))
}

/// `name` or `namespace/name`.
fn named(room: &Room<'_>, namespace: Option<&str>, text: &str) -> Result<ObjectName, DeskError> {
    let own = namespace.unwrap_or(room.asker.client.default_namespace());
    ObjectName::parse(text, Some(own)).ok_or_else(|| unclear(text, "neither an address nor a name"))
}

fn unclear(text: &str, reason: &str) -> DeskError {
    DeskError::Unclear { text: text.to_owned(), reason: reason.to_owned() }
}

fn frontends(
    service: &Service,
    port: Option<&str>,
    protocol: Option<Protocol>,
) -> Result<(Vec<SocketAddr>, Protocol), String> {
    let spec = service.spec.as_ref().ok_or("the Service has no spec")?;
    let single: Vec<String> = spec.cluster_ip.iter().cloned().collect();
    let ips = spec.cluster_ips.as_ref().unwrap_or(&single);
    let ips: Vec<IpAddr> = ips.iter().filter_map(|ip| parse_ip(ip)).collect();
    if ips.is_empty() {
        return Err("the Service has no ClusterIP: no proxy has to do with it".to_owned());
    }
    let ports = spec.ports.as_deref().unwrap_or_default();
    let of = |port: &ServicePort| {
        Protocol::from_api(port.protocol.as_deref().unwrap_or("TCP")).unwrap_or(Protocol::Tcp)
    };
    let fits = |candidate: &&ServicePort| {
        port.is_none_or(|port| {
            candidate.name.as_deref() == Some(port) || candidate.port.to_string() == port
        }) && protocol.is_none_or(|protocol| protocol == of(candidate))
    };
    let found: Vec<&ServicePort> = ports.iter().filter(fits).collect();
    let [found] = found[..] else {
        let shown = |port: &ServicePort| format!("{}/{}", port.port, of(port));
        let all = ports.iter().map(shown).collect::<Vec<_>>().join(", ");
        let what = if found.is_empty() { "no such port" } else { "several such ports" };
        return Err(format!("the Service has {what}; it has {all}"));
    };
    let number = u16::try_from(found.port).map_err(|_| "the port is not a port".to_owned())?;
    Ok((ips.into_iter().map(|ip| SocketAddr::new(ip, number)).collect(), of(found)))
}

/// The first pair of one family, in the Service's order.
pub fn pair(from: &[IpAddr], to: &[SocketAddr]) -> Option<(IpAddr, SocketAddr)> {
    to.iter().find_map(|to| {
        let same = |from: &&IpAddr| Family::of(from) == Family::of(&to.ip());
        from.iter().find(same).map(|from| (*from, *to))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_is_named_counted_or_the_only_one() {
        let service = |ports| -> Service {
            let spec = json!({ "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "ports": ports });
            serde_json::from_value(json!({ "spec": spec })).expect("a Service")
        };
        let dns = json!([{ "name": "dns", "port": 53, "protocol": "UDP" }, { "name": "dns-tcp", "port": 53 }]);
        let dns = service(dns);
        let told = |port, protocol| match frontends(&dns, port, protocol) {
            Ok((addresses, protocol)) => format!("{addresses:?} {protocol}"),
            Err(reason) => reason,
        };
        assert_eq!(told(Some("dns"), None), "[10.96.0.1:53, [fd00::1]:53] udp");
        assert_eq!(told(Some("53"), Some(Protocol::Tcp)), "[10.96.0.1:53, [fd00::1]:53] tcp");
        assert_eq!(told(None, None), "the Service has several such ports; it has 53/udp, 53/tcp");
        assert_eq!(told(Some("x"), None), "the Service has no such port; it has 53/udp, 53/tcp");
        let web = service(json!([{ "port": 80 }]));
        assert!(frontends(&web, None, None).is_ok_and(|(addresses, _)| addresses[0].port() == 80));
    }

    #[test]
    fn both_ends_are_of_one_family() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let to = ["10.96.0.1:80", "[fd00::1]:80"].map(|text| text.parse().expect("an address"));
        assert_eq!(pair(&[ip("fd00::9")], &to), Some((ip("fd00::9"), to[1])));
        assert_eq!(pair(&[ip("fd00::9"), ip("10.0.0.9")], &to), Some((ip("10.0.0.9"), to[0])));
        assert_eq!(pair(&[ip("fd00::9")], &to[..1]), None);
    }
}
