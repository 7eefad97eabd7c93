//! What others want to know of the engine: conntrack, health, metrics, status.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::applied::{ServiceCounts, Stage, UnservedReason};
use super::{Claim, Engine, NodeElements};
use crate::model::{Family, ObjectName};
use crate::program::{FrontendKey, LocalhostPort, Placement, elements, localhost_port};
use crate::topology::local_ready_addresses;

/// A frontend that several service ports claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
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
