//! Parts of the program that are written when a service first needs them.
//!
//! Every packet of a node pays for each of our hooks, and a new flow for each lookup on its way, also
//! for those that cannot find anything. So what few clusters use is not there from the start: the larger
//! classes of lists, session affinity, policy Local, source ranges, ended connections. Each is a few rules before or after
//! those of chains of the fixed program. They stay, but for the hooks of source ranges, which every
//! packet passes: they go with the last service that has some.

use std::net::SocketAddr;

use super::chains::{
    FILTERS, FIREWALL_CHECK, MASQUERADING, ORIGINAL, ORIGINAL_NODE_PORT, REJECT, REMEMBERING, base,
    dialled, frontends_chain, local_ips, local_policy_chain, pick_chain,
};
use super::rule::{CtState, Part, rule};
use super::set::LocalAddresses;
use super::{Class, FrontendSpace, ListScope, SetId};
use crate::model::Family;
use crate::ruleset::{Chain, ChainType, Element, Hook, Key, Name, Rule, Set};

/// Draws per list: with at least a quarter of the slots filled, all of them miss in at most one of
/// a hundred flows, and then a slot of the first quarter is taken, so every endpoint's share is
/// within 1 % of 1/N.
const DRAWS: usize = 16;

/// A part of the program that a cluster may never need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Extension {
    /// Lists of a class with slots.
    Class(FrontendSpace, ListScope, Class),
    /// Session affinity: known clients are looked for first, and all are remembered after DNAT.
    Affinity,
    /// `externalTrafficPolicy: Local`; after affinity.
    LocalPolicy,
    /// Source ranges of load-balancer frontends are checked before DNAT.
    SourceRanges,
    /// Late packets of connections that were ended are refused, where the kernel does not take them for
    /// new ones (`nf_conntrack_tcp_loose=0`).
    EndedConnections,
}

/// What an extension adds to a table, in the order in which it is written.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ExtensionObjects {
    /// Sets and maps of its own.
    pub sets: Vec<Set>,
    pub chain: Option<(Chain, Vec<Rule>)>,
    /// Rules to append to chains of the fixed program, which lead there.
    pub dispatch: Vec<(Name, Rule)>,
    /// Rules that come before those of chains of the fixed program.
    pub before: Vec<(Name, Rule)>,
    /// Hooks of its own, which are there only as long as a service needs them.
    pub base_chains: Vec<(Chain, Vec<Rule>)>,
}

impl Extension {
    /// All but the classes.
    pub const FEATURES: [Extension; 4] = [
        Extension::Affinity,
        Extension::LocalPolicy,
        Extension::SourceRanges,
        Extension::EndedConnections,
    ];

    /// The extension without which elements of a set have no effect.
    pub fn of(set: SetId) -> Option<Extension> {
        match set {
            SetId::Endpoints(space, scope, class) | SetId::Members(space, scope, class) => {
                (class != Class::ONE).then_some(Extension::Class(space, scope, class))
            }
            SetId::Sticky(_) | SetId::Remember(_) => Some(Extension::Affinity),
            SetId::LocalPolicy(_) => Some(Extension::LocalPolicy),
            SetId::Restricted => Some(Extension::SourceRanges),
            SetId::EndedConnections => Some(Extension::EndedConnections),
            _ => None,
        }
    }

    /// Every extension there can be.
    pub fn all() -> impl Iterator<Item = Extension> {
        let classes = Class::all_with_slots()
            .map(|(space, scope, class)| Extension::Class(space, scope, class));
        Extension::FEATURES.into_iter().chain(classes)
    }

    /// Its objects in a family's table, `addresses` being what the program knows of the node's.
    pub fn objects(self, family: Family, addresses: LocalAddresses) -> ExtensionObjects {
        match self {
            Extension::Class(space, scope, class) => class_objects(family, space, scope, class),
            Extension::Affinity => affinity(family, addresses),
            Extension::LocalPolicy => ExtensionObjects {
                before: FrontendSpace::BOTH.map(|space| local_policy(family, space)).into(),
                ..ExtensionObjects::default()
            },
            Extension::SourceRanges => ExtensionObjects {
                base_chains: firewall(family).into(),
                ..ExtensionObjects::default()
            },
            Extension::EndedConnections => ExtensionObjects {
                sets: vec![SetId::EndedConnections.declaration(family)],
                before: FILTERS.map(|chain| (chain.into(), ended_connection(family))).into(),
                ..ExtensionObjects::default()
            },
        }
    }

    pub fn hooks(self, family: Family) -> Vec<Name> {
        // They do not depend on the node's addresses.
        let base_chains = self.objects(family, LocalAddresses::Chosen).base_chains;
        base_chains.into_iter().map(|(chain, _)| chain.name).collect()
    }
}

