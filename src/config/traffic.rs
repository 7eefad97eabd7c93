//! From the configuration and the node to the options of the program. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Config, DetectLocal, ProxyMode};
use crate::model::{Family, NodeAddresses, PerFamily};
use crate::node::nodeport::{Hint, nodeport_addresses};
use crate::program::{LocalPods, LocalhostNodePorts, NodePortMatch, RuleOptions};

/// What of the configuration decides about traffic, together with what the node said at start.
#[derive(Debug, Clone)]
pub struct Traffic {
    /// The configuration.
    pub config: Config,
    /// Effective node IPs, loopback where none is known.
    pub node_ips: PerFamily<IpAddr>,
    /// The Node's podCIDRs at start.
    pub pod_cidrs: Vec<IpNet>,
}

impl Traffic {
    /// The options of the program, and what an operator should be told about them.
    pub fn options(&self, assigned: &NodeAddresses) -> (RuleOptions, Vec<Hint>) {
        let config = &self.config;
        let nftables = config.mode == ProxyMode::Nftables;
        let iptables = config.mode == ProxyMode::Iptables;
        let decisions = PerFamily::from_fn(|family| self.node_ports(assigned, family));
        let hints = [&decisions.v4.1[..], &decisions.v6.1[..]].concat();
        let known = |ip: IpAddr| (!ip.is_loopback()).then_some(ip);
        let options = RuleOptions {
            masquerade_all: config.masquerade_all,
            local_pods: PerFamily::from_fn(|family| self.local_pods(family)),
            node_ports: PerFamily { v4: decisions.v4.0, v6: decisions.v6.0 },
            node_ips: PerFamily::from_fn(|family| known(self.node_ips[family])),
            guard_cluster_ips: nftables,
            localhost_node_ports: config.localhost_nodeports,
            localhost: PerFamily::from_fn(|family| self.localhost(family)),
            drop_invalid: iptables && !config.conntrack.tcp_be_liberal,
            hairpin_everywhere: !nftables,
            restrict_without_endpoints: nftables,
            service_counters: config.service_counters,
        };
        (options, hints)
    }

    /// The addresses the engine should know: those that accept NodePorts, or all of the node's.
    pub fn local_addresses(&self, assigned: &NodeAddresses) -> PerFamily<Vec<IpAddr>> {
        PerFamily::from_fn(|family| match self.node_ports(assigned, family).0 {
            NodePortMatch::Addresses(addresses) => addresses,
            NodePortMatch::AnyLocal => {
                let of_family = assigned.0.iter().filter(|ip| Family::of(ip) == family);
                of_family.filter(|ip| !ip.is_loopback()).copied().collect()
            }
        })
    }

    fn node_ports(&self, assigned: &NodeAddresses, family: Family) -> (NodePortMatch, Vec<Hint>) {
        let configured = &self.config.nodeport_addresses;
        let localhost = self.config.localhost_nodeports;
        let decision = nodeport_addresses(configured, &self.node_ips, assigned, family, localhost);
        let proxied = matches!(self.localhost(family), LocalhostNodePorts::Proxied { .. });
        let mut hints = decision.hints;
        hints.retain(|hint| !proxied || !matches!(hint, Hint::LoopbackIgnored(_)));
        (decision.matched, hints)
    }

    /// With the gate on, loopback NodePorts are either served by the proxy or refused.
    fn localhost(&self, family: Family) -> LocalhostNodePorts {
        match self.config.localhost {
            None => LocalhostNodePorts::Untouched,
            Some(proxy) if self.config.nodeport_addresses.name_loopback(family) => {
                LocalhostNodePorts::Proxied { udp: proxy.udp }
            }
            Some(_) => LocalhostNodePorts::Refused,
        }
    }

    fn local_pods(&self, family: Family) -> LocalPods {
        let cidr = match &self.config.detect_local {
            DetectLocal::ClusterCidr => self.config.cluster_cidrs[family],
            DetectLocal::NodeCidr => {
                self.pod_cidrs.iter().copied().find(|net| Family::of_net(net) == family)
            }
            DetectLocal::BridgeInterface(name) => return LocalPods::Interface(name.clone()),
            DetectLocal::InterfaceNamePrefix(prefix) => {
                return LocalPods::InterfacePrefix(prefix.clone());
            }
        };
        cidr.map_or(LocalPods::Unknown, LocalPods::Cidr)
    }
}
