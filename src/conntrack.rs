//! Which flows are stale: translated to an endpoint that no longer serves, or older than what they
//! dialled (section 7.7).
//!
//! A UDP "connection" never ends by itself while its client keeps sending, so that the kernel keeps
//! sending it where it was first sent; so does a TCP connection whose client repeats its first packet.
//! Place in the flow: after a sync of services the shell builds a [`Reconciliation`] of them and lets
//! [`crate::netlink`] delete the flows it calls stale. Pure; it must not know rules or how an endpoint
//! is chosen.
//!
//! What is stale:
//! - a flow to a frontend that exists and is answered by none of its serving endpoints (B-218, B-219,
//!   B-225), also if there are none (B-222, as 1.37 has it); that includes flows from before the
//!   frontend was there, or had endpoints (B-221);
//! - a flow to a frontend that is gone since the last reconciliation, if it was translated, to whatever
//!   endpoint: it may have changed in between. Upstream keeps these (issue: "services gone"). Flows to
//!   ports that never were a service's are kept (B-224).
//!
//! Of TCP only what nobody has answered yet: no connection can be lost by that (kubernetes#101607).
//!
//! What is not: established flows of other protocols (B-223), and flows to a NodePort's number at
//! addresses that are not this node's. Traffic policy, source ranges and affinity decide where
//! new flows go and end none: an endpoint that serves keeps its flows (B-163, B-220).

mod endings;
mod pressure;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::model::{EndpointSlice, Family, Protocol, Service, ServicePort, SlicePort};

pub use endings::{Drained, Ending, Endings, List};
pub use pressure::{Finding, Pressure, Statistics};

/// One service port in one family, as flows see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedPort {
    /// The family of all its addresses.
    pub family: Family,
    pub protocol: Protocol,
    /// ClusterIP, load balancer VIPs and external IPs.
    pub addresses: Vec<IpAddr>,
    /// The port on these addresses.
    pub port: u16,
    /// The port on the node's addresses.
    pub node_port: Option<u16>,
    /// Every serving endpoint: ready or not, terminating or not, local or not, hints ignored (B-220).
    pub endpoints: HashSet<SocketAddr>,
}

/// What a client dials: an address, or the node's if there is none, and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontend {
    /// Not for NodePorts.
    pub address: Option<IpAddr>,
    pub protocol: Protocol,
    pub port: u16,
}

/// A service in force.
#[derive(Debug, Clone)]
pub struct Served {
    pub service: Arc<Service>,
    /// Its slices of all families.
    pub slices: SmallVec<[Arc<EndpointSlice>; 1]>,
    /// Its frontends that another service has.
    pub lost: Vec<Frontend>,
}

impl Served {
    /// What is to be drained of it in a family, if that is wanted.
    pub fn drained(&self, family: Family, of_node: Option<Duration>) -> Option<Drained> {
        let after = self.service.end_connections.after(of_node)?;
        let ports = self.ports(family, Protocol::Tcp);
        let nodes: HashMap<IpAddr, &Option<Arc<str>>> = self
            .slices
            .iter()
            .flat_map(|slice| &slice.endpoints)
            .map(|endpoint| (endpoint.address, &endpoint.node))
            .collect();
        let node = |endpoint: &SocketAddr| nodes.get(&endpoint.ip()).copied().cloned().flatten();
        let list = |port: &ServedPort| port.endpoints.iter().map(|e| (*e, node(e))).collect();
        let lists = ports.iter().map(|port| (port.port, list(port))).collect();
        Some(Drained { after, lists, ports })
    }

    /// The ports of a protocol in a family; none if the service has no ClusterIP there. An endpoint
    /// that one slice calls serving is serving.
    pub fn ports(&self, family: Family, protocol: Protocol) -> Vec<ServedPort> {
        let service = &self.service;
        // Asked for every Service that is synced; few have a UDP port.
        let mut ports = service.ports.iter().filter(|port| port.protocol == protocol).peekable();
        if ports.peek().is_none() {
            return Vec::new();
        }
        let Some(cluster_ip) = service.cluster_ip(family) else { return Vec::new() };
        let external = service.load_balancer_ips.iter().chain(&service.external_ips).copied();
        let addresses: Vec<IpAddr> = std::iter::once(cluster_ip)
            .chain(external.filter(|ip| Family::of(ip) == family))
            .collect();
        let has = |address, port| !self.lost.contains(&Frontend { address, protocol, port });
        let served = |port: &ServicePort| ServedPort {
            family,
            protocol,
            addresses: addresses.iter().filter(|ip| has(Some(**ip), port.port)).copied().collect(),
            port: port.port,
            node_port: port.node_port.filter(|number| has(None, *number)),
            endpoints: serving(&self.slices, family, port),
        };
        ports.map(served).collect()
    }
}

