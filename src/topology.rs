//! Which endpoints this node may use for a service port.
//!
//! Place in the flow: pure, between the store's objects and [`crate::program`]. Knows nothing of
//! rules, addresses of frontends or the kernel.
//! Source: KEP-2086 (internal traffic policy), KEP-1669 (terminating endpoints), KEP-2433 and
//! KEP-3015 (zone and node hints); section 4.6 to 4.8 of the behaviour reference.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Endpoint, EndpointSlice, Family, Protocol};

/// What endpoint selection needs to know of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTopology {
    /// The node's name, compared exactly with `nodeName` and node hints (B-114).
    pub node: Arc<str>,
    /// The node's zone; `None` when unknown (B-118).
    pub zone: Option<Arc<str>>,
}

/// Address and port of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The endpoint's address.
    pub address: IpAddr,
    /// Its port, from the slice (B-139).
    pub port: u16,
}

/// An endpoint of one service port after merging all slices.
#[derive(Debug, Clone, Copy)]
pub struct Merged<'a> {
    /// Where it is.
    pub backend: Backend,
    /// Conditions and hints of the occurrence that counts.
    pub endpoint: &'a Endpoint,
}

/// The lists a service port needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// Some traffic goes to endpoints anywhere.
    pub cluster: bool,
    /// Some traffic goes to endpoints on this node only.
    pub local: bool,
}

/// Endpoints this node may use for one service port.
///
/// Shape: both lists sorted by (address, port), no duplicates; `local` need not be a subset of
/// `cluster` (hints and the terminating fallback apply to each on its own, B-113, B-123).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usable {
    /// For traffic under policy Cluster.
    pub cluster: Vec<Backend>,
    /// For traffic under policy Local.
    pub local: Vec<Backend>,
    /// Members of either list that run on this node: candidates for a hairpin.
    pub on_this_node: Vec<Backend>,
    /// Some node could serve, even when both lists are empty here.
    pub any: bool,
}

/// The endpoints of one service port over all slices of its service.
///
/// A slice port counts if name and protocol are the service port's (B-097). Of several occurrences
/// of one address and port the last that is not terminating counts, else the first (B-102).
/// Shape: sorted by backend, no duplicates.
pub fn merge<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    family: Family,
    name: &str,
    protocol: Protocol,
) -> Vec<Merged<'a>> {
    let mut all: Vec<Merged<'a>> = Vec::new();
    for slice in slices.filter(|slice| slice.family == family) {
        let ports = slice.ports.iter().filter(|p| *p.name == *name && p.protocol == protocol);
        for port in ports {
            all.extend(slice.endpoints.iter().map(|endpoint| Merged {
                backend: Backend { address: endpoint.address, port: port.port },
                endpoint,
            }));
        }
    }
    all.sort_by_key(|merged| merged.backend);
    all.dedup_by(|later, kept| {
        let same = later.backend == kept.backend;
        if same && !later.endpoint.terminating {
            kept.endpoint = later.endpoint;
        }
        same
    });
    all
}

/// Chooses the endpoints this node may use. `endpoints` is sorted and free of duplicates.
pub fn usable(endpoints: &[Merged<'_>], node_topology: &NodeTopology, needs: Needs) -> Usable {
    let ready = |m: &&Merged<'_>| m.endpoint.ready;
    let fallback = |m: &&Merged<'_>| m.endpoint.serving && m.endpoint.terminating;
    let local = |m: &&Merged<'_>| is_local(m.endpoint, node_topology);
    let backends = |chosen: &mut dyn Iterator<Item = &Merged<'_>>| -> Vec<Backend> {
        chosen.map(|m| m.backend).collect()
    };

    let mut usable = Usable::default();
    if needs.cluster {
        let topology = topology(endpoints, node_topology);
        let admitted = |m: &&Merged<'_>| topology.admits(m.endpoint, node_topology);
        usable.cluster = backends(&mut endpoints.iter().filter(ready).filter(admitted));
        if usable.cluster.is_empty() {
            usable.cluster = backends(&mut endpoints.iter().filter(fallback));
        }
        usable.any = !usable.cluster.is_empty();
    }
    if needs.local {
        usable.any |= endpoints.iter().any(|m| ready(&m) || fallback(&m));
        usable.local = backends(&mut endpoints.iter().filter(local).filter(ready));
        if usable.local.is_empty() {
            usable.local = backends(&mut endpoints.iter().filter(local).filter(fallback));
        }
    }
    let reachable = |b: &Backend| {
        usable.cluster.binary_search(b).is_ok() || usable.local.binary_search(b).is_ok()
    };
    usable.on_this_node =
        endpoints.iter().filter(local).map(|m| m.backend).filter(reachable).collect();
    usable
}

/// Number of distinct addresses of ready local endpoints over all ports of a service, as the
/// health-check node port reports it (B-243, B-244).
pub fn local_ready_addresses<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    node_topology: &NodeTopology,
) -> usize {
    slices
        .filter(|slice| !slice.ports.is_empty())
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| endpoint.ready && is_local(endpoint, node_topology))
        .map(|endpoint| endpoint.address)
        .collect::<BTreeSet<IpAddr>>()
        .len()
}

fn is_local(endpoint: &Endpoint, node_topology: &NodeTopology) -> bool {
    endpoint.node.as_deref() == Some(&*node_topology.node)
}

/// Which hints filter the cluster list (section 4.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Topology {
    Everywhere,
    SameZone,
    SameNode,
}

impl Topology {
    fn admits(self, endpoint: &Endpoint, node_topology: &NodeTopology) -> bool {
        match self {
            Topology::Everywhere => true,
            Topology::SameZone => hints_zone(endpoint, node_topology),
            Topology::SameNode => endpoint.node_hints().contains(&node_topology.node),
        }
    }
}

fn hints_zone(endpoint: &Endpoint, node_topology: &NodeTopology) -> bool {
    node_topology.zone.as_ref().is_some_and(|zone| endpoint.zone_hints().contains(zone))
}

fn topology(endpoints: &[Merged<'_>], node_topology: &NodeTopology) -> Topology {
    let mut ready = endpoints.iter().map(|m| m.endpoint).filter(|e| e.ready).peekable();
    if ready.peek().is_none() {
        return Topology::Everywhere;
    }
    let (mut all_node, mut here, mut all_zone, mut in_zone) = (true, false, true, false);
    for endpoint in ready {
        all_node &= !endpoint.node_hints().is_empty();
        here |= endpoint.node_hints().contains(&node_topology.node);
        all_zone &= !endpoint.zone_hints().is_empty();
        in_zone |= hints_zone(endpoint, node_topology);
    }
    match (all_node && here, all_zone && in_zone) {
        (true, _) => Topology::SameNode,
        (false, true) => Topology::SameZone,
        (false, false) => Topology::Everywhere,
    }
}
