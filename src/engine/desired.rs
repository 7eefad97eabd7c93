//! From a Service and its slices to the placements of its ports.

use std::sync::Arc;

use ipnet::IpNet;

use super::claims::{Claim, Claims};
use crate::model::{
    EndpointSlice, ExternalScope, Family, Service, ServicePort, ServicePortName, TrafficPolicy,
};
use crate::program::{
    Frontend, FrontendAt, FrontendKey, FrontendKind, Placement, RuleOptions, Slots, comment,
};
use crate::topology::{Backend, Needs, NodeTopology, Usable, merge, usable};

pub fn port_name(service: &Service, port: &ServicePort) -> ServicePortName {
    ServicePortName {
        service: service.name.clone(),
        port: port.name.clone(),
        protocol: port.protocol,
    }
}

/// The ports of a service that are served in a family: none without a ClusterIP there (section
/// 4.2). Of several ports with one name and protocol, which no API server admits, the first counts.
pub fn served_ports(service: &Service, family: Family) -> impl Iterator<Item = &ServicePort> {
    let served = service.cluster_ip(family).is_some();
    service.ports.iter().enumerate().filter_map(move |(at, port)| {
        let earlier = &service.ports[..at];
        let repeated = earlier.iter().any(|e| e.name == port.name && e.protocol == port.protocol);
        (served && !repeated).then_some(port)
    })
}

/// The frontends a port asks for, in order of preference where two are the same.
pub fn frontends(service: &Service, port: &ServicePort, family: Family) -> Vec<Frontend> {
    let addresses = |list: &[std::net::IpAddr], kind: FrontendKind| -> Vec<Frontend> {
        let of_family = list.iter().filter(|ip| Family::of(ip) == family);
        of_family.map(|&ip| frontend(FrontendAt::Address(ip), port, port.port, kind)).collect()
    };
    let cluster_ip: Vec<_> = service.cluster_ip(family).into_iter().collect();
    let mut all = addresses(&cluster_ip, FrontendKind::ClusterIp);
    all.extend(addresses(&service.load_balancer_ips, FrontendKind::LoadBalancer));
    all.extend(addresses(&service.external_ips, FrontendKind::ExternalIp));
    all.extend(
        port.node_port
            .map(|number| frontend(FrontendAt::NodePort, port, number, FrontendKind::NodePort)),
    );
    let mut unique: Vec<Frontend> = Vec::with_capacity(all.len());
    for candidate in all {
        if !unique.iter().any(|known| known.key == candidate.key) {
            unique.push(candidate);
        }
    }
    unique
}

fn frontend(at: FrontendAt, port: &ServicePort, number: u16, kind: FrontendKind) -> Frontend {
    Frontend { key: FrontendKey { at, protocol: port.protocol, port: number }, kind }
}

/// Everything a service claims in a family.
pub fn claims(service: &Service, family: Family) -> Vec<(FrontendKey, Claim)> {
    served_ports(service, family)
        .flat_map(|port| {
            let claim = Claim { created: service.created, port: port_name(service, port) };
            frontends(service, port, family)
                .into_iter()
                .map(move |frontend| (frontend.key, claim.clone()))
        })
        .collect()
}

/// What decides about placements besides the service itself.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    pub family: Family,
    pub options: &'a RuleOptions,
    pub node_topology: &'a NodeTopology,
    /// Who owns which frontend.
    pub claims: &'a Claims,
}

/// The placements of a service, in the order of its ports. `before` gives the lists that a port has
/// now, for policy Cluster and Local, so that as few slots as possible move.
pub fn placements(
    context: Context<'_>,
    service: &Service,
    slices: &[Arc<EndpointSlice>],
    mut before: impl FnMut(&Placement) -> (Slots, Slots),
) -> Vec<Placement> {
    // What is kept is kept without room for more: a vector that grows begins with room for four.
    let mut placements = Vec::with_capacity(service.ports.len());
    placements.extend(served_ports(service, context.family).filter_map(|port| {
        let (mut placement, usable) = outline(context, service, port, slices)?;
        let (cluster, local) = before(&placement);
        placement.cluster = cluster.with_members(&usable.cluster);
        placement.local = local.with_members(&usable.local);
        Some(placement)
    }));
    placements
}

/// A placement without its lists, and the endpoints for them. `None` if the port owns no frontend.
fn outline(
    context: Context<'_>,
    service: &Service,
    port: &ServicePort,
    slices: &[Arc<EndpointSlice>],
) -> Option<(Placement, Usable)> {
    let Context { family, options, node_topology, claims } = context;
    let name = port_name(service, port);
    let owned = |frontend: &Frontend| claims.owner(&frontend.key) == Some(&name);
    let mut frontends = frontends(service, port, family);
    frontends.retain(owned);
    if frontends.is_empty() {
        return None;
    }
    let scope = service.external_scope(port, family);
    let internal_local = service.internal_policy == TrafficPolicy::Local;
    let needs = Needs {
        cluster: !internal_local || scope != ExternalScope::None,
        local: internal_local || scope == ExternalScope::Local,
    };
    let endpoints = merge(slices.iter().map(|slice| &**slice), family, &port.name, port.protocol);
    let usable = usable(&endpoints, node_topology, needs);
    let placement = Placement {
        label: comment(&name),
        internal: service.internal_policy,
        external: match scope {
            ExternalScope::Local => TrafficPolicy::Local,
            ExternalScope::None | ExternalScope::Cluster => TrafficPolicy::Cluster,
        },
        any: usable.any,
        cluster: Slots::default(),
        local: Slots::default(),
        hairpin: hairpin(&usable, options),
        affinity: service.session_affinity,
        ranges: ranges(service, &frontends, family, options),
        frontends,
        name,
    };
    Some((placement, usable))
}

fn hairpin(usable: &Usable, options: &RuleOptions) -> Vec<Backend> {
    if !options.hairpin_everywhere {
        return usable.on_this_node.clone();
    }
    let mut all = [&usable.cluster[..], &usable.local[..]].concat();
    all.sort_unstable();
    all.dedup();
    all
}

/// The networks that may use the load-balancer addresses: the Service's ranges, and its own
/// addresses when a range contains this node (B-161).
fn ranges(
    service: &Service,
    frontends: &[Frontend],
    family: Family,
    options: &RuleOptions,
) -> Option<Vec<IpNet>> {
    let addresses: Vec<IpNet> = frontends
        .iter()
        .filter(|frontend| frontend.kind == FrontendKind::LoadBalancer)
        .filter_map(|frontend| match frontend.key.at {
            FrontendAt::Address(address) => Some(IpNet::from(address)),
            FrontendAt::NodePort => None,
        })
        .collect();
    let mut ranges = service.source_ranges(family);
    if addresses.is_empty() || ranges.is_empty() {
        return None;
    }
    let node_ip = options.node_ips[family];
    if node_ip.is_some_and(|ip| ranges.iter().any(|range| range.contains(&ip))) {
        ranges.extend(addresses);
    }
    let mut aggregated = IpNet::aggregate(&ranges);
    aggregated.sort();
    Some(aggregated)
}
