//! The fixed chains: written once, the same for every cluster.
//!
//! Base chains carry upstream's names, types, hooks and priorities (B-179): other software orders
//! itself against them, and an upstream kube-proxy started later re-creates exactly them. Regular
//! chains that upstream flushes when it takes over have upstream's names too (`services`,
//! `masquerading`, …); only those refer to `nodeport-ips`, which upstream may delete.

use sha2::{Digest, Sha256};

use super::rule::{CtState, Part, RuleBuilder, rule};
use super::set::LocalAddresses;
use super::{Class, LocalPods, NodePortMatch, Plane, RuleOptions, Scope, SetId};
use crate::model::Family;
use crate::ruleset::{Chain, ChainType, CmpOp, Hook, Hooked, Name, RejectKind, Rule, Set, Table};

/// What a client dials, as the packet says it before DNAT.
const DIALLED: [Part; 3] = [Part::Daddr, Part::L4Proto, Part::Dport];
/// The same for NodePorts.
const DIALLED_NODE_PORT: [Part; 2] = [Part::L4Proto, Part::Dport];
/// What the client dialled, as conntrack knows it after DNAT.
const ORIGINAL: [Part; 3] = [Part::OriginalDaddr, Part::L4Proto, Part::OriginalDport];
/// The same for NodePorts.
const ORIGINAL_NODE_PORT: [Part; 2] = [Part::L4Proto, Part::OriginalDport];

/// Draws per list: with at least a quarter of the slots filled, all of them miss in at most one of
/// a hundred flows, and then a slot of the first quarter is taken, so every endpoint's share is
/// within 1 % of 1/N.
const DRAWS: usize = 16;

/// The fixed part of one family's table.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// The table; its comment carries [`Program::mark`].
    pub comment: String,
    /// Identifies the program: equal marks mean equal chains and sets.
    pub mark: String,
    /// Sets and maps, empty.
    pub sets: Vec<Set>,
    /// Regular chains.
    pub chains: Vec<(Chain, Vec<Rule>)>,
    /// Base chains: the last thing written, for they attract traffic.
    pub base_chains: Vec<(Chain, Vec<Rule>)>,
}

/// Sets, chain and dispatch rule of one class of lists: written when a list first needs them.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassObjects {
    /// The lists, and from class 4 on the set of frontends that have one.
    pub sets: Vec<Set>,
    /// The chain that draws; none in class 1.
    pub chain: Option<(Chain, Vec<Rule>)>,
    /// The chain that dispatches to it, and the rule to append there; none in class 1.
    pub dispatch: Option<(Name, Rule)>,
}

/// The program of a family.
pub fn program(family: Family, options: &RuleOptions) -> Program {
    let sets = fixed_sets(family, options);
    let chains = regular_chains(family, options);
    let base_chains = base_chains(family, options);
    let mark = mark(family, &sets, &[&chains[..], &base_chains[..]].concat());
    let comment = format!("rules for kube-proxy, kubeweir program {mark}");
    Program { comment, mark, sets, chains, base_chains }
}

impl Program {
    /// The table object that carries the mark.
    pub fn table(&self, owned: bool) -> Table {
        Table { comment: Some(self.comment.clone()), owner: owned, persist: owned }
    }
}

fn mark(family: Family, sets: &[Set], chains: &[(Chain, Vec<Rule>)]) -> String {
    let mut hash = Sha256::new();
    for set in sets {
        hash.update(format!("{set:?}\n"));
    }
    for (chain, rules) in chains {
        hash.update(format!("{chain:?}\n{rules:?}\n"));
    }
    // Class objects are not in the program, but a change of their shape is a change of program.
    let class = class_objects(family, Plane::Services, Scope::Cluster, Class::FOUR);
    hash.update(format!("{class:?}"));
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

fn fixed_sets(family: Family, options: &RuleOptions) -> Vec<Set> {
    let absent = |id: &SetId| match *id {
        SetId::NodePortIps(addresses) => addresses != local_addresses(family, options),
        SetId::ServiceCidrs => !options.guard_cluster_ips,
        SetId::Connections(_) => !options.service_counters,
        _ => false,
    };
    SetId::fixed().filter(|id| !absent(id)).map(|id| id.declaration(family)).collect()
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
    for plane in Plane::BOTH {
        for scope in Scope::BOTH {
            chains.push(regular(
                pick_chain(plane, scope, Class::ONE),
                vec![
                    rule(family)
                        .dnat(dialled(plane), SetId::Endpoints(plane, scope, Class::ONE).name()),
                ],
            ));
            chains.push(choose(family, plane, scope));
        }
        chains.push(local_policy(family, plane, &options.local_pods[family]));
        chains.push(frontends(family, plane, options));
    }
    chains.push(services(family, options));
    chains.push(remembering(family, options));
    chains.push(masquerading_node_ports(family));
    chains.push(masquerading(family, options));
    chains.push(regular(
        "reject-chain",
        vec![
            rule(family).tcp().reject(RejectKind::TcpReset),
            rule(family).reject(RejectKind::PortUnreachable),
        ],
    ));
    chains.push(regular(
        "firewall-check",
        vec![rule(family).vmap(&DIALLED, SetId::Restricted.name())],
    ));
    chains.extend(checks(family, options));
    chains
}

fn dialled(plane: Plane) -> &'static [Part] {
    match plane {
        Plane::Services => &DIALLED,
        Plane::NodePorts => &DIALLED_NODE_PORT,
    }
}