impl ServedPort {
    /// Whether this is a connection to this port that an endpoint answers.
    pub fn leads(
        &self,
        entry: &Entry,
        endpoint: SocketAddr,
        node_port_addresses: &HashSet<IpAddr>,
    ) -> bool {
        let to = entry.original.destination;
        let dialled = to.port() == self.port && self.addresses.contains(&to.ip())
            || Some(to.port()) == self.node_port && node_port_addresses.contains(&to.ip());
        entry.is_connection() && entry.reply.source == endpoint && dialled
    }
}

fn serving(
    slices: &[Arc<EndpointSlice>],
    family: Family,
    served: &ServicePort,
) -> HashSet<SocketAddr> {
    let mut endpoints = HashSet::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
        let named =
            |port: &&SlicePort| port.protocol == served.protocol && port.name == served.name;
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
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// A flow as the kernel tracks it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    pub protocol: Protocol,
    /// An answer was seen.
    pub replied: bool,
    /// As the client sent it, before translation.
    pub original: Tuple,
    /// As answers are expected, before they are translated back: the source is the endpoint.
    pub reply: Tuple,
    /// Conntrack zone, if it is not the default one.
    pub zone: Option<u16>,
    /// The kernel's number of this very entry.
    pub id: Option<u32>,
}

impl Flow {
    /// What becomes of a flow that nothing translated, if it is deleted while an answer is on its way:
    /// the answer begins a flow of its own, by which the client's packets pass every rule again.
    pub fn echo(&self) -> Flow {
        Flow { original: self.reply, reply: self.original, replied: false, id: None, ..*self }
    }
}

/// The ports that claim a destination; more than one if services contest it.
type Claims<'a> = SmallVec<[&'a ServedPort; 1]>;

/// Service ports by destination.
#[derive(Debug, Default)]
struct Destinations<'a> {
    frontends: HashMap<(Protocol, SocketAddr), Claims<'a>>,
    node_ports: HashMap<(Protocol, Family, u16), Claims<'a>>,
}

impl<'a> Destinations<'a> {
    fn new(ports: &'a [ServedPort]) -> Self {
        let mut destinations = Destinations::default();
        for port in ports {
            for address in &port.addresses {
                let frontend = (port.protocol, SocketAddr::new(*address, port.port));
                destinations.frontends.entry(frontend).or_default().push(port);
            }
            if let Some(number) = port.node_port {
                let key = (port.protocol, port.family, number);
                destinations.node_ports.entry(key).or_default().push(port);
            }
        }
        destinations
    }

    /// Frontends come first, as in the rules.
    fn claims(&self, flow: &Flow, node_ports: bool) -> &[&'a ServedPort] {
        let (protocol, destination) = (flow.protocol, flow.original.destination);
        let by_number = || {
            let key = (protocol, Family::of(&destination.ip()), destination.port());
            self.node_ports.get(&key).filter(|_| node_ports)
        };
        let frontend = self.frontends.get(&(protocol, destination));
        frontend.or_else(by_number).map_or(&[], SmallVec::as_slice)
    }

    fn protocols(&self) -> impl Iterator<Item = Protocol> {
        let frontends = self.frontends.keys().map(|(protocol, _)| *protocol);
        frontends.chain(self.node_ports.keys().map(|(protocol, ..)| *protocol))
    }
}

/// Which flows a reconciliation has to see: what a kernel is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    pub protocol: Protocol,
    /// Only those that nobody has answered.
    pub unreplied: bool,
    /// Only those that dialled this address.
    pub destination: Option<IpAddr>,
}

impl Scope {
    /// Every flow of a protocol.
    pub fn of(protocol: Protocol) -> Self {
        Scope { protocol, unreplied: false, destination: None }
    }