/// Of the packets that conntrack can make nothing of, those that one of a living connection may be are
/// left alone: the client would believe the reset.
fn ended_connection(family: Family) -> Rule {
    let connection = [Part::Saddr, Part::Sport, Part::Daddr, Part::Dport];
    let ended = SetId::EndedConnections.name();
    rule(family).ct_state(CtState::Invalid).is_in(&connection, ended).goto(REJECT)
}

/// A connection that was ended, as its client sent it.
pub fn ended(client: SocketAddr, dialled: SocketAddr) -> Element {
    let end = |key: Key, end: SocketAddr| key.address(end.ip()).port(end.port());
    Element::member(end(end(Key::new(), client), dialled))
}

fn local_policy(family: Family, space: FrontendSpace) -> (Name, Rule) {
    let local = SetId::LocalPolicy(space).name();
    let rule = rule(family).is_in(dialled(space), local).goto(local_policy_chain(space));
    (frontends_chain(space).into(), rule)
}

/// Before DNAT, when the packet still has the address that was dialled.
fn firewall(family: Family) -> [(Chain, Vec<Rule>); 2] {
    const PRE_DNAT: i32 = -110;
    let check = || vec![rule(family).ct_state(CtState::New).jump(FIREWALL_CHECK)];
    let chain = |name, hook| base(name, ChainType::Filter, hook, PRE_DNAT, check());
    [
        chain("filter-prerouting-pre-dnat", Hook::Prerouting),
        chain("filter-output-pre-dnat", Hook::Output),
    ]
}

fn affinity(family: Family, addresses: LocalAddresses) -> ExtensionObjects {
    let known = FrontendSpace::BOTH.map(|space| {
        let known = rule(family).vmap(dialled(space), SetId::Sticky(space).name());
        (frontends_chain(space).into(), known)
    });
    let remember = rule(family).jump(REMEMBERING);
    let dispatch = remembering(family, addresses).into_iter();
    ExtensionObjects {
        dispatch: dispatch.map(|rule| (REMEMBERING.into(), rule)).collect(),
        before: known.into_iter().chain([(MASQUERADING.into(), remember)]).collect(),
        ..ExtensionObjects::default()
    }
}

/// Session affinity is written down after DNAT, when the endpoint stands in the packet.
fn remembering(family: Family, addresses: LocalAddresses) -> Vec<Rule> {
    let node_ports = local_ips(addresses).map(|local| {
        rule(family)
            .is_in(&[Part::OriginalDaddr], local.name())
            .vmap(&ORIGINAL_NODE_PORT, SetId::Remember(FrontendSpace::NodePorts).name())
    });
    let services = rule(family).vmap(&ORIGINAL, SetId::Remember(FrontendSpace::Services).name());
    [services].into_iter().chain(node_ports).collect()
}

fn class_objects(
    family: Family,
    space: FrontendSpace,
    scope: ListScope,
    class: Class,
) -> ExtensionObjects {
    let endpoints = SetId::Endpoints(space, scope, class);
    let members = SetId::Members(space, scope, class);
    let draw = |modulus: u32| {
        let mut key = dialled(space).to_vec();
        key.push(Part::Slot(modulus));
        rule(family).dnat(&key, endpoints.name())
    };
    let mut rules: Vec<Rule> = (0..DRAWS).map(|_| draw(class.slots())).collect();
    rules.push(draw(class.slots() / 4));
    let name = pick_chain(space, scope, class);
    let dispatch = rule(family).is_in(dialled(space), members.name()).goto(name.clone());
    ExtensionObjects {
        sets: vec![members.declaration(family), endpoints.declaration(family)],
        chain: Some((Chain { name, hooked: None, comment: None }, rules)),
        dispatch: vec![(pick_chain(space, scope, Class::ONE), dispatch)],
        ..ExtensionObjects::default()
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
                let leads = objects.dispatch.into_iter().chain(objects.before);
                for (chain, _) in leads {
                    let mut chains = program.chains.iter().chain(&program.base_chains);
                    let known = chains.any(|(known, _)| known.name == chain);
                    assert!(known, "{extension:?}: no chain {chain}");
                }
            }
        }
    }

    #[test]
    fn only_sets_that_few_clusters_use_need_one() {
        let needed: Vec<SetId> =
            SetId::fixed().filter(|set| Extension::of(*set).is_some()).collect();
        let of_plane =
            |space| [SetId::LocalPolicy, SetId::Sticky, SetId::Remember].map(|s| s(space));
        let want = [SetId::EndedConnections, SetId::Restricted]
            .into_iter()
            .chain(FrontendSpace::BOTH.into_iter().flat_map(of_plane));
        assert_eq!(needed, want.collect::<Vec<_>>());
    }
}
