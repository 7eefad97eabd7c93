//! Services that are set aside: each keeps what it had, as if its last change had not come.

use std::collections::{BTreeMap, HashSet};

use super::applied::Applied;
use super::claims::{Claim, Claims};
use super::{Engine, Plan, desired};
use crate::model::{EndpointSlice, Family, ObjectName, Service, ServicePort};
use crate::program::{FrontendKey, Placement};

impl Engine {
    /// Sets a service aside after the kernel refused it, or because it is too large. It keeps what it
    /// has, through everything that happens to the table, until it changes or is taken back. If even
    /// that is refused it keeps nothing. `false`: it has nothing already, so that it cannot be to
    /// blame.
    pub fn set_aside(&mut self, family: Family, service: ObjectName) -> bool {
        let state = &self.state[family];
        let kept = match state.set_aside.get(&service) {
            None => state.applied.kept(&service, family),
            Some(kept) if kept.is_empty() => return false,
            Some(_) => Vec::new(),
        };
        self.keep(family, service, kept);
        true
    }

    /// Takes a service back that was set aside.
    pub fn take_back(&mut self, family: Family, service: &ObjectName) {
        if self.state[family].set_aside.contains_key(service) {
            self.mark_dirty(family, service.clone());
        }
    }

    pub fn is_set_aside(&self, family: Family, service: &ObjectName) -> bool {
        self.state[family].set_aside.contains_key(service)
    }

    /// The services that are set aside, and what each keeps.
    pub fn aside(&self, family: Family) -> &BTreeMap<ObjectName, Vec<Placement>> {
        &self.state[family].set_aside
    }

    /// A service is to have these placements, whatever its objects say.
    pub(crate) fn keep(&mut self, family: Family, service: ObjectName, kept: Vec<Placement>) {
        let claims = self.kept_claims(family, &service, &kept);
        let state = &mut self.state[family];
        let affected = state.claims.set(&service, claims);
        if state.applied.placements(&service) == still_owned(&kept, &state.claims) {
            state.dirty.remove(&service);
        } else {
            state.dirty.insert(service.clone());
        }
        state.dirty.extend(affected);
        state.set_aside.insert(service, kept);
    }

    /// What a plan takes from services that are set aside, of what they keep.
    pub(super) fn taken_from_aside(
        &self,
        family: Family,
        plan: &Plan,
    ) -> BTreeMap<ObjectName, Vec<FrontendKey>> {
        let state = &self.state[family];
        let mut taken: BTreeMap<ObjectName, Vec<FrontendKey>> = BTreeMap::new();
        if state.set_aside.is_empty() {
            return taken;
        }
        for (service, after) in plan.placements() {
            for frontend in after.iter().flat_map(|placement| &placement.frontends) {
                let others = state.claims.of(&frontend.key).iter().map(|claim| &claim.port.service);
                let others = others.filter(|other| *other != service);
                for other in others.filter(|other| state.set_aside.contains_key(*other)) {
                    taken.entry(other.clone()).or_default().push(frontend.key);
                }
            }
        }
        taken
    }

    /// Others have these frontends in force now: they do not come back. Until then they stay with the
    /// service that keeps them, for the others, too, may be refused.
    pub(super) fn let_go(&mut self, family: Family, service: ObjectName, taken: &[FrontendKey]) {
        let Some(mut kept) = self.state[family].set_aside.get(&service).cloned() else { return };
        for placement in &mut kept {
            placement.frontends.retain(|frontend| !taken.contains(&frontend.key));
        }
        kept.retain(|placement| !placement.frontends.is_empty());
        self.keep(family, service, kept);
    }

    /// What a service claims while it is set aside: the frontends that it keeps. One that its object
    /// does not ask for any more goes to whoever else does.
    fn kept_claims(
        &self,
        family: Family,
        service: &ObjectName,
        kept: &[Placement],
    ) -> Vec<(FrontendKey, Claim)> {
        let object = self.store.service(service);
        let created = object.map_or(i64::MAX, |object| object.created);
        let asked: HashSet<FrontendKey> = object
            .map(|object| desired::claims(object, family))
            .into_iter()
            .flatten()
            .map(|(frontend, _)| frontend)
            .collect();
        let of_port = |placement: &Placement| {
            let port = placement.name.clone();
            let keys: Vec<FrontendKey> = placement.frontends.iter().map(|f| f.key).collect();
            keys.into_iter().map(move |key| (key, port.clone()))
        };
        let claim = |(key, port)| {
            let created = if asked.contains(&key) { created } else { i64::MAX };
            (key, Claim { created, port })
        };
        kept.iter().flat_map(of_port).map(claim).collect()
    }
}

/// Of placements that are kept, what nobody else has taken since.
pub(super) fn still_owned(kept: &[Placement], claims: &Claims) -> Vec<Placement> {
    let owned = |placement: &Placement| {
        let mut placement = placement.clone();
        placement.frontends.retain(|f| claims.owner(&f.key) == Some(&placement.name));
        (!placement.frontends.is_empty()).then_some(placement)
    };
    kept.iter().filter_map(owned).collect()
}

impl Applied {
    /// What a service has, as far as is known: from the mirror, or else from what was found.
    fn kept(&self, service: &ObjectName, family: Family) -> Vec<Placement> {
        if let Some(placements) = self.services.get(service).or_else(|| self.before.get(service)) {
            return placements.clone();
        }
        self.previous.as_deref().unwrap_or(self).read_back(service, family)
    }
}

/// Most list entries of one service in one family. An object of half a megabyte, which any API server
/// takes, can name thousands of ports and a thousand endpoints for each of them: millions of elements,
/// for which everybody else would wait. A hundred thousand endpoints behind a port with
/// ClusterIP, NodePort and two load-balancer addresses are less; a commit of this many takes about
/// a second.
pub const MOST_ENTRIES: usize = 500_000;

impl Engine {
    /// The list entries of a service, if they are too many. What one keeps that is set aside was not.
    pub(super) fn oversized(&self, family: Family, service: &ObjectName) -> Option<usize> {
        if self.is_set_aside(family, service) {
            return None;
        }
        let object = self.store.service(service)?;
        let slices = self.store.slices(service);
        let slices = || slices.iter().map(|slice| &**slice).filter(|slice| slice.family == family);
        let entries: usize =
            object.ports.iter().map(|port| entries(object, port, family, slices())).sum();
        (entries > MOST_ENTRIES).then_some(entries)
    }
}

/// Each frontend has a list of its own.
fn entries<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> usize {
    let addresses = service.load_balancer_ips.iter().chain(&service.external_ips);
    let addresses = addresses.filter(|address| Family::of(address) == family).count();
    let frontends = 1 + addresses + usize::from(port.node_port.is_some());
    let serves = |slice: &&EndpointSlice| {
        slice.ports.iter().any(|p| p.name == port.name && p.protocol == port.protocol)
    };
    let endpoints: usize = slices.filter(serves).map(|slice| slice.endpoints.len()).sum();
    endpoints * frontends
}
