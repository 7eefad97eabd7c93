//! The fixed chains: written once, the same for every cluster.
//!
//! Base chains carry upstream's names, types, hooks and priorities (B-179): other software orders
//! itself against them, and an upstream kube-proxy started later re-creates exactly them. Regular
//! chains that upstream flushes when it takes over have upstream's names too (`masquerading`, …); only
//! those and base chains refer to `nodeport-ips`, which upstream may delete.

mod checks;
mod masquerading;

use sha2::{Digest, Sha256};

pub(super) use masquerading::MASQUERADING;

use super::objects::OUTSIDE_RANGES;
use super::rule::{CtState, Part, rule};
use super::set::LocalAddresses;
use super::{
    Class, CounterId, Extension, FrontendSpace, ListScope, LocalPods, LocalhostNodePorts,
    NodePortMatch, RuleOptions, SetId,
};
use crate::model::Family;
use crate::ruleset::{
    Chain, ChainType, CmpOp, Expr, Hook, Hooked, Name, Ownership, RejectKind, Rule, Set, Table,
    Verdict,
};

/// What a client dials, as the packet says it before DNAT.
pub(super) const DIALLED: [Part; 3] = [Part::Daddr, Part::L4Proto, Part::Dport];
/// The same for NodePorts.
const DIALLED_NODE_PORT: [Part; 2] = [Part::L4Proto, Part::Dport];
/// What the client dialled, as conntrack knows it after DNAT.
pub(super) const ORIGINAL: [Part; 3] = [Part::OriginalDaddr, Part::L4Proto, Part::OriginalDport];
/// The same for NodePorts.
pub(super) const ORIGINAL_NODE_PORT: [Part; 2] = [Part::L4Proto, Part::OriginalDport];

/// How long an address stays in [`SetId::RoutedIps`]: a flow's first packet puts it there and needs it
/// once more, after DNAT.
const ROUTED_MILLIS: u64 = 60_000;

/// Where session affinity remembers clients; empty until a service has it.
pub(super) const REMEMBERING: &str = "remembering";
/// Where packets are refused.
pub(super) const REJECT: &str = "reject-chain";
/// Where forwarded packets are checked, and those of the host.
pub(super) const FILTERS: [&str; 2] = ["filter-forward", "filter-output"];
/// Where source ranges are checked; nothing leads there until a service has some.
pub(super) const FIREWALL_CHECK: &str = "firewall-check";

/// The fixed part of one family's table.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// The table; its comment carries [`Program::mark`].
    pub comment: String,
    /// What it knows of the node's addresses.
    pub addresses: LocalAddresses,
    /// Identifies the program: equal marks mean equal chains and sets.
    pub mark: String,
    /// Counters, at 0.
    pub counters: Vec<Name>,
    /// Sets and maps, empty.
    pub sets: Vec<Set>,
    /// Regular chains.
    pub chains: Vec<(Chain, Vec<Rule>)>,
    /// Base chains: the last thing written, for they attract traffic.
    pub base_chains: Vec<(Chain, Vec<Rule>)>,
}

pub fn program(family: Family, options: &RuleOptions) -> Program {
    let counters: Vec<Name> = CounterId::of_program(family, options).map(CounterId::name).collect();
    let sets = fixed_sets(family, options);
    let chains = regular_chains(family, options);
    let base_chains = base_chains(family, options);
    let mark = mark(family, &counters, &sets, &[&chains[..], &base_chains[..]].concat());
    let comment = format!("rules for kube-proxy, kubeweir program {mark}");
    let addresses = local_addresses(family, options);
    Program { comment, addresses, mark, counters, sets, chains, base_chains }
}

impl Program {
    /// The rules of one of the chains when some extensions are there: theirs, in their order, then its
    /// own.
    pub fn rules_after<'a>(
        &self,
        chain: &Name,
        family: Family,
        extensions: impl IntoIterator<Item = &'a Extension>,
    ) -> Vec<Rule> {
        let before = extensions.into_iter().flat_map(|extension| {
            let objects = extension.objects(family, self.addresses);
            objects.before.into_iter().filter(|(at, _)| at == chain).map(|(_, rule)| rule)
        });
        let all = self.chains.iter().chain(&self.base_chains);
        let own = all.filter(|(known, _)| known.name == *chain);
        before.chain(own.flat_map(|(_, rules)| rules.iter().cloned())).collect()
    }

    /// The table object that carries the mark.
    pub fn table(&self, owned: bool) -> Table {
        let owner = if owned { Ownership::Ours } else { Ownership::Nobody };
        Table { comment: Some(self.comment.clone()), owner, persist: owned }
    }
}

