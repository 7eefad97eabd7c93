//! Parts of the program that are written when a service first needs them, and then stay.
//!
//! A new flow pays for every lookup on its way, also for those that cannot find anything. So what few
//! clusters use is not there from the start: the larger classes of lists, the memory of session
//! affinity, the check of source ranges. Each is a few rules appended to chains that the fixed
//! program already jumps to.

use super::chains::{
    DIALLED, FIREWALL_CHECK, ORIGINAL, ORIGINAL_NODE_PORT, REMEMBERING, dialled, local_ips,
    pick_chain,
};
use super::rule::{Part, rule};
use super::set::LocalAddresses;
use super::{Class, Plane, Scope, SetId};
use crate::model::Family;
use crate::ruleset::{Chain, Name, Rule, Set};

/// Draws per list: with at least a quarter of the slots filled, all of them miss in at most one of
/// a hundred flows, and then a slot of the first quarter is taken, so every endpoint's share is
/// within 1 % of 1/N.
const DRAWS: usize = 16;

/// A part of the program that a cluster may never need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Extension {
    /// Lists of a class with slots.
    Class(Plane, Scope, Class),
    /// Session affinity remembers clients after DNAT.
    Remembering,
    /// Source ranges of load-balancer frontends are checked before DNAT.
    SourceRanges,
}

/// What an extension adds to a table, in the order in which it is written.
#[derive(Debug, Clone, PartialEq)]
pub struct ExtensionObjects {
    /// Sets and maps of its own.
    pub sets: Vec<Set>,
    /// A chain of its own.
    pub chain: Option<(Chain, Vec<Rule>)>,
    /// Rules to append to chains of the fixed program, which lead there.
    pub dispatch: Vec<(Name, Rule)>,
}

impl Extension {
    /// The extension without which elements of a set have no effect.
    pub fn of(set: SetId) -> Option<Extension> {
        match set {
            SetId::Endpoints(plane, scope, class) | SetId::Members(plane, scope, class) => {
                (class != Class::ONE).then_some(Extension::Class(plane, scope, class))
            }
            SetId::Remember(_) => Some(Extension::Remembering),
            SetId::Restricted => Some(Extension::SourceRanges),
            _ => None,
        }
    }

    /// Every extension there can be.
    pub fn all() -> impl Iterator<Item = Extension> {
        let classes = Class::all_with_slots()
            .map(|(plane, scope, class)| Extension::Class(plane, scope, class));
        [Extension::Remembering, Extension::SourceRanges].into_iter().chain(classes)
    }

    /// Its objects in a family's table, `addresses` being what the program knows of the node's.
    pub fn objects(self, family: Family, addresses: LocalAddresses) -> ExtensionObjects {
        match self {
            Extension::Class(plane, scope, class) => class_objects(family, plane, scope, class),
            Extension::Remembering => rules(REMEMBERING, remembering(family, addresses)),
            Extension::SourceRanges => {
                let check = rule(family).vmap(&DIALLED, SetId::Restricted.name());
                rules(FIREWALL_CHECK, vec![check])
            }
        }
    }
}

fn rules(chain: &str, rules: Vec<Rule>) -> ExtensionObjects {
    let dispatch = rules.into_iter().map(|rule| (chain.into(), rule)).collect();
    ExtensionObjects { sets: Vec::new(), chain: None, dispatch }
}

/// Session affinity is written down after DNAT, when the endpoint stands in the packet.
fn remembering(family: Family, addresses: LocalAddresses) -> Vec<Rule> {
    let node_ports = local_ips(addresses).map(|local| {
        rule(family)
            .is_in(&[Part::OriginalDaddr], local.name())
            .vmap(&ORIGINAL_NODE_PORT, SetId::Remember(Plane::NodePorts).name())
    });
    let services = rule(family).vmap(&ORIGINAL, SetId::Remember(Plane::Services).name());
    [services].into_iter().chain(node_ports).collect()
}

fn class_objects(family: Family, plane: Plane, scope: Scope, class: Class) -> ExtensionObjects {
    let endpoints = SetId::Endpoints(plane, scope, class);
    let members = SetId::Members(plane, scope, class);
    let draw = |modulus: u32| {
        let mut key = dialled(plane).to_vec();
        key.push(Part::Slot(modulus));
        rule(family).dnat(&key, endpoints.name())
    };
    let mut rules: Vec<Rule> = (0..DRAWS).map(|_| draw(class.slots())).collect();
    rules.push(draw(class.slots() / 4));
    let name = pick_chain(plane, scope, class);
    let dispatch = rule(family).is_in(dialled(plane), members.name()).goto(name.clone());
    ExtensionObjects {
        sets: vec![members.declaration(family), endpoints.declaration(family)],
        chain: Some((Chain { name, hooked: None, comment: None }, rules)),
        dispatch: vec![(pick_chain(plane, scope, Class::ONE), dispatch)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::RuleOptions;
    use crate::program::program;

    // An extension leads nowhere unless the fixed program has the chain it is appended to.
    #[test]
    fn every_extension_has_its_place_in_the_program() {
        for family in Family::BOTH {
            let program = program(family, &RuleOptions::nftables());
            for extension in Extension::all() {
                let objects = extension.objects(family, LocalAddresses::Chosen);
                assert!(!objects.dispatch.is_empty(), "{extension:?}");
                for (chain, _) in objects.dispatch {
                    let known = program.chains.iter().any(|(known, _)| known.name == chain);
                    assert!(known, "{extension:?}: no chain {chain}");
                }
            }
        }
    }

    #[test]
    fn only_sets_that_few_clusters_use_need_one() {
        let needed: Vec<SetId> =
            SetId::fixed().filter(|set| Extension::of(*set).is_some()).collect();
        let remember = Plane::BOTH.map(SetId::Remember);
        assert_eq!(needed, [SetId::Restricted, remember[0], remember[1]]);
    }
}
