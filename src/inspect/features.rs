//! What the program asks of nf_tables, feature by feature, as operations to try.
//!
//! Place in the flow: `kubeweir check` rehearses each in a table of its own. Pure.

use crate::model::Family;
use crate::program::rule::{CtState, Part, rule};
use crate::program::set::Class;
use crate::program::{Plane, RuleOptions, Scope, SetId, program};
use crate::ruleset::{
    Chain, ChainType, Field, Hook, Hooked, RejectKind, Rule, Set, SetKind, Table,
};
use crate::transaction::Op;

/// One feature.
#[derive(Debug, Clone)]
pub struct Feature {
    /// What it is called.
    pub name: &'static str,
    /// Whether the agent cannot do without it.
    pub required: bool,
    /// The table to try it in.
    pub table: Table,
    /// What to try; empty for the table itself.
    pub ops: Vec<Op>,
}

/// Every feature, simple ones first.
pub fn features(family: Family) -> Vec<Feature> {
    let table = |owned| Table { comment: None, owner: owned, persist: owned };
    let feature = |name, ops| Feature { name, required: true, table: table(false), ops };
    let in_chain = |kind, hook, rules: Vec<Rule>| in_chain(kind, hook, rules);
    let filter = |rule: Rule| in_chain(ChainType::Filter, Hook::Forward, vec![rule]);
    let endpoints = SetId::Endpoints(Plane::Services, Scope::Cluster, Class::ONE);
    let original = [Part::OriginalDaddr, Part::L4Proto, Part::OriginalDport];
    let clients = Set {
        kind: SetKind::Map(vec![Field::address(family), Field::InetService]),
        dynamic: true,
        timeout: Some(1000),
        size: Some(16),
        ..Set::plain("clients", vec![Field::address(family)])
    };
    let declared = |id: SetId| Op::AddSet(id.declaration(family));
    let dnat = rule(family).dnat(&[Part::Daddr, Part::L4Proto, Part::Dport], endpoints.name());
    let drawn = rule(family).is_in(&[Part::Slot(4)], "slots").done();
    let slots = Op::AddSet(Set::plain("slots", vec![Field::Mark]));
    let refused = SetId::Refused(Plane::Services);
    let update = rule(family).update("clients", &[Part::Saddr], &[Part::Daddr, Part::Dport], 1000);
    vec![
        feature("nf_tables", Vec::new()),
        Feature {
            required: false,
            table: table(true),
            ..feature("tables with an owner", Vec::new())
        },
        feature("sets of concatenated keys", vec![declared(refused)]),
        feature("interval sets", vec![declared(SetId::ServiceCidrs)]),
        feature("verdict maps", vec![declared(SetId::Restricted)]),
        Feature {
            required: false,
            ..feature("counters of elements", vec![declared(SetId::Connections(Plane::Services))])
        },
        feature("maps filled by packets", [vec![Op::AddSet(clients)], filter(update)].concat()),
        feature("conntrack state", filter(rule(family).ct_state(CtState::New).drops())),
        feature(
            "conntrack's original destination",
            [
                vec![declared(refused)],
                filter(rule(family).is_in(&original, refused.name()).drops()),
            ]
            .concat(),
        ),
        feature("local addresses from the fib", filter(rule(family).from_host().drops())),
        feature("random numbers", [vec![slots], filter(drawn)].concat()),
        feature("refusal by ICMP", filter(rule(family).reject(RejectKind::PortUnreachable))),
        feature("refusal by TCP reset", filter(rule(family).tcp().reject(RejectKind::TcpReset))),
        feature(
            "destination NAT from a map",
            [vec![declared(endpoints)], in_chain(ChainType::Nat, Hook::Prerouting, vec![dnat])]
                .concat(),
        ),
        feature(
            "masquerading",
            in_chain(ChainType::Nat, Hook::Postrouting, vec![rule(family).masquerade()]),
        ),
        feature("the whole program", whole(family)),
    ]
}

fn in_chain(kind: ChainType, hook: Hook, rules: Vec<Rule>) -> Vec<Op> {
    let hooked = Some(Hooked { kind, hook, priority: 0 });
    let chain = Chain { name: "probe".into(), hooked, comment: None };
    let rules = rules.into_iter().map(|rule| Op::AddRule("probe".into(), rule));
    [Op::AddChain(chain)].into_iter().chain(rules).collect()
}

fn whole(family: Family) -> Vec<Op> {
    let program = program(family, &RuleOptions::nftables());
    let chains = || program.chains.iter().chain(&program.base_chains);
    let sets = program.sets.iter().cloned().map(Op::AddSet);
    let declared = chains().map(|(chain, _)| Op::AddChain(chain.clone()));
    let rules = chains().flat_map(|(chain, rules)| {
        rules.iter().map(|rule| Op::AddRule(chain.name.clone(), rule.clone()))
    });
    sets.chain(declared).chain(rules).collect()
}