fn mark(family: Family, counters: &[Name], sets: &[Set], chains: &[(Chain, Vec<Rule>)]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{counters:?}\n"));
    for set in sets {
        hash.update(format!("{set:?}\n"));
    }
    for (chain, rules) in chains {
        hash.update(format!("{chain:?}\n{rules:?}\n"));
    }
    // Extensions are not in the program, but a change of their shape is a change of program.
    let class = Extension::Class(FrontendSpace::Services, ListScope::Cluster, Class::FOUR);
    for extension in [class].into_iter().chain(Extension::FEATURES) {
        let objects = extension.objects(family, LocalAddresses::Chosen);
        hash.update(format!("{objects:?}\n"));
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn fixed_sets(family: Family, options: &RuleOptions) -> Vec<Set> {
    let absent = |id: &SetId| match *id {
        SetId::NodePortIps(addresses) => addresses != local_addresses(family, options),
        SetId::RoutedIps => local_addresses(family, options) != LocalAddresses::All,
        SetId::ServiceCidrs => !options.guard_cluster_ips,
        SetId::Connections(_) | SetId::OutsideRanges => !options.service_counters,
        // Extensions bring their own.
        SetId::EndedConnections => true,
        SetId::RefusedOnLocalhost => options.localhost[family] == LocalhostNodePorts::Untouched,
        _ => false,
    };
    let declared = |id: SetId| {
        let set = id.declaration(family);
        let counter = set.counter || options.service_counters && id.counts_drops();
        Set { counter, ..set }
    };
    SetId::fixed().filter(|id| !absent(id)).map(declared).collect()
}

/// What the program knows of the node's addresses.
pub fn local_addresses(family: Family, options: &RuleOptions) -> LocalAddresses {
    match options.node_ports[family] {
        NodePortMatch::AnyLocal => LocalAddresses::All,
        NodePortMatch::Addresses(_) => LocalAddresses::Chosen,
    }
}

fn regular(name: impl Into<Name>, rules: Vec<Rule>) -> (Chain, Vec<Rule>) {
    (Chain { name: name.into(), hooked: None, comment: None }, rules)
}

fn regular_chains(family: Family, options: &RuleOptions) -> Vec<(Chain, Vec<Rule>)> {
    let mut chains = Vec::new();
    for space in FrontendSpace::BOTH {
        for scope in ListScope::BOTH {
            chains.push(regular(
                pick_chain(space, scope, Class::ONE),
                vec![
                    rule(family)
                        .dnat(dialled(space), SetId::Endpoints(space, scope, Class::ONE).name()),
                ],
            ));
            chains.push(choose(family, space, scope));
        }
        chains.push(local_policy(family, space, &options.local_pods[family]));
        chains.extend(frontends(family, space, options));
    }
    // Empty until an extension fills it.
    chains.push(regular(REMEMBERING, Vec::new()));
    let check = rule(family).vmap(&DIALLED, SetId::Restricted.name());
    chains.push(regular(FIREWALL_CHECK, vec![check]));
    chains.extend(options.service_counters.then(|| outside_ranges(family)));
    chains.extend(masquerading::chains(family, options));
    chains.push(regular(
        REJECT,
        vec![
            rule(family).tcp().reject(RejectKind::TcpReset),
            rule(family).reject(RejectKind::PortUnreachable),
        ],
    ));
    chains.extend(checks::chains(family, options));
    chains
}

/// Where packets from outside of source ranges end, where they are counted by frontend too: by a rule of
/// its own, so that they are dropped whatever the set has.
fn outside_ranges(family: Family) -> (Chain, Vec<Rule>) {
    let by_frontend = rule(family).is_in(&DIALLED, SetId::OutsideRanges.name()).done();
    let drop = rule(family).counts(CounterId::SourceRanges).drops();
    regular(OUTSIDE_RANGES, vec![by_frontend, drop])
}

pub(super) fn dialled(space: FrontendSpace) -> &'static [Part] {
    match space {
        FrontendSpace::Services => &DIALLED,
        FrontendSpace::NodePorts => &DIALLED_NODE_PORT,
    }
}

/// The chain that picks an endpoint from a list.
pub fn pick_chain(space: FrontendSpace, scope: ListScope, class: Class) -> Name {
    let class = if class == Class::ONE { String::new() } else { format!("-{}", class.slots()) };
    Name::new(format!("pick{}{class}", suffix(space, scope)))
}

fn choose_chain(space: FrontendSpace, scope: ListScope) -> Name {
    Name::new(format!("choose{}", suffix(space, scope)))
}

fn suffix(space: FrontendSpace, scope: ListScope) -> &'static str {
    match (space, scope) {
        (FrontendSpace::Services, ListScope::Cluster) => "",
        (FrontendSpace::Services, ListScope::Local) => "-local",
        (FrontendSpace::NodePorts, ListScope::Cluster) => "-nodeport",
        (FrontendSpace::NodePorts, ListScope::Local) => "-nodeport-local",
    }
}