/// The chain that picks an endpoint from a list.
pub fn pick_chain(plane: Plane, scope: Scope, class: Class) -> Name {
    let class = if class == Class::ONE { String::new() } else { format!("-{}", class.slots()) };
    Name::new(format!("pick{}{class}", suffix(plane, scope)))
}

fn choose_chain(plane: Plane, scope: Scope) -> Name {
    Name::new(format!("choose{}", suffix(plane, scope)))
}

fn suffix(plane: Plane, scope: Scope) -> &'static str {
    match (plane, scope) {
        (Plane::Services, Scope::Cluster) => "",
        (Plane::Services, Scope::Local) => "-local",
        (Plane::NodePorts, Scope::Cluster) => "-nodeport",
        (Plane::NodePorts, Scope::Local) => "-nodeport-local",
    }
}

/// Picks, and after a miss picks again: each lookup of a packet sees the generation of its moment, so
/// one that a commit overtakes may look for a list in its old class before and in its new class
/// after (seen with kernel 6.18 about once in a thousand such commits). The second pass sees the new
/// generation only.
fn choose(family: Family, plane: Plane, scope: Scope) -> (Chain, Vec<Rule>) {
    let pick = || pick_chain(plane, scope, Class::ONE);
    let again = "if a change came in between";
    regular(
        choose_chain(plane, scope),
        vec![rule(family).jump(pick()), rule(family).comment(again).goto(pick())],
    )
}

fn local_policy_chain(plane: Plane) -> &'static str {
    match plane {
        Plane::Services => "local-policy",
        Plane::NodePorts => "local-policy-nodeport",
    }
}

fn frontends_chain(plane: Plane) -> &'static str {
    match plane {
        Plane::Services => "frontends",
        Plane::NodePorts => "nodeports",
    }
}

/// First the affinity of those that have it, then the list.
fn frontends(family: Family, plane: Plane, options: &RuleOptions) -> (Chain, Vec<Rule>) {
    let key = dialled(plane);
    let mut rules = Vec::new();
    if options.service_counters {
        rules.push(rule(family).is_in(key, SetId::Connections(plane).name()).done());
    }
    rules.extend([
        rule(family).vmap(key, SetId::Sticky(plane).name()),
        rule(family).is_in(key, SetId::LocalPolicy(plane).name()).goto(local_policy_chain(plane)),
        rule(family).goto(choose_chain(plane, Scope::Cluster)),
    ]);
    regular(frontends_chain(plane), rules)
}

/// Pods and the host reach every endpoint in spite of the policy; everyone else those on this node.
fn local_policy(family: Family, plane: Plane, pods: &LocalPods) -> (Chain, Vec<Rule>) {
    let everywhere = || choose_chain(plane, Scope::Cluster);
    let from_pod = rule(family).pod(CmpOp::Eq, pods);
    let mut rules: Vec<Rule> = from_pod
        .map(|from_pod| from_pod.comment("short-circuit pod traffic").goto(everywhere()))
        .into_iter()
        .collect();
    rules.push(rule(family).from_host().comment("short-circuit local traffic").goto(everywhere()));
    rules.push(rule(family).goto(choose_chain(plane, Scope::Local)));
    regular(local_policy_chain(plane), rules)
}

fn node_port_ips(family: Family, options: &RuleOptions) -> Name {
    SetId::NodePortIps(local_addresses(family, options)).name()
}

fn loopback(family: Family) -> ipnet::IpNet {
    let text = match family {
        Family::V4 => "127.0.0.0/8",
        Family::V6 => "::1/128",
    };
    text.parse().expect("a literal network")
}

