//! Health-check node ports: one small HTTP server per Service with `externalTrafficPolicy: Local`
//! (section 8.2).
//!
//! Place in the flow: after each successful sync the engine's shell says which Services have such a
//! port and how many local endpoints; cloud load balancers ask. Level-triggered: each call gives the
//! whole state. It must not know endpoints, only their number.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use super::Health;
use crate::http_server::{self, Limits, Places, Wildcard};
use crate::model::{Families, Family, ObjectName, PerFamily};

/// Bounds of all these listeners together: a node may have hundreds of them, and only so many
/// descriptors.
const LIMITS: Limits = Limits {
    connections: 256,
    head_bytes: 8 * 1024,
    head_time: Duration::from_secs(2),
    time: Duration::from_secs(10),
};

/// What a Service's health-check node port is to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceHealth {
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// Families in which the Service has a ClusterIP.
    pub families: Families,
    /// Distinct addresses of ready local endpoints, per family
    /// ([`crate::topology::local_ready_addresses`]): load balancers weigh by it, so a dual-stack pod
    /// must not count twice.
    pub local_endpoints: PerFamily<usize>,
}

/// Where health-check node ports listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddresses {
    /// NodePorts are on every address: the wildcard of each family.
    Any,
    /// NodePorts are on these addresses only, in any order; may be empty, and then nothing listens
    ///
    Only(Vec<IpAddr>),
}

/// A health-check node port that could not be opened, in one family.
///
/// Its text is the note of the `FailedToStartServiceHealthcheck` Event.
#[derive(Debug, thiserror::Error)]
#[error("node {node} failed to start healthcheck {service:?} on port {port}: {source}", service = .service.to_string())]
pub struct ListenFailure {
    pub node: Arc<str>,
    /// The Service the Event is about.
    pub service: ObjectName,
    /// The family none of whose addresses was opened.
    pub family: Family,
    /// `spec.healthCheckNodePort`.
    pub port: u16,
    /// The address that failed.
    pub address: IpAddr,
    // Event notes carry the cause in their text (section 8.2), unlike other errors here.
    source: io::Error,
}

/// The listeners of all Services. Dropping it closes them.
#[derive(Debug)]
pub struct ServiceHealthServers {
    node: Arc<str>,
    health: Option<Health>,
    places: Places,
    open: BTreeMap<(ObjectName, Family), Open>,
}

/// The listeners of one Service in one family.
#[derive(Debug)]
struct Open {
    port: u16,
    local_endpoints: Arc<AtomicUsize>,
    listeners: BTreeMap<IpAddr, Listening>,
    /// The warning about a list without a usable address was given.
    warned: bool,
}

