//! What was not translated and may not pass.

use super::{DIALLED_NODE_PORT, REJECT, dialled, node_port_ips, regular};
use crate::model::Family;
use crate::program::rule::{Part, RuleBuilder, rule};
use crate::program::{
    CounterId, FrontendSpace, LocalhostNodePorts, NodePortMatch, RuleOptions, SetId,
};
use crate::ruleset::{Chain, CmpOp, Rule};

/// Where NodePorts on loopback addresses are refused (KEP-6032).
const LOCALHOST_NODE_PORTS: &str = "localhost-nodeports";

/// All chains of it.
pub(super) fn chains(family: Family, options: &RuleOptions) -> Vec<(Chain, Vec<Rule>)> {
    let of_endpoints = |space: FrontendSpace| {
        vec![
            rule(family)
                .is_in(dialled(space), SetId::Dropped(space).name())
                .counts(CounterId::NoLocalEndpoints)
                .drops(),
            rule(family)
                .is_in(dialled(space), SetId::Refused(space).name())
                .counts(CounterId::NoEndpoints)
                .goto(REJECT),
        ]
    };
    let to_frontend =
        |chain: &str| rule(family).is_in(&[Part::Daddr], SetId::FrontendIps.name()).jump(chain);
    let endpoints_check = "service-endpoints-check";
    let mut chains = vec![
        regular(endpoints_check, of_endpoints(FrontendSpace::Services)),
        regular("nodeport-endpoints-check", of_endpoints(FrontendSpace::NodePorts)),
    ];
    if options.guard_cluster_ips {
        // Every ClusterIP is a frontend's address: what goes elsewhere is spared one more lookup.
        let cluster_ips = "cluster-ips-check";
        chains.push(regular(
            cluster_ips,
            vec![
                rule(family).jump(endpoints_check),
                rule(family)
                    .is_in(&[Part::Daddr], SetId::ClusterIps.name())
                    .counts(CounterId::UnusedPort)
                    .comment("Reject traffic to invalid ports of ClusterIPs")
                    .goto(REJECT),
            ],
        ));
        let unallocated = rule(family)
            .is_in(&[Part::Daddr], SetId::ServiceCidrs.name())
            .counts(CounterId::UnallocatedAddress)
            .comment("Drop traffic to unallocated ClusterIPs")
            .drops();
        chains.push(regular("unserved", vec![to_frontend(cluster_ips), unallocated]));
    } else {
        chains.push(regular("unserved", vec![to_frontend(endpoints_check)]));
    }
    let node_port = to_node_ports(family, options).jump("nodeport-endpoints-check");
    let mut unserved_here = vec![node_port, to_frontend(endpoints_check)];
    if options.localhost[family] != LocalhostNodePorts::Untouched {
        let to_loopback = rule(family).network(Part::Daddr, CmpOp::Eq, family.loopback());
        unserved_here.push(to_loopback.jump(LOCALHOST_NODE_PORTS));
        chains.extend(localhost_node_ports(family));
    }
    chains.push(regular("unserved-here", unserved_here));
    chains
}

/// Which protocols are refused is data, so that each is counted and the rules stay as they are.
fn localhost_node_ports(family: Family) -> [(Chain, Vec<Rule>); 2] {
    const REFUSAL: &str = "localhost-refusal";
    // Every NodePort has either policy.
    let policies =
        [SetId::Masquerade(FrontendSpace::NodePorts), SetId::LocalPolicy(FrontendSpace::NodePorts)];
    let node_ports =
        policies.map(|set| rule(family).is_in(&DIALLED_NODE_PORT, set.name()).goto(REFUSAL));
    let refuse = rule(family)
        .is_in(&[Part::L4Proto], SetId::RefusedOnLocalhost.name())
        .counts(CounterId::Localhost)
        .goto(REJECT);
    [regular(LOCALHOST_NODE_PORTS, node_ports.to_vec()), regular(REFUSAL, vec![refuse])]
}

/// Packets to an address where NodePorts answer. In the input hook every destination is local.
fn to_node_ports(family: Family, options: &RuleOptions) -> RuleBuilder {
    let any = rule(family);
    match options.node_ports[family] {
        NodePortMatch::Addresses(_) => any.is_in(&[Part::Daddr], node_port_ips(family, options)),
        NodePortMatch::AnyLocal if options.loopback_node_ports(family) => any,
        NodePortMatch::AnyLocal => any.network(Part::Daddr, CmpOp::Neq, family.loopback()),
    }
}
