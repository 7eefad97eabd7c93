//! The placements of a service, read from the elements that were found in the kernel.
//!
//! Every frontend has an element whose comment names the service port; everything else has the
//! frontend's key. Elements that are the same for two placements (a load-balancer address without
//! source ranges is like an external address) are read as the simpler one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::applied::Applied;
use crate::model::{Family, ObjectName, ServicePortName, TrafficPolicy};
use crate::program::objects::chain_name;
use crate::program::{
    Frontend, FrontendAt, FrontendKey, FrontendKind, FrontendSpace, ListScope, Placement, SetId,
    Slots, clients_map,
};
use crate::ruleset::{Element, Expr, Key, Name, Value, Verdict};
use crate::topology::Backend;

impl Applied {
    /// What was found of a service, in the order of its ports' names.
    pub(super) fn read_back(&self, service: &ObjectName, family: Family) -> Vec<Placement> {
        let ports = self.frontends_found(service, family);
        ports.into_iter().map(|(port, keys)| self.placement_found(port, &keys, family)).collect()
    }

    fn frontends_found(
        &self,
        service: &ObjectName,
        family: Family,
    ) -> BTreeMap<ServicePortName, Vec<FrontendKey>> {
        let label = service.to_string();
        let mut ports: BTreeMap<ServicePortName, Vec<FrontendKey>> = BTreeMap::new();
        for (set, elements) in &self.found {
            let Some(space) = set.space().filter(|_| is_labelled(*set)) else { continue };
            for element in elements.values() {
                let Some(port) = element.comment.as_deref().and_then(|text| port(text, &label))
                else {
                    continue;
                };
                let Some(key) = frontend_key(&element.key, space, family) else { continue };
                let name = ServicePortName {
                    service: service.clone(),
                    port: port.into(),
                    protocol: key.protocol,
                };
                ports.entry(name).or_default().push(key);
            }
        }
        for keys in ports.values_mut() {
            keys.sort_unstable();
            keys.dedup();
        }
        ports
    }

    fn placement_found(
        &self,
        name: ServicePortName,
        keys: &[FrontendKey],
        family: Family,
    ) -> Placement {
        let has = |set: SetId, key: &FrontendKey| self.found(set, &key.element_key()).is_some();
        let mut frontends: Vec<Frontend> =
            keys.iter().map(|key| Frontend { key: *key, kind: self.kind_found(key) }).collect();
        frontends.sort_by_key(|frontend| (frontend.kind, frontend.key));
        let list = |frontend: Option<&Frontend>, scope| -> Slots {
            let found = frontend
                .and_then(|f| self.found_list(f.key.space(), scope, f.key.element_key(), family));
            found.unwrap_or_default()
        };
        let internal = frontends.iter().find(|frontend| !frontend.is_external());
        let external = frontends.iter().find(|frontend| frontend.is_external());
        let is_local = external.is_some_and(|f| has(SetId::LocalPolicy(f.key.space()), &f.key));
        let is_internal_local = internal.is_some_and(|f| {
            let space = f.key.space();
            let differs = external.is_some()
                && list(internal, ListScope::Cluster) != list(external, ListScope::Cluster);
            has(SetId::Dropped(space), &f.key)
                || differs
                || self.jumps_to(space, f, &chain_name("sticky.local", &name))
        });
        let cluster = match external {
            None if is_internal_local => Slots::default(),
            None => list(internal, ListScope::Cluster),
            Some(_) => list(external, ListScope::Cluster),
        };
        let local = match external {
            Some(_) if is_local => list(external, ListScope::Local),
            _ if is_internal_local => list(internal, ListScope::Cluster),
            _ => Slots::default(),
        };
        let policy = |local| if local { TrafficPolicy::Local } else { TrafficPolicy::Cluster };
        Placement {
            label: name.to_string().into(),
            internal: policy(is_internal_local),
            external: policy(is_local),
            any: !keys.iter().any(|key| has(SetId::Refused(key.space()), key)),
            hairpin: self.hairpin_found(&name, &cluster, &local),
            cluster,
            local,
            affinity: self.affinity_found(&name, keys),
            ranges: self.ranges_found(&name, family),
            frontends,
            name,
        }
    }

