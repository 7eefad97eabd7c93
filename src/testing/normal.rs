//! What a table means, apart from where in its slots an endpoint happens to be.
//!
//! Two tables with equal normal forms treat every packet alike. Slots, classes and other extensions of
//! the program depend on history by design, so histories are compared in this form.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::model::Family;
use crate::program::set::LocalAddresses;
use crate::program::{Class, Extension, FrontendSpace, ListScope, SetId};
use crate::ruleset::{Element, Key, Name, Rule, Ruleset, Value};

#[derive(Debug, Clone, PartialEq)]
pub struct NormalForm {
    /// The table's comment.
    pub table: Option<String>,
    /// Chains without those of extensions, and without the rules that lead to them.
    pub chains: BTreeMap<Name, Vec<Rule>>,
    /// Elements of all sets except those of lists; clients of affinity maps are left out, packets
    /// put them there.
    pub sets: BTreeMap<Name, BTreeSet<(Key, Option<Key>, Value)>>,
    /// Lists: endpoints by space, scope and frontend.
    pub lists: BTreeMap<(FrontendSpace, ListScope, Key), BTreeSet<Key>>,
}

/// The normal form of a table.
///
/// # Panics
/// If a list breaks the shape that [`crate::program::Slots`] promises: gaps, several classes at
/// once, too many free slots, a duplicate endpoint.
pub fn normal_form(ruleset: &Ruleset) -> NormalForm {
    let mut lists: BTreeMap<(FrontendSpace, ListScope, Key), (Class, Vec<Key>)> = BTreeMap::new();
    let (extra_chains, dispatch) = extensions(ruleset.family);
    let mut of_lists = BTreeSet::new();
    let spaces =
        FrontendSpace::BOTH.into_iter().flat_map(|p| ListScope::BOTH.map(|s| (p, s, Class::ONE)));
    for (space, scope, class) in spaces.chain(Class::all_with_slots()) {
        let endpoints = SetId::Endpoints(space, scope, class).name();
        let members = SetId::Members(space, scope, class).name();
        if let Some((_, elements)) = ruleset.sets.get(&endpoints) {
            collect(&mut lists, (space, scope, class), ruleset.family, elements);
        }
        if let Some((_, elements)) = ruleset.sets.get(&members) {
            for frontend in elements.keys() {
                let list = lists.get(&(space, scope, *frontend));
                let list = list.unwrap_or_else(|| panic!("{members}: {frontend:?} has no list"));
                assert_eq!(list.0, class, "{members}: {frontend:?}");
            }
        }
        of_lists.extend([endpoints, members]);
    }
    for ((space, scope, frontend), (class, members)) in &lists {
        check(ruleset, (*space, *scope, *class), frontend, members);
    }
    NormalForm {
        table: ruleset.table.as_ref().and_then(|table| table.comment.clone()),
        chains: ruleset
            .chains
            .iter()
            .filter(|(name, _)| !extra_chains.contains(*name))
            .map(|(name, (_, rules))| {
                let own = rules.iter().filter(|rule| !dispatch.contains(rule)).cloned().collect();
                (name.clone(), own)
            })
            .collect(),
        sets: ruleset
            .sets
            .iter()
            // What was ended is nothing that a table should have.
            .filter(|(name, _)| **name != SetId::EndedConnections.name())
            .filter(|(name, _)| !of_lists.contains(*name))
            .map(|(name, (set, elements))| {
                let elements = elements.values().filter(|_| !set.dynamic);
                (name.clone(), elements.map(|e| (e.key, e.last, e.value.clone())).collect())
            })
            .collect(),
        lists: lists
            .into_iter()
            .map(|(key, (_, members))| (key, members.into_iter().collect()))
            .collect(),
    }
}

