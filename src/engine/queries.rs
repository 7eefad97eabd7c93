//! What others want to know of the engine: conntrack, health, metrics, status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::applied::Stage;
use super::{Claim, Engine, NodeElements};
use crate::model::{Family, ObjectName, TrafficPolicy};
use crate::program::{FrontendKey, LocalhostPort, Placement, elements, localhost_port};
use crate::topology::local_ready_addresses;

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

/// Figures of one family, kept up with every commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct FamilySummary {
    /// What is applied.
    #[serde(flatten)]
    pub totals: ServiceCounts,
    /// Services waiting to be planned.
    pub dirty: usize,
    /// Services set aside.
    pub set_aside: usize,
    /// Contested frontends.
    pub conflicts: usize,
    /// Classes of lists that have objects in the kernel.
    pub classes: usize,
    /// Whether the rules are in force.
    pub attached: bool,
}

/// Sums over everything that is applied in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct ServiceCounts {
    /// Services with something in the kernel.
    pub services: usize,
    /// Service ports.
    pub ports: usize,
    /// Frontends.
    pub frontends: usize,
    /// Endpoints: per port the longer of its two lists.
    pub endpoints: usize,
    /// Service ports with internal policy Local, endpoints somewhere and none here (B-256).
    pub internal_without_local: usize,
    /// The same for the external policy.
    pub external_without_local: usize,
}

/// Why a service port is not served to everyone who dials it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum UnservedReason {
    /// There is no usable endpoint anywhere: refused.
    NoEndpoints,
    /// Internal policy Local and no endpoint here (B-256): the ClusterIP drops.
    InternalLocal,
    /// External policy Local and no endpoint here: what comes from outside is dropped.
    ExternalLocal,
}

impl UnservedReason {
    /// Every reason that holds for a port.
    pub(super) fn of(placement: &Placement) -> impl Iterator<Item = UnservedReason> + use<> {
        let without_local = placement.any && placement.local.is_empty();
        let local = |policy| policy == TrafficPolicy::Local && without_local;
        [
            (!placement.any && !placement.frontends.is_empty(), UnservedReason::NoEndpoints),
            (local(placement.internal), UnservedReason::InternalLocal),
            (local(placement.external), UnservedReason::ExternalLocal),
        ]
        .into_iter()
        .filter_map(|(holds, reason)| holds.then_some(reason))
    }
}

impl ServiceCounts {
    /// What a service with these placements counts for.
    pub(super) fn of(placements: &[Placement]) -> ServiceCounts {
        let mut totals = ServiceCounts {
            services: usize::from(!placements.is_empty()),
            ..ServiceCounts::default()
        };
        for placement in placements {
            let endpoints = placement.cluster.members().len().max(placement.local.members().len());
            totals.ports += 1;
            totals.frontends += placement.frontends.len();
            totals.endpoints += endpoints;
            for reason in UnservedReason::of(placement) {
                match reason {
                    UnservedReason::NoEndpoints => {}
                    UnservedReason::InternalLocal => totals.internal_without_local += 1,
                    UnservedReason::ExternalLocal => totals.external_without_local += 1,
                }
            }
        }
        totals
    }

    /// With a service's part replaced.
    pub(super) fn replace(self, before: ServiceCounts, after: ServiceCounts) -> ServiceCounts {
        let swap = |total: usize, before: usize, after: usize| total + after - before;
        ServiceCounts {
            services: swap(self.services, before.services, after.services),
            ports: swap(self.ports, before.ports, after.ports),
            frontends: swap(self.frontends, before.frontends, after.frontends),
            endpoints: swap(self.endpoints, before.endpoints, after.endpoints),
            internal_without_local: swap(
                self.internal_without_local,
                before.internal_without_local,
                after.internal_without_local,
            ),
            external_without_local: swap(
                self.external_without_local,
                before.external_without_local,
                after.external_without_local,
            ),
        }
    }
}

impl Engine {
    /// Figures of a family, from what is applied.
    pub fn summary(&self, family: Family) -> FamilySummary {
        let state = &self.state[family];
        FamilySummary {
            totals: state.applied.totals,
            dirty: state.dirty.len(),
            set_aside: state.set_aside.len(),
            conflicts: state.claims.conflict_count(),
            classes: state.applied.classes().count(),
            attached: state.applied.stage == Stage::Attached,
        }
    }

    /// Labels of applied service ports that are not served to everyone, by reason.
    pub fn unserved(&self, family: Family) -> &BTreeMap<UnservedReason, BTreeSet<Arc<str>>> {
        &self.state[family].applied.unserved
    }

    /// Elements that were found in the kernel and elements of applied services. Proportional to the
    /// cluster: for full syncs only.
    pub fn element_count(&self, family: Family) -> usize {
        let applied = &self.state[family].applied;
        let placements = applied.services.values().flatten();
        let own = placements.flat_map(|p| elements(p, family, &self.options));
        let own = own.filter(|(set, _)| !set.is_shared()).count();
        let NodeElements { node_port_ips, service_cidrs, refused_on_localhost } =
            &applied.node_elements;
        let node_elements = node_port_ips.len() + service_cidrs.len() + refused_on_localhost.len();
        own + applied.shared.len() + node_elements
    }

    /// What is applied for a service, in the order of its ports.
    pub fn applied_placements(&self, family: Family, service: &ObjectName) -> &[Placement] {
        self.state[family].applied.placements(service)
    }

    /// What a proxy on loopback addresses has to serve for a service, from what is applied.
    pub fn localhost_ports(&self, family: Family, service: &ObjectName) -> Vec<LocalhostPort> {
        let localhost = self.options.localhost[family];
        let placements = self.applied_placements(family, service).iter();
        placements.filter_map(|placement| localhost_port(placement, localhost)).collect()
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

    /// Number of distinct ready local addresses of a service in a family (B-243, B-244).
    pub fn local_ready(&self, family: Family, service: &ObjectName) -> usize {
        let slices = self.store.slices(service).iter().map(|slice| &**slice);
        local_ready_addresses(slices.filter(|slice| slice.family == family), &self.node_topology)
    }
}