    /// Whether a flow is within it. Kernels that do not know a filter deliver more.
    pub fn contains(&self, flow: &Flow) -> bool {
        let dialled = flow.original.destination.ip();
        flow.protocol == self.protocol
            && !(self.unreplied && flow.replied)
            && self.destination.is_none_or(|ip| ip == dialled)
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
    /// Of the ports of all services now and at the last reconciliation (none at the first one).
    ///
    /// `node_port_addresses` are the local addresses on which NodePorts are served; loopback ones
    /// among them do not count (B-154).
    pub fn new(
        current: &'a [ServedPort],
        previous: &'a [ServedPort],
        node_port_addresses: &'a HashSet<IpAddr>,
    ) -> Self {
        let (current, previous) = (Destinations::new(current), Destinations::new(previous));
        Reconciliation { current, previous, node_port_addresses }
    }

    /// The flows among which there may be stale ones; a protocol at most once.
    pub fn scopes(&self) -> Vec<Scope> {
        let all = [&self.current, &self.previous];
        let protocols: BTreeSet<Protocol> = all.iter().flat_map(|d| d.protocols()).collect();
        let node_ports = all.iter().any(|ports| !ports.node_ports.is_empty());
        let mut addresses = all.iter().flat_map(|d| d.frontends.keys().map(|(_, to)| to.ip()));
        let first = addresses.next();
        let destination = first.filter(|ip| !node_ports && addresses.all(|other| other == *ip));
        let scope = |protocol| Scope {
            unreplied: protocol != Protocol::Udp,
            destination,
            ..Scope::of(protocol)
        };
        protocols.into_iter().map(scope).collect()
    }

    /// Whether the flow is to be deleted.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        if flow.protocol != Protocol::Udp && flow.replied {
            return false;
        }
        let (destination, answering) = (flow.original.destination, flow.reply.source);
        let ip = destination.ip();
        let node_ports = self.node_port_addresses.contains(&ip) && !ip.is_loopback();
        let answered_by =
            |claims: &[&ServedPort]| claims.iter().any(|p| p.endpoints.contains(&answering));
        let claims = self.current.claims(flow, node_ports);
        if claims.is_empty() {
            let then = self.previous.claims(flow, node_ports);
            return answering != destination && !then.is_empty();
        }
        !answered_by(claims)
    }
}

#[cfg(test)]
mod tests;

// An entry of the conntrack table, as people look at it.

/// What the kernel knows of a flow.
///
/// What it tells only by configuration, or only in some messages, may be missing: a notification of a
/// change has neither times nor counts, nor the state of TCP unless that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// TCP, UDP or SCTP; others have no Service.
    pub protocol: Protocol,
    /// As the client sent it, before translation.
    pub original: Tuple,
    /// As answers are expected, before they are translated back: the source is the endpoint.
    pub reply: Tuple,
    /// Conntrack zone, if it is not the default one.
    pub zone: Option<u16>,
    /// A packet came back.
    pub replied: bool,
    /// Not pushed out of a full table.
    pub assured: bool,
    /// The state of a TCP connection, in the words of `conntrack -L`.
    pub tcp: Option<&'static str>,
    /// When it began, nanoseconds since 1970; with `nf_conntrack_timestamp`.
    pub started: Option<u64>,
    /// With `nf_conntrack_acct`.
    pub counts: Option<Counts>,
    /// The kernel's number of this very entry.
    pub id: Option<u32>,
}

impl Entry {
    /// Whether it is a TCP connection that somebody may still use.
    pub fn is_connection(&self) -> bool {
        self.protocol == Protocol::Tcp
            && self.replied
            && !matches!(self.tcp, Some("TIME_WAIT" | "CLOSE"))
    }

    /// What names it to the kernel.
    pub fn flow(&self) -> Flow {
        let Entry { protocol, replied, original, reply, zone, id, .. } = *self;
        Flow { protocol, replied, original, reply, zone, id }
    }
}

/// What passed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets, from the client and back.
    pub packets: [u64; 2],
    /// Bytes, from the client and back, headers included.
    pub bytes: [u64; 2],
}

/// Which entries are asked for, by one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// All of a family.
    All,
    /// This client's.
    From(IpAddr),
    /// Those that were sent to this address.
    To(IpAddr),
    /// Those that this endpoint answers.
    AnsweredBy(IpAddr),
}

impl Within {
    /// Whether an entry is among them.
    pub fn contains(self, entry: &Entry) -> bool {
        match self {
            Within::All => true,
            Within::From(ip) => entry.original.source.ip() == ip,
            Within::To(ip) => entry.original.destination.ip() == ip,
            Within::AnsweredBy(ip) => entry.reply.source.ip() == ip,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    New,
    /// Its state changed.
    Updated,
    /// It is gone.
    Ended,
}
