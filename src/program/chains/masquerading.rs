//! Whose address the endpoint sees: where flows get one of the node's as source.

use super::{ORIGINAL, ORIGINAL_NODE_PORT, local_addresses, local_ips, regular};
use crate::model::Family;
use crate::program::rule::{Part, RuleBuilder, rule};
use crate::program::{CounterId, FrontendSpace, LocalPods, RuleOptions, SetId};
use crate::ruleset::{Chain, CmpOp, Rule};

/// The chain that postrouting enters with.
pub(in crate::program) const MASQUERADING: &str = "masquerading";
/// The same for NodePorts on loopback addresses.
const MASQUERADING_LOCALHOST: &str = "masquerading-localhost";

/// All chains of it.
pub(super) fn chains(family: Family, options: &RuleOptions) -> Vec<(Chain, Vec<Rule>)> {
    let localhost = options.serves_localhost(family).then(|| masquerading_localhost(family));
    let node_ports = std::iter::once(masquerading_node_ports(family));
    node_ports.chain(localhost).chain([masquerading(family, options)]).collect()
}

/// Decides from conntrack, on a flow's first packet, whether the client's address is kept: no bit of
/// the packet mark is needed.
fn masquerading(family: Family, options: &RuleOptions) -> (Chain, Vec<Rule>) {
    let hairpin = [Part::Saddr, Part::Daddr, Part::L4Proto, Part::Dport];
    let node_ports = "masquerading-nodeports";
    let mut rules = vec![rule(family).is_in(&hairpin, SetId::Hairpin.name()).masquerade()];
    rules.extend(between_pods(family, options));
    rules.extend([
        rule(family)
            .is_in(&ORIGINAL, SetId::Masquerade(FrontendSpace::Services).name())
            .masquerade(),
        rule(family)
            .is_in(&ORIGINAL, SetId::MasqueradeHost(FrontendSpace::Services).name())
            .from_host()
            .masquerade(),
        // The rest of the chain is about ClusterIPs and NodePorts.
        rule(family).is_in(&ORIGINAL, SetId::LocalPolicy(FrontendSpace::Services).name()).returns(),
    ]);
    let cluster_ip = rule(family).is_in(&[Part::OriginalDaddr], SetId::ClusterIps.name());
    if options.masquerade_all {
        rules.push(cluster_ip.comment("masquerade all clusterIP traffic").masquerade());
    } else {
        let comment = "masquerade clusterIP traffic from outside cluster";
        let outside = not_from_pods(cluster_ip, &options.local_pods[family]);
        rules.extend(outside.into_iter().map(|rule| rule.comment(comment).masquerade()));
    }
    if options.serves_localhost(family) {
        let to_loopback = rule(family).network(Part::OriginalDaddr, CmpOp::Eq, family.loopback());
        rules.push(to_loopback.goto(MASQUERADING_LOCALHOST));
    }
    for local in local_ips(local_addresses(family, options)) {
        rules.push(rule(family).is_in(&[Part::OriginalDaddr], local.name()).jump(node_ports));
    }
    regular(MASQUERADING, rules)
}

/// A pod that dials a ClusterIP keeps its address. Most flows do just that, so they leave here, before
/// the lookups for external frontends. (An external IP that is some other service's ClusterIP is
/// taken for the latter: a pod needs no masquerade to reach a pod.)
fn between_pods(family: Family, options: &RuleOptions) -> Option<Rule> {
    if options.masquerade_all {
        return None;
    }
    let cluster_ip =
        |rule: RuleBuilder| rule.is_in(&[Part::OriginalDaddr], SetId::ClusterIps.name());
    match &options.local_pods[family] {
        LocalPods::Unknown => Some(cluster_ip(rule(family)).returns()),
        pods => Some(cluster_ip(rule(family).pod(CmpOp::Eq, pods)?).returns()),
    }
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
    let always = SetId::Masquerade(FrontendSpace::NodePorts).name();
    let host = SetId::MasqueradeHost(FrontendSpace::NodePorts).name();
    regular(
        "masquerading-nodeports",
        vec![
            rule(family).is_in(&ORIGINAL_NODE_PORT, always).masquerade(),
            rule(family).is_in(&ORIGINAL_NODE_PORT, host).from_host().masquerade(),
        ],
    )
}

/// Counted here, and not where they are sent on, for a rule there would be in everyone's way. Whoever
/// dials a loopback address is the host itself, so that both policies masquerade.
fn masquerading_localhost(family: Family) -> (Chain, Vec<Rule>) {
    let sent_on = |set: SetId| {
        let node_port = rule(family).is_in(&ORIGINAL_NODE_PORT, set.name());
        node_port.counts(CounterId::AcceptedOnLocalhost).masquerade()
    };
    let policies = [SetId::Masquerade, SetId::MasqueradeHost];
    let rules = policies.map(|set| sent_on(set(FrontendSpace::NodePorts)));
    regular(MASQUERADING_LOCALHOST, rules.to_vec())
}
