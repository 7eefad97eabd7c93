//! Taking over what the kernel already has: after a restart, a foreign change, or an outcome that is
//! not known.

use std::collections::{BTreeMap, BTreeSet};

use foldhash::HashMap;

use super::affinity::remembered;
use super::applied::{Applied, Stage};
use super::{Engine, NodeElements};
use crate::model::Family;
use crate::program::objects::is_as_declared;
use crate::program::{Class, Extension, Program, SetId};
use crate::ruleset::{Chain, Element, Key, Name, Rule, Ruleset, Set};

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
    /// every service dirty, of those that are gone the ones that nothing was planned for since. Affinity survives in both cases.
    pub fn adopt(&mut self, family: Family, observed: &Ruleset) -> Adoption {
        let program = &self.state[family].program;
        let (applied, adoption) = match &observed.table {
            None => (Applied::default(), Adoption::Nothing),
            Some(table) => {
                // The kernel never changes this of a table that exists; and to a persistent one
                // other kube-proxies, who could take a plain one over, can add nothing.
                let suits = self.owned == table.persist;
                let recognised = recognise(observed, program, family).filter(|_| suits);
                let adoption = match recognised {
                    Some(_) => Adoption::Adopted,
                    None => Adoption::Replace,
                };
                let applied = recognised.unwrap_or_else(|| replacing(observed, family));
                (Applied { owner: table.owner, ..applied }, adoption)
            }
        };
        let state = &mut self.state[family];
        let believed = std::mem::replace(&mut state.applied, applied);
        state.applied.before = believed.before;
        state.applied.before.extend(believed.services);
        // Who is gone stays dirty: whoever is told of what changed has not heard of it yet.
        state.dirty.extend(self.store.services().map(|service| service.name.clone()));
        adoption
    }
}

/// The applied state of a table that is to be replaced. Which clients are remembered by affinity is
/// carried over, and what services keep that turn out to be set aside.
fn replacing(observed: &Ruleset, family: Family) -> Applied {
    Applied {
        stage: Stage::Foreign,
        carried: remembered(observed),
        previous: Some(Box::new(alike(observed, family))),
        ..Applied::default()
    }
}

/// What another table has in sets like ours.
fn alike(observed: &Ruleset, family: Family) -> Applied {
    let mut applied = Applied::default();
    let classes = Class::all_with_slots().flat_map(|(space, scope, class)| {
        [SetId::Members(space, scope, class), SetId::Endpoints(space, scope, class)]
    });
    for id in SetId::fixed().filter(|id| !id.is_passing()).chain(classes) {
        let Some((set, elements)) = observed.sets.get(&id.name()) else { continue };
        let ours = id.declaration(family);
        if (&set.key, &set.kind) == (&ours.key, &ours.kind) && !elements.is_empty() {
            applied.extensions.extend(Extension::of(id));
            applied.found.insert(id, without_counters(elements));
        }
    }
    // Of affinity its time, and of source ranges the networks.
    let chains = observed.chains.iter().filter(|(name, _)| name.as_str().starts_with("remember"));
    applied.found_chains = chains.map(|(name, (_, rules))| (name.clone(), rules.clone())).collect();
    let sets = observed.sets.iter().filter(|(name, (set, _))| {
        name.as_str().starts_with("ranges-") && is_as_declared(set, family)
    });
    applied.found_sets = sets.map(|(name, found)| (name.clone(), found.clone())).collect();
    applied
}

fn without_counters(elements: &BTreeMap<Key, Element>) -> HashMap<Key, Element> {
    let uncounted = |element: &Element| Element { packets: None, ..element.clone() };
    elements.iter().map(|(key, element)| (*key, uncounted(element))).collect()
}