/// A serving task that ends with its owner.
#[derive(Debug)]
struct Listening(JoinHandle<()>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Listening {
    /// Ends the task and waits until its socket is closed, so that the port is free.
    async fn close(mut self) {
        self.0.abort();
        // Cancelled is the outcome asked for; a panic was already printed.
        let _ = (&mut self.0).await;
    }
}

impl ServiceHealthServers {
    /// Nothing listens yet. Without `health` (the healthz server is disabled) the proxy counts as
    /// healthy.
    pub fn new(node: Arc<str>, health: Option<Health>) -> Self {
        let places = Places::new(LIMITS);
        ServiceHealthServers { node, health, places, open: BTreeMap::new() }
    }

    /// Opens, moves, closes and updates listeners until they are as wanted.
    ///
    /// What already listens and is still wanted is left alone. What is missing of one Service
    /// in one family is opened all or none; what fails is logged, returned, and tried again at the next
    /// call (B-247). A failure in one family leaves the other alone. Must be called inside a tokio
    /// runtime.
    pub async fn reconcile(
        &mut self,
        wanted: &BTreeMap<ObjectName, ServiceHealth>,
        addresses: &ListenAddresses,
    ) -> Vec<ListenFailure> {
        let addresses = PerFamily::from_fn(|family| addresses_of(addresses, family));
        // Ports are freed before any is taken: one Service may get the port of another.
        self.close_unwanted(wanted, &addresses).await;
        let mut failures = Vec::new();
        for (service, health) in wanted {
            for family in health.families.iter() {
                if let Err(failure) = self.ensure(service, health, family, &addresses[family]) {
                    error!(service = %service, %family, reason = %failure, "Failed to start healthcheck");
                    failures.push(failure);
                }
            }
        }
        failures
    }

    /// Closes what is not wanted at all, not on that port, or not on that address.
    async fn close_unwanted(
        &mut self,
        wanted: &BTreeMap<ObjectName, ServiceHealth>,
        addresses: &PerFamily<BTreeSet<IpAddr>>,
    ) {
        let mut closing = Vec::new();
        for (key, open) in std::mem::take(&mut self.open) {
            let health = wanted.get(&key.0);
            if health.is_some_and(|h| h.port == open.port && h.families.contains(key.1)) {
                self.open.insert(key, open);
            } else {
                closing.extend(open.listeners.into_values());
            }
        }
        for ((_, family), open) in &mut self.open {
            for (ip, listening) in std::mem::take(&mut open.listeners) {
                if addresses[*family].contains(&ip) {
                    open.listeners.insert(ip, listening);
                } else {
                    closing.push(listening);
                }
            }
        }
        for listening in closing {
            listening.close().await;
        }
    }

    /// Opens what is missing of one Service in one family, and sets its count.
    fn ensure(
        &mut self,
        service: &ObjectName,
        health: &ServiceHealth,
        family: Family,
        addresses: &BTreeSet<IpAddr>,
    ) -> Result<(), ListenFailure> {
        let open = self.open.entry((service.clone(), family)).or_insert_with(|| Open {
            port: health.port,
            local_endpoints: Arc::default(),
            listeners: BTreeMap::new(),
            warned: false,
        });
        open.local_endpoints.store(health.local_endpoints[family], Ordering::Relaxed);
        if addresses.is_empty() && !open.warned {
            warn!(service = %service, %family, "No node address for the health check node port");
        }
        open.warned = addresses.is_empty();
        let missing = addresses.iter().filter(|ip| !open.listeners.contains_key(ip));
        let sockets = listen_on_all(missing, health.port).map_err(|(address, source)| {
            let (node, service) = (Arc::clone(&self.node), service.clone());
            ListenFailure { node, service, family, port: health.port, address, source }
        })?;
        for (address, socket) in sockets {
            let count = Arc::clone(&open.local_endpoints);
            let router = router(service.clone(), count, self.health.clone());
            let places = self.places.clone();
            let serving = async move { match http_server::serve(socket, router, places).await {} };
            open.listeners.insert(address, Listening(tokio::spawn(serving)));
        }
        Ok(())
    }
}

fn addresses_of(addresses: &ListenAddresses, family: Family) -> BTreeSet<IpAddr> {
    match (addresses, family) {
        (ListenAddresses::Any, Family::V4) => BTreeSet::from([Ipv4Addr::UNSPECIFIED.into()]),
        (ListenAddresses::Any, Family::V6) => BTreeSet::from([Ipv6Addr::UNSPECIFIED.into()]),
        (ListenAddresses::Only(list), _) => {
            list.iter().copied().filter(|ip| Family::of(ip) == family).collect()
        }
    }
}

/// One socket per address, or none and the first failure.
fn listen_on_all<'a>(
    addresses: impl Iterator<Item = &'a IpAddr>,
    port: u16,
) -> Result<Vec<(IpAddr, TcpListener)>, (IpAddr, io::Error)> {
    let open =
        |&ip: &IpAddr| match http_server::listen(SocketAddr::new(ip, port), Wildcard::OneFamily) {
            Ok(listener) => Ok((ip, listener)),
            Err(reason) => Err((ip, reason)),
        };
    addresses.map(open).collect()
}

/// Read by Google's load balancers as the node's share of the traffic.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    service: ServiceName<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct ServiceName<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// Answers any path and method (B-242). Without `health` the proxy counts as healthy.
fn router(
    service: ObjectName,
    local_endpoints: Arc<AtomicUsize>,
    health: Option<Health>,
) -> Router {
    Router::new().fallback(move || async move {
        let proxy_healthy = health.is_none_or(|h| h.status().healthy);
        answer(&service, local_endpoints.load(Ordering::Relaxed), proxy_healthy)
    })
}

fn answer(service: &ObjectName, local_endpoints: usize, proxy_healthy: bool) -> Response {
    let ok = local_endpoints > 0 && proxy_healthy;
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (WEIGHT, local_endpoints.to_string()),
    ];
    (status, headers, body(service, local_endpoints, proxy_healthy)).into_response()
}

/// A JSON object over several lines, indented with tabs, without a last newline (section 8.2).
fn body(service: &ObjectName, local_endpoints: usize, service_proxy_healthy: bool) -> Vec<u8> {
    let service = ServiceName { namespace: &service.namespace, name: &service.name };
    let body = Body { service, local_endpoints, service_proxy_healthy };
    let mut text = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t"));
    body.serialize(&mut serializer).expect("a struct of numbers and strings serialises");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    // B-245: the fields of 8.2, in that order and layout.
    #[test]
    fn body_is_tab_indented() {
        let name = ObjectName::new("ns", "svc");
        let expected = "{\n\t\"service\": {\n\t\t\"namespace\": \"ns\",\n\t\t\"name\": \"svc\"\n\t},\n\t\
                        \"localEndpoints\": 3,\n\t\"serviceProxyHealthy\": true\n}";
        assert_eq!(String::from_utf8(body(&name, 3, true)).unwrap(), expected);
    }

    // B-242: only local ready endpoints of a healthy proxy make 200; the weight is the count.
    #[test]
    fn status_needs_endpoints_and_a_healthy_proxy() {
        let cases =
            [(2, true, 200, "2"), (0, true, 503, "0"), (2, false, 503, "2"), (0, false, 503, "0")];
        for (count, healthy, status, weight) in cases {
            let answer = answer(&ObjectName::new("ns", "svc"), count, healthy);
            assert_eq!(answer.status().as_u16(), status, "{count} {healthy}");
            assert_eq!(answer.headers()[WEIGHT], weight, "{count} {healthy}");
        }
    }
}
