//! What others want to know of the engine: conntrack, health, metrics, status.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::desired::{frontends, served_ports};
use super::{Claim, Engine};
use crate::model::{Family, ObjectName, Protocol, Service, TrafficPolicy};
use crate::program::{FrontendAt, FrontendKey, Placement};
use crate::topology::{Backend, local_ready_addresses, merge, serving};

/// A UDP service port, as the conntrack clean-up needs it (section 7.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpPort {
    /// ClusterIP, load-balancer IPs and external IPs.
    pub addresses: Vec<IpAddr>,
    /// The service port.
    pub port: u16,
    /// The node port.
    pub node_port: Option<u16>,
    /// Endpoints that serve, sorted; flows to others are stale.
    pub serving: Vec<Backend>,
}

/// A frontend that several service ports claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// The frontend.
    pub frontend: FrontendKey,
    /// Who has it.
    pub owner: Claim,
    /// Who would like to, in order.
    pub others: Vec<Claim>,
}

/// Figures of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FamilySummary {
    /// Services with something in the kernel.
    pub services: usize,
    /// Service ports.
    pub ports: usize,
    /// Frontends.
    pub frontends: usize,
    /// Members of lists for policy Cluster, and for policy Local.
    pub endpoints: usize,
    /// Services waiting to be planned.
    pub dirty: usize,
    /// Services set aside.
    pub set_aside: usize,
    /// Contested frontends.
    pub conflicts: usize,
    /// Whether the rules are in force.
    pub attached: bool,
    /// Service ports with internal policy Local, endpoints somewhere and none here (section 5.11).
    pub internal_without_local: usize,
    /// The same for the external policy.
    pub external_without_local: usize,
}

impl Engine {
    /// Figures of a family, from what is applied.
    pub fn summary(&self, family: Family) -> FamilySummary {
        let state = &self.state[family];
        let mut summary = FamilySummary {
            services: state.applied.services.len(),
            dirty: state.dirty.len(),
            set_aside: state.set_aside.len(),
            conflicts: state.claims.conflict_count(),
            attached: state.applied.stage == super::applied::Stage::Attached,
            ..FamilySummary::default()
        };
        for placement in state.applied.services.values().flatten() {
            summary.ports += 1;
            summary.frontends += placement.frontends.len();
            summary.endpoints +=
                placement.cluster.members().len().max(placement.local.members().len());
            let without_local = placement.any && placement.local.is_empty();
            let internal = placement.internal == TrafficPolicy::Local;
            let external = placement.external == TrafficPolicy::Local;
            summary.internal_without_local += usize::from(internal && without_local);
            summary.external_without_local += usize::from(external && without_local);
        }
        summary
    }

    /// What is applied for a service, in the order of its ports.
    pub fn applied_placements(&self, family: Family, service: &ObjectName) -> &[Placement] {
        self.state[family].applied.placements(service)
    }

    /// Everything that is applied in a family, in no order.
    pub fn all_applied(&self, family: Family) -> impl Iterator<Item = &Placement> {
        self.state[family].applied.services.values().flatten()
    }

    /// The contested frontends of a family.
    pub fn conflicts(&self, family: Family) -> Vec<Conflict> {
        let conflict = |(frontend, claims): (&FrontendKey, &[Claim])| Conflict {
            frontend: *frontend,
            owner: claims[0].clone(),
            others: claims[1..].to_vec(),
        };
        self.state[family].claims.conflicts().map(conflict).collect()
    }

    /// The UDP ports of a service in a family.
    pub fn udp_ports(&self, family: Family, service: &Service) -> Vec<UdpPort> {
        let slices = self.store.slices(&service.name);
        served_ports(service, family)
            .filter(|port| port.protocol == Protocol::Udp)
            .map(|port| {
                let slices = slices.iter().map(|slice| &**slice);
                let endpoints = merge(slices, family, &port.name, port.protocol);
                let addresses = frontends(service, port, family)
                    .into_iter()
                    .filter_map(|frontend| match frontend.key.at {
                        FrontendAt::Address(address) => Some(address),
                        FrontendAt::NodePort => None,
                    })
                    .collect();
                UdpPort {
                    addresses,
                    port: port.port,
                    node_port: port.node_port,
                    serving: serving(&endpoints),
                }
            })
            .collect()
    }

    /// Whether any slice of a service has a UDP port.
    pub fn has_udp_slices(&self, service: &ObjectName) -> bool {
        let slices = self.store.slices(service);
        slices.iter().flat_map(|slice| &slice.ports).any(|port| port.protocol == Protocol::Udp)
    }

    /// Services with a health-check node port, each with its number of distinct ready local
    /// addresses (B-241 to B-244).
    pub fn health_checks(&self) -> BTreeMap<ObjectName, (Arc<Service>, usize)> {
        let with_port = self.store.services().filter(|s| s.health_check_node_port.is_some());
        with_port
            .map(|service| {
                let slices = self.store.slices(&service.name).iter().map(|slice| &**slice);
                let count = local_ready_addresses(slices, &self.vantage);
                (service.name.clone(), (service.clone(), count))
            })
            .collect()
    }
}