fn services(family: Family, options: &RuleOptions) -> (Chain, Vec<Rule>) {
    let node_ports = frontends_chain(Plane::NodePorts);
    let mut rules = vec![
        rule(family)
            .is_in(&[Part::Daddr], SetId::FrontendIps.name())
            .jump(frontends_chain(Plane::Services)),
    ];
    // Also after a miss: a load-balancer IP can be the node's own.
    rules.push(match options.node_ports[family] {
        NodePortMatch::Addresses(_) => {
            rule(family).is_in(&[Part::Daddr], node_port_ips(family, options)).jump(node_ports)
        }
        NodePortMatch::AnyLocal if options.loopback_node_ports(family) => {
            rule(family).to_host().jump(node_ports)
        }
        NodePortMatch::AnyLocal => rule(family)
            .to_host()
            .network(Part::Daddr, CmpOp::Neq, loopback(family))
            .jump(node_ports),
    });
    regular("services", rules)
}

/// Session affinity is written down after DNAT, when the endpoint stands in the packet.
fn remembering(family: Family, options: &RuleOptions) -> (Chain, Vec<Rule>) {
    regular(
        "remembering",
        vec![
            rule(family).vmap(&ORIGINAL, SetId::Remember(Plane::Services).name()),
            rule(family)
                .is_in(&[Part::OriginalDaddr], node_port_ips(family, options))
                .vmap(&ORIGINAL_NODE_PORT, SetId::Remember(Plane::NodePorts).name()),
        ],
    )
}

/// Decides from conntrack, on a flow's first packet, whether the client's address is kept: no bit of
/// the packet mark is needed.
fn masquerading(family: Family, options: &RuleOptions) -> (Chain, Vec<Rule>) {
    let hairpin = [Part::Saddr, Part::Daddr, Part::L4Proto, Part::Dport];
    let node_ports = "masquerading-nodeports";
    let mut rules = vec![
        rule(family).jump("remembering"),
        rule(family).is_in(&hairpin, SetId::Hairpin.name()).masquerade(),
        rule(family).is_in(&ORIGINAL, SetId::Masquerade(Plane::Services).name()).masquerade(),
        rule(family)
            .is_in(&ORIGINAL, SetId::MasqueradeHost(Plane::Services).name())
            .from_host()
            .masquerade(),
        // The rest of the chain is about ClusterIPs and NodePorts.
        rule(family).is_in(&ORIGINAL, SetId::LocalPolicy(Plane::Services).name()).returns(),
    ];
    let cluster_ip = rule(family).is_in(&[Part::OriginalDaddr], SetId::ClusterIps.name());
    if options.masquerade_all {
        rules.push(cluster_ip.comment("masquerade all clusterIP traffic").masquerade());
    } else {
        let comment = "masquerade clusterIP traffic from outside cluster";
        let outside = not_from_pods(cluster_ip, &options.local_pods[family]);
        rules.extend(outside.into_iter().map(|rule| rule.comment(comment).masquerade()));
    }
    rules.push(
        rule(family).is_in(&[Part::OriginalDaddr], node_port_ips(family, options)).jump(node_ports),
    );
    if options.loopback_node_ports(family) {
        rules.push(
            rule(family).network(Part::OriginalDaddr, CmpOp::Eq, loopback(family)).jump(node_ports),
        );
    }
    regular("masquerading", rules)
}

/// One rule or more, any of which matches in postrouting if the source is not a pod.
///
/// By interface that takes two: no input interface is known there for what the host sends, and for
/// what br_netfilter translates within a bridge, which is between pods (seen with kernel 6.18:
/// `br_nf_post_routing` passes none).
fn not_from_pods(matched: RuleBuilder, pods: &LocalPods) -> Vec<RuleBuilder> {
    match pods {
        LocalPods::Unknown | LocalPods::Cidr(_) => {
            matched.pod(CmpOp::Neq, pods).into_iter().collect()
        }
        LocalPods::Interface(_) | LocalPods::InterfacePrefix(_) => {
            let other_input = matched.clone().has_input().pod(CmpOp::Neq, pods);
            other_input.into_iter().chain([matched.from_host()]).collect()
        }
    }
}

fn masquerading_node_ports(family: Family) -> (Chain, Vec<Rule>) {
    let always = SetId::Masquerade(Plane::NodePorts).name();
    let host = SetId::MasqueradeHost(Plane::NodePorts).name();
    regular(
        "masquerading-nodeports",
        vec![
            rule(family).is_in(&ORIGINAL_NODE_PORT, always).masquerade(),
            rule(family).is_in(&ORIGINAL_NODE_PORT, host).from_host().masquerade(),
        ],
    )
}

