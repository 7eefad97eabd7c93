//! A plan in the making: which services it takes, one after the other.
//!
//! Some affinity maps have to be read before their service can be planned. So the draft asks for them,
//! and whoever drives it reads: a service's placements are computed once, and a map is read once.

use std::collections::{BTreeMap, BTreeSet};

use super::{Plan, Selection};
use crate::engine::affinity::{all_maps, remembered_clients, shrunken_maps};
use crate::engine::applied::{Applied, Stage};
use crate::engine::changes::Changes;
use crate::engine::{Engine, FamilyState};
use crate::kernel::Op;
use crate::model::{Family, ObjectName};
use crate::program::{Extension, Placement, ServiceObjects, SetId, service_objects};
use crate::ruleset::{Chain, Element, Name};

/// See [`Engine::draft`].
#[derive(Debug)]
pub struct Draft<'a> {
    engine: &'a Engine,
    state: &'a FamilyState,
    family: Family,
    selection: Selection<'a>,
    /// Services to take, the next one last.
    queue: Vec<&'a ObjectName>,
    transfers: BTreeMap<&'a ObjectName, Vec<&'a ObjectName>>,
    /// Placed, but maybe not planned before some maps are known.
    placed: Vec<(ObjectName, Vec<Placement>)>,
    taken: BTreeSet<&'a ObjectName>,
    clients: BTreeMap<Name, Vec<Element>>,
    /// Clients that are moved or forgotten.
    clients_len: usize,
    changes: Changes,
    plan: Plan,
}

impl<'a> Draft<'a> {
    pub(super) fn start(engine: &'a Engine, family: Family, selection: Selection<'a>) -> Self {
        let state = &engine.state[family];
        let dirty = || state.dirty.iter().rev();
        let mut draft = Draft {
            engine,
            state,
            family,
            selection,
            queue: match selection {
                Selection::Elements(_) => dirty().collect(),
                Selection::Only(only) => {
                    only.iter().rev().filter(|service| state.dirty.contains(*service)).collect()
                }
                Selection::Except(except) => {
                    dirty().filter(|service| !except.contains(*service)).collect()
                }
            },
            transfers: transfers(state),
            placed: Vec::new(),
            taken: BTreeSet::new(),
            clients: BTreeMap::new(),
            clients_len: 0,
            changes: Changes::default(),
            plan: Plan::start(family, state),
        };
        draft.plan.node_elements(state, &mut draft.changes);
        draft
    }

    /// Takes the next service, and those with which it exchanges frontends. Returns the affinity maps
    /// that lose a member by that, and have to be read before anything else; `None` if there is no
    /// service left, or no more fit.
    pub fn advance(&mut self) -> Option<Vec<Name>> {
        self.plan_placed();
        if self.is_full() {
            return None;
        }
        let first = loop {
            let service = self.queue.pop()?;
            if self.taken.insert(service) {
                break service;
            }
        };
        let mut group = vec![first];
        let mut at = 0;
        while let Some(service) = group.get(at).copied() {
            at += 1;
            for other in self.transfers.get(service).into_iter().flatten() {
                if self.taken.insert(other) {
                    group.push(other);
                }
            }
        }
        let mut maps = Vec::new();
        for service in group {
            if let Some(entries) = self.engine.oversized(self.family, service) {
                self.plan.oversized.push((service.clone(), entries));
                continue;
            }
            let after = self.engine.placements(self.family, service);
            if self.state.applied.sticky.contains(service) {
                let shrunken = shrunken_maps(self.state.applied.placements(service), &after);
                maps.extend(shrunken.into_iter().map(|(map, _)| map));
            }
            self.placed.push((service.clone(), after));
        }
        Some(maps)
    }

    /// The content of a map that [`Draft::advance`] named.
    pub fn remember(&mut self, map: Name, clients: Vec<Element>) {
        self.clients.insert(map, clients);
    }

