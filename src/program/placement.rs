//! What one service port has in one family's sets and maps.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use super::objects::{Role, chain_name};
use super::{Class, FrontendSpace, ListScope, LocalhostNodePorts, RuleOptions, SetId, Slots};
use crate::model::{Family, Protocol, ServicePortName, TrafficPolicy};
use crate::ruleset::{Element, Key, Verdict};
use crate::topology::Backend;

/// Where a frontend answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAt {
    Address(IpAddr),
    /// On the NodePort addresses.
    NodePort,
}

/// What identifies a frontend; at most one service port may have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// Where it answers.
    pub at: FrontendAt,
    pub protocol: Protocol,
    /// Port, or node port.
    pub port: u16,
}

/// Which field of the Service a frontend comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendKind {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `spec.ports[].nodePort`.
    NodePort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frontend {
    /// What a client dials.
    pub key: FrontendKey,
    /// Where it comes from.
    pub kind: FrontendKind,
}

/// One service port in one family: everything its elements are made of.
///
/// Shape: `frontends` are those the port owns, free of duplicates; the lists are those its policies
/// need, others are empty.
#[derive(Debug, Clone, PartialEq)]
pub struct Placement {
    pub name: ServicePortName,
    /// `namespace/name:port`, the comment of its elements, as [`comment`] cuts it.
    pub label: Arc<str>,
    pub frontends: Vec<Frontend>,
    /// Policy of the ClusterIP.
    pub internal: TrafficPolicy,
    /// Policy of all other frontends.
    pub external: TrafficPolicy,
    /// Some endpoint exists somewhere (section 4.8).
    pub any: bool,
    /// The list for policy Cluster.
    pub cluster: Slots,
    /// The list for policy Local.
    pub local: Slots,
    /// Endpoints that may be reached from themselves; sorted.
    pub hairpin: Vec<Backend>,
    /// Session affinity's timeout in seconds.
    pub affinity: Option<u32>,
    /// Networks that may use the load-balancer addresses, aggregated; `None` without restriction.
    pub ranges: Option<Vec<IpNet>>,
}

impl FrontendKey {
    /// The space the frontend's sets are in.
    pub fn space(&self) -> FrontendSpace {
        match self.at {
            FrontendAt::Address(_) => FrontendSpace::Services,
            FrontendAt::NodePort => FrontendSpace::NodePorts,
        }
    }

    /// Its key in those sets.
    pub fn element_key(&self) -> Key {
        let key = match self.at {
            FrontendAt::Address(address) => Key::new().address(address),
            FrontendAt::NodePort => Key::new(),
        };
        key.protocol(self.protocol).port(self.port)
    }

    /// The frontend whose element has a key, in a set of a space; what follows in the key is a slot.
    pub fn of_element(space: FrontendSpace, family: Family, key: &Key) -> Option<FrontendKey> {
        let (at, offset) = match space {
            FrontendSpace::Services => {
                (FrontendAt::Address(key.address_at(0, family)?), family.address_len())
            }
            FrontendSpace::NodePorts => (FrontendAt::NodePort, 0),
        };
        let (protocol, port) = (key.protocol_at(offset)?, key.port_at(offset + 4)?);
        Some(FrontendKey { at, protocol, port })
    }
}

impl fmt::Display for FrontendKey {
    /// `10.0.0.1:80/tcp`, or `nodePort 30080/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            FrontendAt::Address(address) => {
                write!(f, "{}/{}", SocketAddr::new(address, self.port), self.protocol)
            }
            FrontendAt::NodePort => write!(f, "nodePort {}/{}", self.port, self.protocol),
        }
    }
}

impl Frontend {
    /// Whether the external policy applies to it, and not the internal one (B-133, B-134).
    pub fn is_external(&self) -> bool {
        self.kind != FrontendKind::ClusterIp
    }
}