/// Picks, and after a miss picks again, twice: each lookup of a packet sees the generation of its
/// moment, so one that a commit overtakes may look for a list in its old class before and in its new
/// class after (seen with kernel 6.18 about once in a thousand such commits). The next pass sees the
/// new generation, unless one more commit overtakes it. A hit ends here, so it pays for none of this.
fn choose(family: Family, space: FrontendSpace, scope: ListScope) -> (Chain, Vec<Rule>) {
    let pick = || pick_chain(space, scope, Class::ONE);
    let again = || rule(family).comment("if a change came in between");
    regular(
        choose_chain(space, scope),
        vec![rule(family).jump(pick()), again().jump(pick()), again().goto(pick())],
    )
}

pub(super) fn local_policy_chain(space: FrontendSpace) -> &'static str {
    match space {
        FrontendSpace::Services => "local-policy",
        FrontendSpace::NodePorts => "local-policy-nodeport",
    }
}

pub(super) fn frontends_chain(space: FrontendSpace) -> &'static str {
    match space {
        FrontendSpace::Services => "frontends",
        FrontendSpace::NodePorts => "nodeports",
    }
}

/// Where flows to frontends go first.
fn entrance(space: FrontendSpace, family: Family, options: &RuleOptions) -> &'static str {
    match (first_rules(family, space, options).is_empty(), space) {
        (true, _) => frontends_chain(space),
        (false, FrontendSpace::Services) => "to-frontends",
        (false, FrontendSpace::NodePorts) => "to-nodeports",
    }
}

/// What every flow to a frontend passes, whatever its service has.
fn first_rules(family: Family, space: FrontendSpace, options: &RuleOptions) -> Vec<Rule> {
    let mut rules = Vec::new();
    if space == FrontendSpace::NodePorts && local_addresses(family, options) == LocalAddresses::All
    {
        let no_interface_has =
            rule(family).is_not_in(&[Part::Daddr], node_port_ips(family, options));
        rules.push(no_interface_has.keep(&[Part::Daddr], SetId::RoutedIps.name(), ROUTED_MILLIS));
    }
    if options.service_counters {
        rules.push(rule(family).is_in(dialled(space), SetId::Connections(space).name()).done());
    }
    rules
}

/// To the list; affinity and policy Local come before, once a service has them.
fn frontends(
    family: Family,
    space: FrontendSpace,
    options: &RuleOptions,
) -> Vec<(Chain, Vec<Rule>)> {
    let to_list = rule(family).goto(choose_chain(space, ListScope::Cluster));
    let mut chains = vec![regular(frontends_chain(space), vec![to_list])];
    let mut first = first_rules(family, space, options);
    if !first.is_empty() {
        first.push(rule(family).goto(frontends_chain(space)));
        chains.push(regular(entrance(space, family, options), first));
    }
    chains
}

/// Pods and the host reach every endpoint in spite of the policy; everyone else those on this node.
fn local_policy(family: Family, space: FrontendSpace, pods: &LocalPods) -> (Chain, Vec<Rule>) {
    let everywhere = || choose_chain(space, ListScope::Cluster);
    let from_pod = rule(family).pod(CmpOp::Eq, pods);
    let mut rules: Vec<Rule> = from_pod
        .map(|from_pod| from_pod.comment("short-circuit pod traffic").goto(everywhere()))
        .into_iter()
        .collect();
    rules.push(rule(family).from_host().comment("short-circuit local traffic").goto(everywhere()));
    rules.push(rule(family).goto(choose_chain(space, ListScope::Local)));
    regular(local_policy_chain(space), rules)
}

/// A rule that people are told of in words of its own: known by what it does and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuleId {
    /// Policy Local does not bind pods.
    PodShortCircuit,
    /// Policy Local does not bind the host.
    HostShortCircuit,
    /// `masqueradeAll`.
    MasqueradeAll,
}

