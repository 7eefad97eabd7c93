//! From the configuration and the node to the options of the program. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Config, DetectLocal, ProxyMode};
use crate::model::{Family, Node, NodeAddresses, PerFamily};
use crate::node::nodeport::{Hint, nodeport_addresses};
use crate::node::object::NodeIps;
use crate::program::{LocalPods, LocalhostNodePorts, NodeAddressing, NodePortMatch, RuleOptions};

/// What of the configuration decides about traffic, together with what the node says.
#[derive(Debug, Clone)]
pub struct Traffic {
    pub config: Config,
    /// Effective node IPs, loopback where none is known.
    pub node_ips: PerFamily<IpAddr>,
    /// The Node's podCIDRs at start.
    pub pod_cidrs: Vec<IpNet>,
}

impl Traffic {
    /// On a node whose object is this one, if there is any.
    pub fn new(config: Config, node: Option<&Node>) -> Self {
        let pod_cidrs = node.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        Traffic { node_ips: config.node_ips(node).ips, pod_cidrs, config }
    }

    /// The Node changed. While it has no address, those that it had count. (Other podCIDRs mean nothing,
    /// or end the process: B-058.)
    pub fn follow(&mut self, node: &Node) {
        if !node.addresses.is_empty() {
            self.node_ips = self.config.node_ips(Some(node)).ips;
        }
    }

    /// Where the node is reached, and what an operator should be told about it.
    pub fn addressing(&self, assigned: &NodeAddresses) -> (NodeAddressing, Vec<Hint>) {
        let (options, hints) = self.options(assigned);
        (NodeAddressing { options, local_addresses: self.local_addresses(assigned) }, hints)
    }

    /// The options of the program, and what an operator should be told about them.
    fn options(&self, assigned: &NodeAddresses) -> (RuleOptions, Vec<Hint>) {
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
            before_host_ports: iptables,
            drop_invalid: config.drop_invalid || iptables && !config.conntrack.tcp_be_liberal,
            hairpin_everywhere: !nftables,
            restrict_without_endpoints: nftables,
            service_counters: config.service_counters,
        };
        (options, hints)
    }

    /// The addresses the engine should know: those that accept NodePorts, or all of the node's.
    fn local_addresses(&self, assigned: &NodeAddresses) -> PerFamily<Vec<IpAddr>> {
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

impl Config {
    /// The effective node IPs: `bindAddress`, unless it is unspecified, and the Node's.
    pub fn node_ips(&self, node: Option<&Node>) -> NodeIps {
        NodeIps::resolve(node, self.bind_address)
    }
}
