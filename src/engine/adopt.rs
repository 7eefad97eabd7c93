//! Taking over what the kernel already has: after a restart, a foreign change, or an outcome that is
//! not known.

use std::collections::{BTreeMap, BTreeSet};

use foldhash::HashMap;

use super::affinity::remembered;
use super::applied::{Applied, Stage};
use super::{Engine, Statics};
use crate::model::Family;
use crate::program::objects::is_as_declared;
use crate::program::{Class, Plane, Program, Scope, SetId, class_objects};
use crate::ruleset::{Element, Key, Name, Rule, Ruleset, Set};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adoption {
    /// No table: a cold start.
    Nothing,
    /// A table that is not ours, or is not as we leave it: it is replaced in one transaction.
    Replace,
    /// Our table: only differences are committed.
    Adopted,
}

impl Engine {
    /// Replaces what is believed of a family's table by what was read from the kernel, and marks
    /// every service dirty. Affinity survives in both cases.
    pub fn adopt(&mut self, family: Family, observed: &Ruleset) -> Adoption {
        let program = &self.state[family].program;
        let (applied, adoption) = match &observed.table {
            None => (Applied::default(), Adoption::Nothing),
            Some(table) => {
                // The kernel never changes this of a table that exists; and to a persistent one
                // other kube-proxies, who could take a plain one over, can add nothing.
                let suits = self.owned == table.persist;
                match recognise(observed, program, family).filter(|_| suits) {
                    Some(mut applied) => {
                        applied.orphan = self.owned && !table.owner;
                        (applied, Adoption::Adopted)
                    }
                    None => (replacing(observed), Adoption::Replace),
                }
            }
        };
        let state = &mut self.state[family];
        state.applied = applied;
        state.dirty = self.store.services().map(|service| service.name.clone()).collect();
        for service in &state.set_aside {
            state.dirty.remove(service);
        }
        adoption
    }
}

/// The applied state of a table that is to be replaced: only which clients are remembered by
/// affinity is carried over.
fn replacing(observed: &Ruleset) -> Applied {
    Applied { stage: Stage::Foreign, carried: remembered(observed), ..Applied::default() }
}

/// Reads our own table; `None` if anything of the program is not as we write it.
fn recognise(observed: &Ruleset, program: &Program, family: Family) -> Option<Applied> {
    if observed.table.as_ref()?.comment.as_deref() != Some(&program.comment) {
        return None;
    }
    let mut rest: BTreeMap<&Name, (&Set, &BTreeMap<Key, Element>)> =
        observed.sets.iter().map(|(name, (set, elements))| (name, (set, elements))).collect();
    let mut applied = Applied { stage: Stage::Attached, ..Applied::default() };

    let mut known: Vec<SetId> = SetId::fixed().collect();
    let classes = classes(observed, family)?;
    for &(plane, scope, class) in &classes {
        known.push(SetId::Members(plane, scope, class));
        known.push(SetId::Endpoints(plane, scope, class));
    }
    for id in known {
        let declared = program.sets.iter().any(|set| set.name == id.name());
        match rest.remove(&id.name()) {
            Some((set, elements)) if *set == id.declaration(family) => {
                let elements: HashMap<Key, Element> = elements
                    .iter()
                    .map(|(key, element)| (*key, Element { packets: None, ..element.clone() }))
                    .collect();
                if !elements.is_empty() {
                    applied.found.insert(id, elements);
                }
            }
            Some(_) => return None,
            None if declared => return None,
            None => {}
        }
    }
    // A set cannot be declared anew while something refers to it.
    if rest.values().any(|(set, _)| !is_as_declared(set, family)) {
        return None;
    }
    applied.found_sets = rest
        .into_iter()
        .map(|(name, (set, elements))| (name.clone(), (set.clone(), elements.clone())))
        .collect();

    applied.classes = classes;
    applied.statics = Statics::default();
    recognise_chains(observed, program, family, &mut applied)?;
    Some(applied)
}

/// The classes whose objects are all there and as we write them; `None` if some are not.
fn classes(observed: &Ruleset, family: Family) -> Option<BTreeSet<(Plane, Scope, Class)>> {
    let mut found = BTreeSet::new();
    for (plane, scope, class) in Class::all_with_slots() {
        if !observed.sets.contains_key(&SetId::Endpoints(plane, scope, class).name()) {
            continue;
        }
        let objects = class_objects(family, plane, scope, class);
        for set in &objects.sets {
            if observed.sets.get(&set.name)?.0 != *set {
                return None;
            }
        }
        let (chain, rules) = objects.chain?;
        if observed.chains.get(&chain.name)?.1 != rules {
            return None;
        }
        let (dispatcher, rule) = objects.dispatch?;
        let dispatched = &observed.chains.get(&dispatcher)?.1;
        if dispatched.iter().filter(|known| **known == rule).count() != 1 {
            return None;
        }
        found.insert((plane, scope, class));
    }
    Some(found)
}

/// Checks the program's chains and keeps those of single services. Base chains may all be missing:
/// then a cold start was interrupted.
fn recognise_chains(
    observed: &Ruleset,
    program: &Program,
    family: Family,
    applied: &mut Applied,
) -> Option<()> {
    let mut expected: BTreeMap<Name, Vec<Rule>> =
        program.chains.iter().map(|(chain, rules)| (chain.name.clone(), rules.clone())).collect();
    let mut dispatched: BTreeMap<Name, usize> = BTreeMap::new();
    for &(plane, scope, class) in &applied.classes {
        let objects = class_objects(family, plane, scope, class);
        let (chain, rules) = objects.chain?;
        expected.insert(chain.name, rules);
        *dispatched.entry(objects.dispatch?.0).or_default() += 1;
    }
    let attached = program
        .base_chains
        .iter()
        .filter(|(chain, rules)| {
            observed.chains.get(&chain.name) == Some(&(chain.clone(), rules.clone()))
        })
        .count();
    let present = program
        .base_chains
        .iter()
        .filter(|(chain, _)| observed.chains.contains_key(&chain.name))
        .count();
    match (attached, present) {
        (0, 0) => applied.stage = Stage::Detached,
        (same, _) if same == program.base_chains.len() => applied.stage = Stage::Attached,
        _ => return None,
    }
    for (name, rules) in &expected {
        let found = &observed.chains.get(name)?.1;
        // Dispatch rules of classes follow the program's own, in the order in which they came.
        let own = rules.len();
        let more = dispatched.get(name).copied().unwrap_or(0);
        if found.len() != own + more || found[..own] != rules[..] {
            return None;
        }
    }
    for (name, (chain, rules)) in &observed.chains {
        let of_program = expected.contains_key(name)
            || program.base_chains.iter().any(|(base, _)| base.name == *name);
        if !of_program {
            if chain.hooked.is_some() {
                return None;
            }
            applied.found_chains.insert(name.clone(), rules.clone());
        }
    }
    Some(())
}