impl RuleId {
    /// Which of them a rule of a chain is.
    pub fn of(chain: &Name, rule: &Rule) -> Option<RuleId> {
        let everywhere = |to: &Name| {
            FrontendSpace::BOTH.into_iter().any(|space| {
                chain.as_str() == local_policy_chain(space)
                    && *to == choose_chain(space, ListScope::Cluster)
            })
        };
        match &rule.exprs[..] {
            [matches @ .., Expr::Verdict(Verdict::Goto(to))] if everywhere(to) => {
                let of_host = matches.iter().any(|expr| matches!(expr, Expr::Fib { .. }));
                Some(if of_host { RuleId::HostShortCircuit } else { RuleId::PodShortCircuit })
            }
            [.., Expr::Lookup { set, .. }, Expr::Masquerade] => {
                let all = chain.as_str() == MASQUERADING && *set == SetId::ClusterIps.name();
                all.then_some(RuleId::MasqueradeAll)
            }
            _ => None,
        }
    }
}

fn node_port_ips(family: Family, options: &RuleOptions) -> Name {
    SetId::NodePortIps(local_addresses(family, options)).name()
}

/// The sets that tell NodePort flows apart after DNAT.
pub(super) fn local_ips(addresses: LocalAddresses) -> impl Iterator<Item = SetId> {
    let routed = (addresses == LocalAddresses::All).then_some(SetId::RoutedIps);
    [SetId::NodePortIps(addresses)].into_iter().chain(routed)
}

/// Sends new flows to an endpoint. In the base chains themselves: most new flows are no Service's and
/// should be gone soon.
fn services(family: Family, options: &RuleOptions) -> Vec<Rule> {
    let node_ports = entrance(FrontendSpace::NodePorts, family, options);
    let to_frontend = rule(family).is_in(&[Part::Daddr], SetId::FrontendIps.name()).jump(entrance(
        FrontendSpace::Services,
        family,
        options,
    ));
    // Also after a miss: a load-balancer IP can be the node's own.
    let to_node_port = match options.node_ports[family] {
        NodePortMatch::Addresses(_) => {
            rule(family).is_in(&[Part::Daddr], node_port_ips(family, options)).jump(node_ports)
        }
        NodePortMatch::AnyLocal if options.loopback_node_ports(family) => {
            rule(family).to_host().jump(node_ports)
        }
        NodePortMatch::AnyLocal => rule(family)
            .to_host()
            .network(Part::Daddr, CmpOp::Neq, family.loopback())
            .jump(node_ports),
    };
    vec![to_frontend, to_node_port]
}

pub(super) fn base(
    name: &str,
    kind: ChainType,
    hook: Hook,
    priority: i32,
    rules: Vec<Rule>,
) -> (Chain, Vec<Rule>) {
    let hooked = Some(Hooked { kind, hook, priority });
    (Chain { name: name.into(), hooked, comment: None }, rules)
}

/// The first comparison of each chain of type filter lets go what is no first packet: every packet of
/// the node passes them.
fn base_chains(family: Family, options: &RuleOptions) -> Vec<(Chain, Vec<Rule>)> {
    use ChainType::{Filter, Nat};
    // At one priority whoever registers last comes first. The rules of iptables mode stood before those
    // that programs like the CNI plug-in `portmap` append to the same chain of iptables.
    let dstnat = if options.before_host_ports { -101 } else { -100 };
    const FILTER: i32 = 0;
    const SRCNAT: i32 = 100;

    // New flows that nothing translated: what is translated has passed every check by that.
    let untranslated = || rule(family).ct_state(CtState::New).ct_status_not_dnat();
    let input = vec![
        untranslated().jump("unserved-here"),
        rule(family).ct_state(CtState::New).ct_status_dnat().jump(REMEMBERING),
    ];
    let mut forward = Vec::new();
    if options.drop_invalid {
        forward.push(rule(family).ct_state(CtState::Invalid).counts(CounterId::Invalid).drops());
    }
    forward.push(untranslated().jump("unserved"));
    let output = vec![untranslated().jump("unserved")];
    let masquerade = vec![rule(family).ct_status_dnat().jump(MASQUERADING)];

    vec![
        base("filter-input", Filter, Hook::Input, FILTER, input),
        base(FILTERS[0], Filter, Hook::Forward, FILTER, forward),
        base(FILTERS[1], Filter, Hook::Output, FILTER, output),
        base("nat-postrouting", Nat, Hook::Postrouting, SRCNAT, masquerade),
        base("nat-output", Nat, Hook::Output, dstnat, services(family, options)),
        base("nat-prerouting", Nat, Hook::Prerouting, dstnat, services(family, options)),
    ]
}