impl Placement {
    /// The role of a frontend in session affinity.
    pub fn role(&self, frontend: &Frontend) -> Role {
        match (frontend.is_external(), self.internal, self.external) {
            (false, TrafficPolicy::Cluster, _) | (true, _, TrafficPolicy::Cluster) => Role::Cluster,
            (false, TrafficPolicy::Local, _) => Role::Local,
            (true, _, TrafficPolicy::Local) => Role::LocalPolicy,
        }
    }

    /// The comment of elements that count: uncut, for they are told apart by it.
    fn counted(&self) -> Arc<str> {
        self.name.to_string().into()
    }

    /// Whether a frontend is subject to source ranges (B-160).
    fn is_restricted(&self, frontend: &Frontend, options: &RuleOptions) -> bool {
        frontend.kind == FrontendKind::LoadBalancer
            && self.ranges.is_some()
            && (self.any || options.restrict_without_endpoints)
    }
}

/// Longest comment that `nft` reads back, in bytes; the kernel takes more.
const COMMENT_LIMIT: usize = 128;

/// The comment of a service port's elements, cut where `nft -f` would refuse it.
pub fn comment(name: &ServicePortName) -> Arc<str> {
    let text = name.to_string();
    let whole = |at: &usize| text.is_char_boundary(*at);
    let end = (0..=COMMENT_LIMIT.min(text.len())).rev().find(whole).unwrap_or_default();
    text[..end].into()
}

/// Elements of a service port, in the sets of a family.
///
/// Shape: sorted by set and key, without duplicates.
pub fn elements(
    placement: &Placement,
    family: Family,
    options: &RuleOptions,
) -> Vec<(SetId, Element)> {
    let mut out = Vec::new();
    for frontend in &placement.frontends {
        policy_elements(placement, frontend, options, &mut out);
        endpoint_elements(placement, frontend, options, &mut out);
    }
    for backend in &placement.hairpin {
        let key = Key::new()
            .address(backend.address)
            .address(backend.address)
            .protocol(placement.name.protocol)
            .port(backend.port);
        debug_assert_eq!(Family::of(&backend.address), family);
        out.push((SetId::Hairpin, Element::member(key)));
    }
    out.sort_unstable_by_key(|(set, element)| (*set, element.key));
    out.dedup_by(|(set_a, a), (set_b, b)| set_a == set_b && a.key == b.key);
    out
}

/// What the Service alone decides.
fn policy_elements(
    placement: &Placement,
    frontend: &Frontend,
    options: &RuleOptions,
    out: &mut Vec<(SetId, Element)>,
) {
    let space = frontend.key.space();
    let key = frontend.key.element_key();
    if let FrontendAt::Address(address) = frontend.key.at {
        let address = Key::new().address(address);
        out.push((SetId::FrontendIps, Element::member(address)));
        if frontend.kind == FrontendKind::ClusterIp {
            out.push((SetId::ClusterIps, Element::member(address)));
        }
    }
    if frontend.is_external() {
        match placement.external {
            TrafficPolicy::Cluster => out.push((SetId::Masquerade(space), Element::member(key))),
            TrafficPolicy::Local => {
                out.push((SetId::LocalPolicy(space), Element::member(key)));
                out.push((SetId::MasqueradeHost(space), Element::member(key)));
            }
        }
    }
    if placement.affinity.is_some() {
        let role = placement.role(frontend);
        let jump = |verb| Verdict::Jump(chain_name(role.chain_prefix(verb), &placement.name));
        out.push((SetId::Sticky(space), Element::verdict(key, jump("sticky"))));
        out.push((SetId::Remember(space), Element::verdict(key, jump("remember"))));
    }
    let restricted = placement.is_restricted(frontend, options);
    if restricted {
        let ranges = Verdict::Goto(chain_name("ranges", &placement.name));
        out.push((SetId::Restricted, Element::verdict(key, ranges)));
    }
    if options.service_counters {
        let counted = |set: SetId| (set, Element::member(key).with_comment(placement.counted()));
        out.push(counted(SetId::Connections(space)));
        out.extend(restricted.then(|| counted(SetId::OutsideRanges)));
    }
}