    fn kind_found(&self, key: &FrontendKey) -> FrontendKind {
        let space = key.space();
        let has = |set: SetId| self.found(set, &key.element_key()).is_some();
        if space == FrontendSpace::NodePorts {
            FrontendKind::NodePort
        } else if has(SetId::Restricted) {
            FrontendKind::LoadBalancer
        } else if has(SetId::Masquerade(space)) || has(SetId::LocalPolicy(space)) {
            FrontendKind::ExternalIp
        } else {
            FrontendKind::ClusterIp
        }
    }

    fn jumps_to(&self, space: FrontendSpace, frontend: &Frontend, chain: &Name) -> bool {
        let found = self.found(SetId::Sticky(space), &frontend.key.element_key());
        found.is_some_and(|e| matches!(&e.value, Value::Verdict(Verdict::Jump(to)) if to == chain))
    }

    fn hairpin_found(
        &self,
        name: &ServicePortName,
        cluster: &Slots,
        local: &Slots,
    ) -> Vec<Backend> {
        let is_there = |backend: &Backend| {
            let Backend { address, port } = *backend;
            let key = Key::new().address(address).address(address);
            self.found(SetId::Hairpin, &key.protocol(name.protocol).port(port)).is_some()
        };
        let members = cluster.members().iter().chain(local.members());
        let mut all: Vec<Backend> = members.filter(|b| is_there(b)).copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Affinity's timeout is in the rule that remembers.
    fn affinity_found(&self, name: &ServicePortName, keys: &[FrontendKey]) -> Option<u32> {
        let is_sticky = |key: &FrontendKey| {
            self.found(SetId::Sticky(key.space()), &key.element_key()).is_some()
        };
        if !keys.iter().any(is_sticky) {
            return None;
        }
        let chains = [("remember", false), ("remember.local", true)];
        chains.into_iter().find_map(|(prefix, local)| {
            let map = clients_map(name, local);
            let rules = self.found_chains.get(&chain_name(prefix, name))?;
            let mut exprs = rules.iter().flat_map(|rule| &rule.exprs);
            exprs.find_map(|expr| match expr {
                Expr::Dynset { set, timeout: Some(millis), .. } if *set == map => {
                    u32::try_from(millis / 1000).ok()
                }
                _ => None,
            })
        })
    }

    fn ranges_found(&self, name: &ServicePortName, family: Family) -> Option<Vec<IpNet>> {
        let (_, elements) = self.found_sets.get(&chain_name("ranges", name))?;
        Some(elements.values().filter_map(|element| network(element, family)).collect())
    }
}

/// Sets whose elements say whose they are. The elements of lists with slots do not.
fn is_labelled(set: SetId) -> bool {
    match set {
        SetId::Refused(_) | SetId::Dropped(_) | SetId::Members(..) => true,
        SetId::Endpoints(_, _, class) => class == crate::program::Class::ONE,
        _ => false,
    }
}

/// The port's name in the label of a service's port.
fn port<'a>(text: &'a str, service: &str) -> Option<&'a str> {
    let rest = text.strip_prefix(service)?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix(':') }
}

fn frontend_key(key: &Key, space: FrontendSpace, family: Family) -> Option<FrontendKey> {
    let (at, offset) = match space {
        FrontendSpace::Services => {
            (FrontendAt::Address(key.address_at(0, family)?), family.address_len())
        }
        FrontendSpace::NodePorts => (FrontendAt::NodePort, 0),
    };
    Some(FrontendKey { at, protocol: key.protocol_at(offset)?, port: key.port_at(offset + 4)? })
}

/// The network that an interval is.
fn network(element: &Element, family: Family) -> Option<IpNet> {
    let first = element.key.address_at(0, family)?;
    let last = element.last?.address_at(0, family)?;
    match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let differing = (u32::from(first) ^ u32::from(last)).leading_zeros();
            Ipv4Net::new(first, u8::try_from(differing).ok()?).ok().map(IpNet::V4)
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let differing = (u128::from(first) ^ u128::from(last)).leading_zeros();
            Ipv6Net::new(first, u8::try_from(differing).ok()?).ok().map(IpNet::V6)
        }
        _ => None,
    }
}