/// What was not translated and may not pass.
fn checks(family: Family, options: &RuleOptions) -> Vec<(Chain, Vec<Rule>)> {
    let unserved = |plane: Plane| {
        vec![
            rule(family).is_in(dialled(plane), SetId::Dropped(plane).name()).drops(),
            rule(family).is_in(dialled(plane), SetId::Refused(plane).name()).goto("reject-chain"),
        ]
    };
    let mut chains = vec![
        regular("service-endpoints-check", unserved(Plane::Services)),
        regular("nodeport-endpoints-check", unserved(Plane::NodePorts)),
    ];
    if options.guard_cluster_ips {
        chains.push(regular(
            "cluster-ips-check",
            vec![
                rule(family)
                    .is_in(&[Part::Daddr], SetId::ClusterIps.name())
                    .comment("Reject traffic to invalid ports of ClusterIPs")
                    .goto("reject-chain"),
                rule(family)
                    .is_in(&[Part::Daddr], SetId::ServiceCidrs.name())
                    .comment("Drop traffic to unallocated ClusterIPs")
                    .drops(),
            ],
        ));
    }
    chains
}

fn base(
    name: &str,
    kind: ChainType,
    hook: Hook,
    priority: i32,
    rules: Vec<Rule>,
) -> (Chain, Vec<Rule>) {
    let hooked = Some(Hooked { kind, hook, priority });
    (Chain { name: name.into(), hooked, comment: None }, rules)
}

fn base_chains(family: Family, options: &RuleOptions) -> Vec<(Chain, Vec<Rule>)> {
    use ChainType::{Filter, Nat};
    const PRE_DNAT: i32 = -110;
    const DSTNAT: i32 = -100;
    const FILTER: i32 = 0;
    const SRCNAT: i32 = 100;

    let new = || rule(family).ct_state(CtState::New);
    let to_frontend = || new().is_in(&[Part::Daddr], SetId::FrontendIps.name());
    let guard = |rules: &mut Vec<Rule>| {
        if options.guard_cluster_ips {
            rules.push(new().jump("cluster-ips-check"));
        }
    };

    let input = vec![
        node_port_guard(family, options).jump("nodeport-endpoints-check"),
        to_frontend().jump("service-endpoints-check"),
        new().ct_status_dnat().jump("remembering"),
    ];
    let mut forward = Vec::new();
    if options.drop_invalid {
        forward.push(rule(family).ct_state(CtState::Invalid).drops());
    }
    forward.push(to_frontend().jump("service-endpoints-check"));
    guard(&mut forward);
    let mut output = vec![to_frontend().jump("service-endpoints-check")];
    guard(&mut output);
    let firewall = || vec![to_frontend().jump("firewall-check")];
    let dispatch = || vec![rule(family).jump("services")];
    let masquerade = vec![rule(family).ct_status_dnat().jump("masquerading")];

    vec![
        base("filter-prerouting-pre-dnat", Filter, Hook::Prerouting, PRE_DNAT, firewall()),
        base("filter-output-pre-dnat", Filter, Hook::Output, PRE_DNAT, firewall()),
        base("filter-input", Filter, Hook::Input, FILTER, input),
        base("filter-forward", Filter, Hook::Forward, FILTER, forward),
        base("filter-output", Filter, Hook::Output, FILTER, output),
        base("nat-postrouting", Nat, Hook::Postrouting, SRCNAT, masquerade),
        base("nat-output", Nat, Hook::Output, DSTNAT, dispatch()),
        base("nat-prerouting", Nat, Hook::Prerouting, DSTNAT, dispatch()),
    ]
}

/// New packets to an address where NodePorts answer. In the input hook every destination is local.
fn node_port_guard(family: Family, options: &RuleOptions) -> RuleBuilder {
    let new = rule(family).ct_state(CtState::New);
    match options.node_ports[family] {
        NodePortMatch::Addresses(_) => new.is_in(&[Part::Daddr], node_port_ips(family, options)),
        NodePortMatch::AnyLocal if options.loopback_node_ports(family) => new,
        NodePortMatch::AnyLocal => new.network(Part::Daddr, CmpOp::Neq, loopback(family)),
    }
}

/// The objects of one class of lists.
pub fn class_objects(family: Family, plane: Plane, scope: Scope, class: Class) -> ClassObjects {
    let endpoints = SetId::Endpoints(plane, scope, class);
    if class == Class::ONE {
        return ClassObjects {
            sets: vec![endpoints.declaration(family)],
            chain: None,
            dispatch: None,
        };
    }
    let members = SetId::Members(plane, scope, class);
    let draw = |modulus: u32| {
        let mut key = dialled(plane).to_vec();
        key.push(Part::Slot(modulus));
        rule(family).dnat(&key, endpoints.name())
    };
    let mut rules: Vec<Rule> = (0..DRAWS).map(|_| draw(class.slots())).collect();
    rules.push(draw(class.slots() / 4));
    let chain = pick_chain(plane, scope, class);
    let dispatch = rule(family).is_in(dialled(plane), members.name()).goto(chain.clone());
    ClassObjects {
        sets: vec![members.declaration(family), endpoints.declaration(family)],
        chain: Some(regular(chain, rules)),
        dispatch: Some((pick_chain(plane, scope, Class::ONE), dispatch)),
    }
}