    pub fn finish(mut self) -> Plan {
        self.plan_placed();
        let Draft { engine, state, family, mut plan, mut changes, selection, .. } = self;
        plan.covers = state.dirty.len() == plan.services.len() + plan.oversized.len();
        // By themselves: nobody is to blame if the kernel keeps them.
        if let Selection::Elements(limit) = selection
            && state.dirty.is_empty()
            && plan.stage == Stage::Attached
        {
            leftovers(state, limit, &mut changes);
        }
        plan.settled = changes.settle(&state.applied);
        let found: usize = state.applied.found.values().map(|elements| elements.len()).sum();
        plan.finishes = plan.covers && found == plan.settled.claimed.len();
        plan.assemble(family, state, engine.owned);
        plan
    }

    fn is_full(&self) -> bool {
        let len = self.changes.len() + self.plan.objects.len + self.clients_len;
        match self.selection {
            Selection::Elements(limit) => {
                len >= limit && self.state.applied.stage != Stage::Foreign
            }
            Selection::Only(_) | Selection::Except(_) => false,
        }
    }

    fn plan_placed(&mut self) {
        for (service, after) in std::mem::take(&mut self.placed) {
            self.plan_service(service, after);
        }
    }

    fn plan_service(&mut self, service: ObjectName, after: Vec<Placement>) {
        let Draft { engine, family, state, .. } = *self;
        let applied = &state.applied;
        let before = applied.placements(&service);
        let wants = engine.elements(family, &after);
        let sets = wants.chunk_by(|(a, _), (b, _)| a == b).map(|of_set| of_set[0].0);
        for set in sets {
            self.plan.extensions.extend(Extension::of(set));
            if set == SetId::Restricted {
                self.plan.restricted.insert(service.clone());
            }
        }
        if before.is_empty() && !applied.found.is_empty() {
            let frontends = after.iter().flat_map(|placement| &placement.frontends);
            let found = frontends.flat_map(|frontend| {
                applied.found_of(frontend.key.space(), frontend.key.element_key())
            });
            self.changes.takeover(found.collect(), wants);
        } else {
            self.changes.difference(engine.elements(family, before), wants);
        }
        self.plan_objects(&service, before, &after);
        let shrunken = if applied.services.contains_key(&service) {
            shrunken_maps(before, &after)
        } else {
            all_maps(&after)
        };
        for (map, members) in shrunken {
            let known = self.clients.contains_key(&map) || applied.remembers(&map);
            if known && self.plan.objects.used_sets.contains(&map) {
                let (ops, len) = remembered_clients(&map, &members, family, state, &self.clients);
                self.clients_len += len;
                self.plan.clients.extend(ops);
                self.plan.recheck.push((map, members));
            }
        }
        self.plan.services.insert(service.clone());
        self.plan.placements.push((service, after));
    }

    fn plan_objects(&mut self, service: &ObjectName, before: &[Placement], after: &[Placement]) {
        let applied = &self.state.applied;
        let objects = |placements: &[Placement]| {
            let mut objects = ServiceObjects::default();
            for placement in placements {
                objects.extend(service_objects(placement, self.family, &self.engine.options));
            }
            objects
        };
        let new = objects(after);
        let old = if applied.services.contains_key(service) {
            objects(before)
        } else {
            applied.found_objects(&new)
        };
        self.plan.objects.compare(old, new, applied);
    }
}

/// Which services are to give frontends to which: both have to be in one transaction, for a set takes
/// a key only after the other has let go of it.
fn transfers(state: &FamilyState) -> BTreeMap<&ObjectName, Vec<&ObjectName>> {
    let mut transfers: BTreeMap<&ObjectName, Vec<&ObjectName>> = BTreeMap::new();
    if state.applied.services.is_empty() {
        return transfers;
    }
    for service in &state.dirty {
        let placements = state.applied.placements(service).iter();
        for frontend in placements.flat_map(|placement| &placement.frontends) {
            let Some(owner) = state.claims.owner(&frontend.key) else { continue };
            if owner.service == *service {
                continue;
            }
            if let Some(other) = state.dirty.get(&owner.service) {
                transfers.entry(service).or_default().push(other);
                transfers.entry(other).or_default().push(service);
            }
        }
    }
    transfers
}