/// What the endpoints decide: the lists, or refusal, or drop (section 5.5).
fn endpoint_elements(
    placement: &Placement,
    frontend: &Frontend,
    options: &RuleOptions,
    out: &mut Vec<(SetId, Element)>,
) {
    let space = frontend.key.space();
    let key = frontend.key.element_key();
    let label = || match options.service_counters {
        true => placement.counted(),
        false => placement.label.clone(),
    };
    let member = |set: SetId| (set, Element::member(key).with_comment(label()));
    if !placement.any {
        out.push(member(SetId::Refused(space)));
        return;
    }
    let role = placement.role(frontend);
    if role != Role::Cluster && placement.local.is_empty() {
        out.push(member(SetId::Dropped(space)));
    }
    match role {
        Role::Cluster => list(placement, key, space, ListScope::Cluster, &placement.cluster, out),
        Role::Local => list(placement, key, space, ListScope::Cluster, &placement.local, out),
        Role::LocalPolicy => {
            list(placement, key, space, ListScope::Cluster, &placement.cluster, out);
            list(placement, key, space, ListScope::Local, &placement.local, out);
        }
    }
}

fn list(
    placement: &Placement,
    key: Key,
    space: FrontendSpace,
    scope: ListScope,
    slots: &Slots,
    out: &mut Vec<(SetId, Element)>,
) {
    let endpoints = SetId::Endpoints(space, scope, slots.class());
    let data = |backend: &Backend| Key::new().address(backend.address).port(backend.port);
    if slots.class() == Class::ONE {
        out.extend(slots.members().iter().map(|backend| {
            (endpoints, Element::data(key, data(backend)).with_comment(placement.label.clone()))
        }));
        return;
    }
    if !slots.is_empty() {
        let members = SetId::Members(space, scope, slots.class());
        out.push((members, Element::member(key).with_comment(placement.label.clone())));
    }
    out.extend(
        slots.members().iter().enumerate().map(|(slot, backend)| {
            (endpoints, Element::data(key.slot(slot as u32), data(backend)))
        }),
    );
}

// What a proxy on loopback addresses has to serve for a service port (KEP-6032).
//
// In nftables mode no packet from a loopback address can be sent on, so that a process has to listen.
// It chooses from the lists that packets are sent to, and is told no more than this.

/// A NodePort to be served on a loopback address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalhostPort {
    pub protocol: Protocol,
    pub port: u16,
    /// Where connections go; not empty.
    pub backends: Vec<Backend>,
    /// Session affinity's timeout in seconds. All clients have one address there, so that it holds for
    /// all of them together.
    pub affinity: Option<u32>,
}

/// What is to be served of a placement: nothing without endpoints, so that clients are refused.
pub fn localhost_port(
    placement: &Placement,
    localhost: LocalhostNodePorts,
) -> Option<LocalhostPort> {
    let protocol = placement.name.protocol;
    let node_port = placement.frontends.iter().find(|f| f.kind == FrontendKind::NodePort)?;
    let slots = match placement.external {
        TrafficPolicy::Cluster => &placement.cluster,
        TrafficPolicy::Local => &placement.local,
    };
    (localhost.is_proxied(protocol) && !slots.is_empty()).then(|| LocalhostPort {
        protocol,
        port: node_port.key.port,
        backends: slots.members().to_vec(),
        affinity: placement.affinity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    // 1.37, kubernetes#139516: `nft -f` refuses longer ones, and so a listing that has them.
    #[test]
    fn comments_are_cut_where_nft_would_refuse_them() {
        let name = |namespace: usize, name: usize| ServicePortName {
            service: ObjectName::new("n".repeat(namespace), "s".repeat(name)),
            port: "https-alt-named".into(),
            protocol: Protocol::Tcp,
        };
        assert_eq!(&*comment(&name(2, 3)), "nn/sss:https-alt-named");
        assert_eq!(comment(&name(63, 63)).len(), COMMENT_LIMIT);
        assert_eq!(comment(&name(53, 58)).len(), COMMENT_LIMIT, "all of it fits");
    }
}
