//! What the program asks of nf_tables, feature by feature, as operations to try.
//!
//! Place in the flow: `kubeweir check` rehearses each in a table of its own. Pure.

use crate::kernel::Op;
use crate::model::Family;
use crate::program::rule::{CtState, Part, rule};
use crate::program::set::Class;
use crate::program::{CounterId, FrontendSpace, ListScope, RuleOptions, SetId, program};
use crate::ruleset::{
    Chain, ChainType, Field, Hook, Hooked, Ownership, RejectKind, Rule, Set, SetKind, Table,
};

#[derive(Debug, Clone)]
pub struct Feature {
    pub name: &'static str,
    /// Whether the agent cannot do without it.
    pub required: bool,
    pub table: Table,
    /// What to try; empty for the table itself.
    pub ops: Vec<Op>,
}

/// Every feature, simple ones first.
pub fn features(family: Family) -> Vec<Feature> {
    let owned = Table { comment: None, owner: Ownership::Ours, persist: true };
    let tables = [
        needed("nf_tables", Vec::new()),
        Feature { required: false, table: owned, ..needed("tables with an owner", Vec::new()) },
    ];
    let whole = needed("the whole program", whole(family));
    tables.into_iter().chain(sets(family)).chain(rules(family)).chain([whole]).collect()
}

fn needed(name: &'static str, ops: Vec<Op>) -> Feature {
    let table = Table { comment: None, owner: Ownership::Nobody, persist: false };
    Feature { name, required: true, table, ops }
}

fn declared(id: SetId, family: Family) -> Vec<Op> {
    vec![Op::AddSet(id.declaration(family))]
}

fn sets(family: Family) -> Vec<Feature> {
    let set = |id| declared(id, family);
    let clients = Set {
        kind: SetKind::Map(vec![Field::address(family), Field::InetService]),
        dynamic: true,
        timeout: Some(1000),
        size: Some(16),
        ..Set::plain("clients", vec![Field::address(family)])
    };
    let update = rule(family).update("clients", &[Part::Saddr], &[Part::Daddr, Part::Dport], 1000);
    vec![
        needed("sets of concatenated keys", set(SetId::Refused(FrontendSpace::Services))),
        needed("interval sets", set(SetId::ServiceCidrs)),
        needed("verdict maps", set(SetId::Restricted)),
        needed("maps filled by packets", [vec![Op::AddSet(clients)], filter(update)].concat()),
        Feature {
            required: false,
            ..needed("counters of elements", set(SetId::Connections(FrontendSpace::Services)))
        },
    ]
}

fn rules(family: Family) -> Vec<Feature> {
    let rule = || rule(family);
    let refused = SetId::Refused(FrontendSpace::Services);
    let endpoints = SetId::Endpoints(FrontendSpace::Services, ListScope::Cluster, Class::ONE);
    let slots = Op::AddSet(Set::plain("slots", vec![Field::Mark]));
    let original = [Part::OriginalDaddr, Part::L4Proto, Part::OriginalDport];
    let original = rule().is_in(&original, refused.name()).drops();
    let dnat = rule().dnat(&[Part::Daddr, Part::L4Proto, Part::Dport], endpoints.name());
    let dnat = in_chain(ChainType::Nat, Hook::Prerouting, dnat);
    let counter = Op::AddCounter(CounterId::NoEndpoints.name());
    let counted = filter(rule().counts(CounterId::NoEndpoints).drops());
    let drawn = filter(rule().is_in(&[Part::Slot(4)], "slots").done());
    vec![
        needed("conntrack state", filter(rule().ct_state(CtState::New).drops())),
        needed(
            "conntrack's original destination",
            [declared(refused, family), filter(original)].concat(),
        ),
        needed("local addresses from the fib", filter(rule().from_host().drops())),
        needed("named counters", [vec![counter], counted].concat()),
        needed("random numbers", [vec![slots], drawn].concat()),
        needed("refusal by ICMP", filter(rule().reject(RejectKind::PortUnreachable))),
        needed("refusal by TCP reset", filter(rule().tcp().reject(RejectKind::TcpReset))),
        needed("destination NAT from a map", [declared(endpoints, family), dnat].concat()),
        needed("masquerading", in_chain(ChainType::Nat, Hook::Postrouting, rule().masquerade())),
    ]
}

fn filter(rule: Rule) -> Vec<Op> {
    in_chain(ChainType::Filter, Hook::Forward, rule)
}

fn in_chain(kind: ChainType, hook: Hook, rule: Rule) -> Vec<Op> {
    let hooked = Some(Hooked { kind, hook, priority: 0 });
    let chain = Chain { name: "probe".into(), hooked, comment: None };
    vec![Op::AddChain(chain), Op::AddRule("probe".into(), rule)]
}

fn whole(family: Family) -> Vec<Op> {
    let program = program(family, &RuleOptions::nftables());
    let chains = || program.chains.iter().chain(&program.base_chains);
    let counters = program.counters.iter().cloned().map(Op::AddCounter);
    let sets = program.sets.iter().cloned().map(Op::AddSet);
    let declared = chains().map(|(chain, _)| Op::AddChain(chain.clone()));
    let rules = chains().flat_map(|(chain, rules)| {
        rules.iter().map(|rule| Op::AddRule(chain.name.clone(), rule.clone()))
    });
    counters.chain(sets).chain(declared).chain(rules).collect()
}
