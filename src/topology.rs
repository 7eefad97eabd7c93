//! Which endpoints this node may use for a service port.
//!
//! Place in the flow: pure, between the store's objects and [`crate::program`]. Knows nothing of
//! rules, addresses of frontends or the kernel.
//! Source: KEP-2086 (internal traffic policy), KEP-1669 (terminating endpoints), KEP-2433 and
//! KEP-3015 (zone and node hints); section 4.6 to 4.8 of the behaviour reference.

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
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

// Tables of endpoints and what a node may use of them.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Hints, ObjectName, SlicePort};

    const NODE: &str = "node-a";
    const ZONE: &str = "zone-1";

    fn here() -> NodeTopology {
        NodeTopology { node: NODE.into(), zone: Some(ZONE.into()) }
    }

    /// `"4 r n=node-a z=zone-1 h=node-a"`: address suffix, conditions (r ready, s serving,
    /// t terminating), node, zone hints, node hints.
    fn endpoint(text: &str) -> Endpoint {
        let mut words = text.split(' ');
        let suffix = words.next().unwrap();
        let mut endpoint = Endpoint {
            address: format!("10.0.0.{suffix}").parse().unwrap(),
            ready: false,
            serving: false,
            terminating: false,
            node: None,
            hints: None,
        };
        let mut hints = Hints::default();
        for word in words {
            match word.split_once('=') {
                Some(("n", node)) => endpoint.node = Some(node.into()),
                Some(("z", zones)) => hints.zones = zones.split(',').map(Into::into).collect(),
                Some(("h", nodes)) => hints.nodes = nodes.split(',').map(Into::into).collect(),
                _ => {
                    endpoint.ready = word.contains('r');
                    endpoint.serving = word.contains('s') || word.contains('r');
                    endpoint.terminating = word.contains('t');
                }
            }
        }
        endpoint.hints = Some(hints.into());
        endpoint
    }

    fn slice(name: &str, ports: &[(&str, Protocol, u16)], endpoints: &[&str]) -> EndpointSlice {
        EndpointSlice {
            name: ObjectName::new("ns", name),
            service: ObjectName::new("ns", "svc"),
            family: Family::V4,
            ports: ports
                .iter()
                .map(|&(name, protocol, port)| SlicePort { name: name.into(), protocol, port })
                .collect(),
            endpoints: endpoints.iter().map(|e| endpoint(e)).collect(),
            trigger_time: None,
        }
    }

    fn suffixes(backends: &[Backend]) -> String {
        let texts: Vec<String> = backends
            .iter()
            .map(|b| b.address.to_string().trim_start_matches("10.0.0.").to_owned())
            .collect();
        texts.join(" ")
    }

    fn select(
        endpoints: &[&str],
        node_topology: &NodeTopology,
        needs: Needs,
    ) -> (String, String, bool) {
        let slice = slice("s", &[("http", Protocol::Tcp, 80)], endpoints);
        let merged = merge([&slice].into_iter(), Family::V4, "http", Protocol::Tcp);
        let usable = usable(&merged, node_topology, needs);
        (suffixes(&usable.cluster), suffixes(&usable.local), usable.any)
    }

    const BOTH: Needs = Needs { cluster: true, local: true };
    const CLUSTER: Needs = Needs { cluster: true, local: false };
    const LOCAL: Needs = Needs { cluster: false, local: true };

    // B-108, B-109, B-110, B-111, B-112, B-113, B-114: conditions and locality.
    #[test]
    fn conditions_and_locality() {
        let cases: &[(&str, &[&str], Needs, (&str, &str, bool))] = &[
            ("no endpoints", &[], BOTH, ("", "", false)),
            ("only ready ones", &["1 r", "2 s", "3 st", "4"], CLUSTER, ("1", "", true)),
            (
                "no ready one: serving and terminating ones",
                &["2 s", "3 st", "4 t"],
                CLUSTER,
                ("3", "", true),
            ),
            (
                "serving, neither ready nor terminating: never",
                &["2 s n=node-a"],
                BOTH,
                ("", "", false),
            ),
            ("not serving: never", &["4 t n=node-a", "5 n=node-a"], BOTH, ("", "", false)),
            ("local ready", &["1 r n=node-a", "2 r n=node-b", "3 r"], LOCAL, ("", "1", true)),
            (
                "local terminating when none is ready",
                &["1 st n=node-a", "2 r n=node-b"],
                BOTH,
                ("2", "1", true),
            ),
            (
                "local ready beats local terminating",
                &["1 st n=node-a", "2 r n=node-a"],
                BOTH,
                ("2", "2", true),
            ),
            ("only remote ones", &["2 r n=node-b"], LOCAL, ("", "", true)),
            ("only remote terminating ones", &["2 st n=node-b"], BOTH, ("2", "", true)),
            (
                "node name is compared exactly",
                &["1 r n=Node-A", "2 r n=node-a.example"],
                LOCAL,
                ("", "", true),
            ),
        ];
        for (name, endpoints, needs, expected) in cases {
            let (cluster, local, any) = select(endpoints, &here(), *needs);
            assert_eq!((cluster.as_str(), local.as_str(), any), *expected, "{name}: {endpoints:?}");
        }
    }

    // B-115, B-116, B-117, B-119, B-120, B-121, B-122, B-123, B-124: hints.
    #[test]
    fn hints() {
        let cases: &[(&str, &[&str], Needs, (&str, &str))] = &[
            ("zone matches", &["1 r z=zone-1", "2 r z=zone-2"], CLUSTER, ("1", "")),
            ("one ready endpoint without hint", &["1 r z=zone-1", "2 r"], CLUSTER, ("1 2", "")),
            (
                "nothing hinted for this zone",
                &["1 r z=zone-2", "2 r z=zone-3"],
                CLUSTER,
                ("1 2", ""),
            ),
            ("several zones", &["1 r z=zone-2,zone-1", "2 r z=zone-2"], CLUSTER, ("1", "")),
            (
                "unready ones need no hint",
                &["1 r z=zone-1", "2 r z=zone-2", "3 s"],
                CLUSTER,
                ("1", ""),
            ),
            (
                "unready ones in the zone do not count",
                &["1 r z=zone-2", "2 s z=zone-1"],
                CLUSTER,
                ("1", ""),
            ),
            (
                "node hints win",
                &["1 r z=zone-1 h=node-b", "2 r z=zone-1 h=node-a"],
                CLUSTER,
                ("2", ""),
            ),
            (
                "nothing for this node: zone",
                &["1 r z=zone-1 h=node-b", "2 r z=zone-2 h=node-c"],
                CLUSTER,
                ("1", ""),
            ),
            (
                "one without node hint: zone",
                &["1 r z=zone-2 h=node-a", "2 r z=zone-1"],
                CLUSTER,
                ("2", ""),
            ),
            ("one without any hint: all", &["1 r z=zone-1 h=node-a", "2 r"], CLUSTER, ("1 2", "")),
            (
                "the local list ignores hints",
                &["1 r z=zone-1 n=node-b", "2 r z=zone-2 n=node-a"],
                BOTH,
                ("1", "2"),
            ),
            (
                "the fallback ignores hints",
                &["1 st z=zone-1", "2 st z=zone-2"],
                CLUSTER,
                ("1 2", ""),
            ),
        ];
        for (name, endpoints, needs, expected) in cases {
            let (cluster, local, _) = select(endpoints, &here(), *needs);
            assert_eq!((cluster.as_str(), local.as_str()), *expected, "{name}: {endpoints:?}");
        }
    }

    // B-118: a node without zone uses every zone.
    #[test]
    fn node_without_zone_ignores_zone_hints() {
        let nowhere = NodeTopology { node: NODE.into(), zone: None };
        let (cluster, ..) = select(&["1 r z=zone-1", "2 r z=zone-2"], &nowhere, CLUSTER);
        assert_eq!(cluster, "1 2");
    }

    // B-096, B-097, B-103, B-106: slices are united; ports match by name and protocol.
    #[test]
    fn slices_are_united_by_port_name_and_protocol() {
        let slices = [
            slice("a", &[("http", Protocol::Tcp, 8080), ("dns", Protocol::Udp, 53)], &["1 r"]),
            slice("b", &[("http", Protocol::Tcp, 9090)], &["1 r", "2 r"]),
            slice("c", &[("http", Protocol::Udp, 8080), ("https", Protocol::Tcp, 8443)], &["3 r"]),
        ];
        let merged = merge(slices.iter(), Family::V4, "http", Protocol::Tcp);
        let found: Vec<String> =
            merged.iter().map(|m| format!("{}:{}", m.backend.address, m.backend.port)).collect();
        assert_eq!(found, ["10.0.0.1:8080", "10.0.0.1:9090", "10.0.0.2:9090"]);
        assert!(merge(slices.iter(), Family::V4, "", Protocol::Tcp).is_empty());
        assert!(merge(slices.iter(), Family::V6, "http", Protocol::Tcp).is_empty());
    }

    // B-102, B-104: of duplicates a non-terminating one counts, in any order and across slices.
    #[test]
    fn duplicates() {
        let cases: &[(&str, &[&[&str]], bool, bool)] = &[
            ("terminating first", &[&["1 st", "1 r"]], true, false),
            ("terminating last", &[&["1 r", "1 st"]], true, false),
            ("across slices", &[&["1 st"], &["1 r"]], true, false),
            ("across slices, other order", &[&["1 r"], &["1 st"]], true, false),
            ("terminating twice", &[&["1 st"], &["1 t"]], false, true),
            ("the reference's vector", &[&["1 st", "1 r", "1 t"]], true, false),
        ];
        for (name, lists, ready, terminating) in cases {
            let slices: Vec<EndpointSlice> = lists
                .iter()
                .enumerate()
                .map(|(i, list)| slice(&format!("s{i}"), &[("http", Protocol::Tcp, 80)], list))
                .collect();
            let merged = merge(slices.iter(), Family::V4, "http", Protocol::Tcp);
            assert_eq!(merged.len(), 1, "{name}");
            let endpoint = merged[0].endpoint;
            assert_eq!((endpoint.ready, endpoint.terminating), (*ready, *terminating), "{name}");
        }
    }

    // B-243, B-244: distinct ready local addresses over all ports.
    #[test]
    fn local_ready_addresses_are_counted_once() {
        let slices = [
            slice(
                "a",
                &[("http", Protocol::Tcp, 80)],
                &["1 r n=node-a", "2 r n=node-b", "3 st n=node-a"],
            ),
            slice("b", &[("https", Protocol::Tcp, 443)], &["1 r n=node-a", "4 r n=node-a"]),
        ];
        assert_eq!(local_ready_addresses(slices.iter(), &here()), 2);
        assert_eq!(local_ready_addresses(slices[..1].iter(), &here()), 1);
    }

    #[test]
    fn hairpin_candidates_are_reachable_and_on_this_node() {
        let slice = slice(
            "s",
            &[("http", Protocol::Tcp, 80)],
            &["1 r n=node-a", "2 r n=node-b", "3 s n=node-a"],
        );
        let merged = merge([&slice].into_iter(), Family::V4, "http", Protocol::Tcp);
        assert_eq!(suffixes(&usable(&merged, &here(), CLUSTER).on_this_node), "1");
    }
}
