//! Which UDP flows are stale: translated to an endpoint that no longer serves (section 7.7).
//!
//! A UDP "connection" never ends by itself while its client keeps sending, so that the kernel keeps
//! sending it where it was first sent. Place in the flow: after a sync of services whose slices have,
//! or had, a UDP port (B-226), the shell builds a [`Reconciliation`] of the services and lets
//! [`crate::netlink`] delete the flows it calls stale. Pure; it must not know rules or how an endpoint
//! is chosen.
//!
//! What is stale:
//! - a flow to a frontend that exists and is answered by none of its serving endpoints (B-218, B-219,
//!   B-225), also if there are none (B-222, as 1.37 has it); that includes flows from the time when
//!   the frontend had none (B-221);
//! - a flow to a frontend that is gone since the last reconciliation, answered by one of its
//!   endpoints of then. Upstream keeps these (issue: "services gone"). The endpoint proves that our
//!   rules translated it, so that flows to ports that never were a service's are kept (B-224).
//!
//! What is not: flows of other protocols (B-223), and flows to a NodePort's number at addresses that
//! are not this node's.

mod entry;
mod pressure;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use smallvec::SmallVec;

pub use entry::{Change, Counts, Entry, Within};
pub use pressure::{Finding, Pressure, Statistics};

use crate::model::{EndpointSlice, Family, Protocol, Service, SlicePort};

/// One UDP service port in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpPort {
    /// The family of all its addresses.
    pub family: Family,
    /// ClusterIP, load balancer VIPs and external IPs.
    pub addresses: Vec<IpAddr>,
    /// The port on these addresses.
    pub port: u16,
    /// The port on the node's addresses.
    pub node_port: Option<u16>,
    /// Every serving endpoint: ready or not, terminating or not, local or not, hints ignored (B-220).
    pub endpoints: HashSet<SocketAddr>,
}

impl UdpPort {
    /// The UDP ports of a service in a family, from its slices; none if it has no ClusterIP there. An
    /// endpoint that one slice calls serving is serving.
    pub fn of_service(
        service: &Service,
        slices: &[&EndpointSlice],
        family: Family,
    ) -> Vec<UdpPort> {
        // Asked for every Service that is synced; few have one.
        let mut udp = service.ports.iter().filter(|port| port.protocol == Protocol::Udp).peekable();
        if udp.peek().is_none() {
            return Vec::new();
        }
        let Some(cluster_ip) = service.cluster_ip(family) else { return Vec::new() };
        let external = service.load_balancer_ips.iter().chain(&service.external_ips).copied();
        let addresses: Vec<IpAddr> = std::iter::once(cluster_ip)
            .chain(external.filter(|ip| Family::of(ip) == family))
            .collect();
        udp.map(|port| UdpPort {
            family,
            addresses: addresses.clone(),
            port: port.port,
            node_port: port.node_port,
            endpoints: serving(slices, family, &port.name),
        })
        .collect()
    }
}

fn serving(slices: &[&EndpointSlice], family: Family, port_name: &str) -> HashSet<SocketAddr> {
    let mut endpoints = HashSet::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        let named = |port: &&SlicePort| port.protocol == Protocol::Udp && *port.name == *port_name;
        for port in slice.ports.iter().filter(named) {
            let serving = slice.endpoints.iter().filter(|endpoint| endpoint.serving);
            endpoints.extend(serving.map(|e| SocketAddr::new(e.address, port.port)));
        }
    }
    endpoints
}

/// One direction of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Sender.
    pub source: SocketAddr,
    /// Receiver.
    pub destination: SocketAddr,
}

/// A UDP flow as the kernel tracks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    /// As the client sent it, before translation.
    pub original: Tuple,
    /// As answers are expected, before they are translated back: the source is the endpoint.
    pub reply: Tuple,
    /// Conntrack zone, if it is not the default one.
    pub zone: Option<u16>,
    /// The kernel's number of this very entry.
    pub id: Option<u32>,
}

/// The ports that claim a destination; more than one if services contest it.
type Claims<'a> = SmallVec<[&'a UdpPort; 1]>;

/// UDP ports by destination.
#[derive(Debug, Default)]
struct Destinations<'a> {
    frontends: HashMap<SocketAddr, Claims<'a>>,
    node_ports: HashMap<(Family, u16), Claims<'a>>,
}

impl<'a> Destinations<'a> {
    fn new(ports: &'a [UdpPort]) -> Self {
        let mut destinations = Destinations::default();
        for port in ports {
            for address in &port.addresses {
                let frontend = SocketAddr::new(*address, port.port);
                destinations.frontends.entry(frontend).or_default().push(port);
            }
            if let Some(number) = port.node_port {
                destinations.node_ports.entry((port.family, number)).or_default().push(port);
            }
        }
        destinations
    }

    /// Frontends come first, as in the rules.
    fn claims(&self, destination: SocketAddr, node_ports: bool) -> &[&'a UdpPort] {
        let by_number = || {
            let key = (Family::of(&destination.ip()), destination.port());
            self.node_ports.get(&key).filter(|_| node_ports)
        };
        self.frontends.get(&destination).or_else(by_number).map_or(&[], SmallVec::as_slice)
    }
}

/// Decides about flows; a constant number of hash lookups each.
#[derive(Debug)]
pub struct Reconciliation<'a> {
    current: Destinations<'a>,
    previous: Destinations<'a>,
    node_port_addresses: &'a HashSet<IpAddr>,
}

impl<'a> Reconciliation<'a> {
    /// Of the UDP ports of all services now and at the last reconciliation (none at the first one).
    ///
    /// `node_port_addresses` are the local addresses on which NodePorts are served; loopback ones
    /// among them do not count (B-154).
    pub fn new(
        current: &'a [UdpPort],
        previous: &'a [UdpPort],
        node_port_addresses: &'a HashSet<IpAddr>,
    ) -> Self {
        let (current, previous) = (Destinations::new(current), Destinations::new(previous));
        Reconciliation { current, previous, node_port_addresses }
    }

    /// Whether the flow is to be deleted.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        let (destination, answering) = (flow.original.destination, flow.reply.source);
        let ip = destination.ip();
        let node_ports = self.node_port_addresses.contains(&ip) && !ip.is_loopback();
        let answered_by =
            |claims: &[&UdpPort]| claims.iter().any(|p| p.endpoints.contains(&answering));
        let claims = self.current.claims(destination, node_ports);
        if claims.is_empty() {
            let then = self.previous.claims(destination, node_ports);
            return answering != destination && answered_by(then);
        }
        !answered_by(claims)
    }
}

#[cfg(test)]
mod tests;