/// Fails unless two tables mean the same, and then names what differs and nothing else.
#[track_caller]
pub fn assert_alike(found: &NormalForm, wanted: &NormalForm, context: impl fmt::Display) {
    if found == wanted {
        return;
    }
    let mut differing = Vec::new();
    if found.table != wanted.table {
        differing.push(format!("table: {:?}, not {:?}", found.table, wanted.table));
    }
    differing.extend(differences("chain", &found.chains, &wanted.chains));
    differing.extend(differences("set", &found.sets, &wanted.sets));
    differing.extend(differences("list", &found.lists, &wanted.lists));
    panic!("{context}: {} differences\n{}", differing.len(), differing.join("\n"));
}

fn differences<K: Ord + fmt::Debug, V: PartialEq + fmt::Debug>(
    what: &str,
    found: &BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
) -> Vec<String> {
    let keys: BTreeSet<&K> = found.keys().chain(wanted.keys()).collect();
    let differs = |key: &&K| found.get(*key) != wanted.get(*key);
    let told = |key: &K| match (found.get(key), wanted.get(key)) {
        (Some(found), Some(wanted)) => format!("{what} {key:?}: {found:?}, not {wanted:?}"),
        (None, _) => format!("{what} {key:?} is missing"),
        (_, None) => format!("{what} {key:?} is too many"),
    };
    keys.into_iter().filter(differs).map(told).collect()
}

/// Chains of extensions, and the rules that lead to them: once there, they stay.
fn extensions(family: Family) -> (BTreeSet<Name>, Vec<Rule>) {
    let addresses = [LocalAddresses::Chosen, LocalAddresses::All];
    let objects = Extension::all()
        .flat_map(|extension| addresses.map(|addresses| extension.objects(family, addresses)));
    let (mut chains, mut dispatch) = (BTreeSet::new(), Vec::new());
    for objects in objects {
        chains.extend(objects.chain.map(|(chain, _)| chain.name));
        let leads = objects.dispatch.into_iter().chain(objects.before);
        dispatch.extend(leads.map(|(_, rule)| rule));
    }
    (chains, dispatch)
}

fn collect(
    lists: &mut BTreeMap<(FrontendSpace, ListScope, Key), (Class, Vec<Key>)>,
    (space, scope, class): (FrontendSpace, ListScope, Class),
    family: Family,
    elements: &BTreeMap<Key, Element>,
) {
    let frontend_len = match space {
        FrontendSpace::Services => family.address_len() + 8,
        FrontendSpace::NodePorts => 8,
    };
    let mut by_frontend: BTreeMap<Key, BTreeMap<u32, Key>> = BTreeMap::new();
    for (key, element) in elements {
        let Value::Data(data) = &element.value else { panic!("{element:?} has no endpoint") };
        let frontend = Key::from_bytes(&key.as_bytes()[..frontend_len]).expect("a prefix fits");
        let slot = if class == Class::ONE { 0 } else { key.slot_at(frontend_len).expect("a slot") };
        by_frontend.entry(frontend).or_default().insert(slot, *data);
    }
    for (frontend, slots) in by_frontend {
        let numbers: Vec<u32> = slots.keys().copied().collect();
        let expected: Vec<u32> = (0..slots.len() as u32).collect();
        assert_eq!(numbers, expected, "gap in the slots of {frontend:?} in class {class:?}");
        let members = slots.into_values().collect();
        let other = lists.insert((space, scope, frontend), (class, members));
        assert!(other.is_none(), "{frontend:?} has lists in classes {class:?} and {other:?}");
    }
}

fn check(
    ruleset: &Ruleset,
    (space, scope, class): (FrontendSpace, ListScope, Class),
    frontend: &Key,
    members: &[Key],
) {
    let distinct: BTreeSet<&Key> = members.iter().collect();
    assert_eq!(distinct.len(), members.len(), "an endpoint twice in the list of {frontend:?}");
    let slots = class.slots() as usize;
    assert!(members.len() <= slots, "list of {frontend:?} overflows class {class:?}");
    if class == Class::ONE {
        return;
    }
    assert!(slots <= 4 || members.len() * 4 >= slots, "list of {frontend:?} too thin: {class:?}");
    let set = SetId::Members(space, scope, class).name();
    let listed = ruleset.sets.get(&set).is_some_and(|(_, e)| e.contains_key(frontend));
    assert!(listed, "{frontend:?} is not in {set}");
}