/// What was found in the kernel and has no owner goes, as much as fits.
fn leftovers(state: &FamilyState, limit: usize, changes: &mut Changes) {
    let all = state.applied.found.iter();
    let keys = all.flat_map(|(&set, elements)| elements.keys().map(move |key| (set, *key)));
    for (set, key) in keys.take(limit.saturating_sub(changes.len()).max(1)) {
        changes.orphaned(set, key);
    }
}

// Chains and sets of single services: what comes, what goes, what is found.

/// Chains and sets of single services that come and go.
#[derive(Debug, Default)]
pub(super) struct ObjectChanges {
    pub(super) ops: Vec<Op>,
    pub(super) used_chains: BTreeSet<Name>,
    pub(super) used_sets: BTreeSet<Name>,
    pub(super) stale_chains: BTreeSet<Name>,
    pub(super) stale_sets: BTreeSet<Name>,
    /// Elements that are added and deleted.
    pub(super) len: usize,
}

impl ObjectChanges {
    pub(super) fn compare(&mut self, old: ServiceObjects, new: ServiceObjects, applied: &Applied) {
        for (set, elements) in &new.sets {
            self.used_sets.insert(set.name.clone());
            match old.sets.iter().find(|(known, _)| known.name == set.name) {
                None => {
                    self.ops.push(Op::AddSet(set.clone()));
                    if applied.garbage_sets.contains(&set.name) {
                        self.ops.push(Op::FlushSet(set.name.clone()));
                    }
                    self.add(&set.name, elements.clone());
                }
                Some((_, had)) => {
                    let gone = had.iter().filter(|e| !elements.contains(e)).cloned().collect();
                    let come = elements.iter().filter(|e| !had.contains(e)).cloned().collect();
                    self.delete(&set.name, gone);
                    self.add(&set.name, come);
                }
            }
        }
        // All chains before any rule: some refer to each other.
        for (name, _) in &new.chains {
            self.used_chains.insert(name.clone());
            if !old.chains.iter().any(|(known, _)| known == name) {
                let chain = Chain { name: name.clone(), hooked: None, comment: None };
                self.ops.push(Op::AddChain(chain));
            }
        }
        for (name, rules) in &new.chains {
            let had = old.chains.iter().find(|(known, _)| known == name).map(|(_, rules)| rules);
            if had == Some(rules) {
                continue;
            }
            // Also when it is new: it may be garbage that was not collected yet.
            self.ops.push(Op::FlushChain(name.clone()));
            self.ops.extend(rules.iter().map(|rule| Op::AddRule(name.clone(), rule.clone())));
        }
        let stale = |names: &BTreeSet<Name>, name: &Name| !names.contains(name);
        self.stale_chains
            .extend(old.chains.into_iter().map(|(n, _)| n).filter(|n| stale(&self.used_chains, n)));
        self.stale_sets.extend(
            old.sets.into_iter().map(|(set, _)| set.name).filter(|n| stale(&self.used_sets, n)),
        );
    }

    fn add(&mut self, set: &Name, elements: Vec<Element>) {
        self.len += elements.len();
        if !elements.is_empty() {
            self.ops.push(Op::AddElements(set.clone(), elements));
        }
    }

    fn delete(&mut self, set: &Name, elements: Vec<Element>) {
        self.len += elements.len();
        if !elements.is_empty() {
            self.ops.push(Op::DeleteElements(set.clone(), elements));
        }
    }
}

impl Applied {
    /// Objects found in the kernel under the names of wanted ones.
    pub(super) fn found_objects(&self, wanted: &ServiceObjects) -> ServiceObjects {
        let mut objects = ServiceObjects::default();
        for (set, _) in &wanted.sets {
            if let Some((found, elements)) = self.found_sets.get(&set.name) {
                let elements =
                    if set.dynamic { Vec::new() } else { elements.values().cloned().collect() };
                objects.sets.push((found.clone(), elements));
            }
        }
        for (name, _) in &wanted.chains {
            if let Some(rules) = self.found_chains.get(name) {
                objects.chains.push((name.clone(), rules.clone()));
            }
        }
        objects
    }
}