/// Reads our own table; `None` if anything of the program is not as we write it.
fn recognise(observed: &Ruleset, program: &Program, family: Family) -> Option<Applied> {
    if observed.table.as_ref()?.comment.as_deref() != Some(&program.comment) {
        return None;
    }
    if !program.counters.iter().all(|name| observed.counters.contains_key(name)) {
        return None;
    }
    let mut rest: BTreeMap<&Name, (&Set, &BTreeMap<Key, Element>)> =
        observed.sets.iter().map(|(name, (set, elements))| (name, (set, elements))).collect();
    let mut applied = Applied { stage: Stage::Attached, ..Applied::default() };

    let mut known: Vec<SetId> = SetId::fixed().collect();
    applied.extensions = extensions(observed, program, family)?;
    for (space, scope, class) in applied.classes() {
        known.push(SetId::Members(space, scope, class));
        known.push(SetId::Endpoints(space, scope, class));
    }
    for id in known {
        let declared = program.sets.iter().find(|set| set.name == id.name());
        match rest.remove(&id.name()) {
            Some((set, _)) if declared.map_or(*set != id.declaration(family), |d| set != d) => {
                return None;
            }
            Some((_, elements)) if elements.is_empty() || id.is_passing() => {}
            Some((_, elements)) => {
                applied.found.insert(id, without_counters(elements));
            }
            None if declared.is_some() => return None,
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

    applied.node_elements = NodeElements::default();
    recognise_chains(observed, program, family, &mut applied)?;
    Some(applied)
}

/// The extensions whose objects are all there and as we write them; `None` if some are there in part.
fn extensions(
    observed: &Ruleset,
    program: &Program,
    family: Family,
) -> Option<BTreeSet<Extension>> {
    let mut found = BTreeSet::new();
    for extension in Extension::all() {
        let objects = extension.objects(family, program.addresses);
        let has_set = |set: &Set| observed.sets.get(&set.name).map(|(found, _)| found == set);
        let sets = objects.sets.iter().map(has_set);
        let chain = objects.chain.iter().map(|(chain, rules)| {
            observed.chains.get(&chain.name).map(|(_, found)| found == rules)
        });
        let dispatch = objects.dispatch.iter().map(|(chain, rule)| {
            let rules = &observed.chains.get(chain)?.1;
            let times = rules.iter().filter(|known| *known == rule).count();
            (times > 0).then_some(times == 1)
        });
        let before = objects
            .before
            .iter()
            .map(|(chain, rule)| observed.chains.get(chain)?.1.contains(rule).then_some(true));
        let hooks = objects.base_chains.iter().map(|(chain, rules)| {
            let (known, found) = observed.chains.get(&chain.name)?;
            Some(known == chain && found == rules)
        });
        let parts = sets.chain(chain).chain(dispatch).chain(before).chain(hooks);
        let parts: Vec<Option<bool>> = parts.collect();
        if parts.iter().all(|part| *part == Some(true)) {
            found.insert(extension);
        } else if parts.iter().any(Option::is_some) {
            return None;
        }
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
    let mut hooks: BTreeSet<Name> = BTreeSet::new();
    for extension in &applied.extensions {
        let objects = extension.objects(family, program.addresses);
        expected.extend(objects.chain.map(|(chain, rules)| (chain.name, rules)));
        hooks.extend(extension.hooks(family));
        let regular = |chain: &Name| program.chains.iter().any(|(known, _)| known.name == *chain);
        for (chain, _) in objects.before.into_iter().filter(|(chain, _)| regular(chain)) {
            let rules = program.rules_after(&chain, family, &applied.extensions);
            expected.insert(chain, rules);
        }
        for (chain, _) in objects.dispatch {
            *dispatched.entry(chain).or_default() += 1;
        }
    }
    let rules = |chain: &Name| program.rules_after(chain, family, &applied.extensions);
    let as_written = |(chain, _): &&(Chain, Vec<Rule>)| {
        observed.chains.get(&chain.name) == Some(&(chain.clone(), rules(&chain.name)))
    };
    let attached = program.base_chains.iter().filter(as_written).count();
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
        // Dispatch rules of extensions follow the program's own, in the order in which they came.
        let own = rules.len();
        let more = dispatched.get(name).copied().unwrap_or(0);
        if found.len() != own + more || found[..own] != rules[..] {
            return None;
        }
    }
    for (name, (chain, rules)) in &observed.chains {
        let of_program = expected.contains_key(name)
            || hooks.contains(name)
            || program.base_chains.iter().any(|(base, _)| base.name == *name);
        if !of_program {
            // A twin whose replacement ended before it could end the handover is like other leftovers.
            if chain.hooked.is_some() && !chain.is_handover() {
                return None;
            }
            applied.found_chains.insert(name.clone(), rules.clone());
        }
    }
    Some(())
}
