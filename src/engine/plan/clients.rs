//! Affinity maps whose members change.

use std::collections::BTreeMap;

use crate::engine::FamilyState;
use crate::engine::applied::{Applied, surviving_clients};
use crate::kernel::Op;
use crate::model::Family;
use crate::program::{Placement, Role, clients_map};
use crate::ruleset::{Element, Name};
use crate::topology::Backend;

/// Affinity maps of which a member left, with the members that remain.
pub(super) fn shrunken_maps(
    before: &[Placement],
    after: &[Placement],
) -> Vec<(Name, Vec<Backend>)> {
    let mut maps = Vec::new();
    for old in before.iter().filter(|old| old.affinity.is_some()) {
        let Some(new) = after.iter().find(|new| new.name == old.name && new.affinity.is_some())
        else {
            continue;
        };
        for local in [false, true] {
            let members = |p: &Placement| if local { p.local.clone() } else { p.cluster.clone() };
            let uses = |p: &Placement| {
                p.frontends.iter().any(|f| match p.role(f) {
                    Role::Cluster => !local,
                    Role::Local => local,
                    Role::LocalPolicy => true,
                })
            };
            let remaining = members(new).members().to_vec();
            let lost = members(old).members().iter().any(|member| !remaining.contains(member));
            if lost && uses(old) && uses(new) {
                maps.push((clients_map(&old.name, local), remaining));
            }
        }
    }
    maps
}

/// The affinity maps of some placements, with the members they may refer to.
pub(super) fn all_maps(placements: &[Placement]) -> Vec<(Name, Vec<Backend>)> {
    let sticky = placements.iter().filter(|placement| placement.affinity.is_some());
    sticky
        .flat_map(|placement| {
            [(false, &placement.cluster), (true, &placement.local)].map(|(local, slots)| {
                (clients_map(&placement.name, local), slots.members().to_vec())
            })
        })
        .collect()
}

/// Operations that leave only the given clients in an affinity map.
pub fn replace_clients(map: &Name, survivors: Vec<Element>) -> Vec<Op> {
    let mut ops = vec![Op::FlushSet(map.clone())];
    if !survivors.is_empty() {
        ops.push(Op::AddElements(map.clone(), survivors));
    }
    ops
}

/// Leaves in an affinity map the clients of endpoints that are members still. Also returns how many
/// elements that touches.
pub(super) fn remembered_clients(
    map: &Name,
    members: &[Backend],
    family: Family,
    state: &FamilyState,
    clients: &BTreeMap<Name, Vec<Element>>,
) -> (Vec<Op>, usize) {
    if let Some(carried) = state.applied.carried.get(map) {
        let left = surviving_clients(carried, members, family).unwrap_or_else(|| carried.clone());
        let fill = (!left.is_empty()).then(|| Op::AddElements(map.clone(), left));
        return (fill.into_iter().collect(), carried.len());
    }
    let known = clients.get(map).cloned().or_else(|| state.applied.clients(map));
    let known = known.unwrap_or_default();
    let survivors = surviving_clients(&known, members, family);
    let touched = survivors.as_ref().map_or(0, |left| known.len() + left.len());
    (survivors.map(|left| replace_clients(map, left)).unwrap_or_default(), touched)
}

impl Applied {
    /// Whether the content of an affinity map is known from a dump.
    pub(super) fn remembers(&self, map: &Name) -> bool {
        self.carried.contains_key(map) || self.found_sets.contains_key(map)
    }

    /// The content of an affinity map of a table that was adopted.
    pub(super) fn clients(&self, map: &Name) -> Option<Vec<Element>> {
        let (_, clients) = self.found_sets.get(map)?;
        Some(clients.values().cloned().collect())
    }
}
