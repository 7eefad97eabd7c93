//! From changed objects to transactions: the pure heart.
//!
//! Place in the flow: [`Engine::apply`] takes a source's changes and marks services dirty;
//! [`Engine::plan`] turns dirty services of one family into a [`Plan`]; the synchronizer commits its
//! transaction and reports back with [`Engine::applied`], or with nothing at all, in which case the
//! services stay dirty. Knows no clock, no I/O, no kernel.
//!
//! One code path: a plan computes what its dirty services should have and compares it with what they
//! have. At a cold start that is nothing; after a restart or a foreign change it is what was found in
//! the kernel ([`Engine::adopt`]); otherwise it is what was applied before. A full sync is the same
//! with all services dirty.

mod adopt;
mod affinity;
mod applied;
mod aside;
mod changes;
mod claims;
mod desired;
mod plan;
mod read_back;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{Change, Families, Family, Kind, Object, ObjectName, PerFamily, Protocol};
use crate::program::{
    FrontendKey, LocalhostPort, NodeAddressing, NodePortMatch, Placement, Program, RuleOptions,
    elements, localhost_port, program,
};
use crate::ruleset::{Ownership, Table};
use crate::topology::{NodeTopology, local_ready_addresses};
use applied::{Applied, Stage};
use claims::Claims;

pub use adopt::Adoption;
pub use applied::surviving_clients;
pub use applied::{ServiceCounts, UnservedReason};
pub use aside::MOST_ENTRIES;
pub use claims::Claim;
pub use plan::{Draft, Plan, Selection, replace_clients};
pub use store::{Effect, Store};

/// Decides what the kernel should have, and how to get there.
#[derive(Debug)]
pub struct Engine {
    options: RuleOptions,
    node_topology: NodeTopology,
    families: Families,
    /// Whether the kernel can own tables for us (design: 6.9 or newer, probed).
    owned: bool,
    store: Store,
    state: PerFamily<FamilyState>,
}

/// One family's part.
#[derive(Debug)]
struct FamilyState {
    program: Program,
    claims: Claims,
    applied: Applied,
    /// Services whose fragment may differ from what is applied.
    dirty: BTreeSet<ObjectName>,
    /// Services that are set aside, and what they keep.
    set_aside: BTreeMap<ObjectName, Vec<Placement>>,
    /// Addresses and networks that belong to no service, as they should be.
    node_elements: NodeElements,
}

/// Elements that belong to no service.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct NodeElements {
    /// Sorted, without duplicates.
    node_port_ips: Vec<IpAddr>,
    /// Aggregated, sorted.
    service_cidrs: Vec<IpNet>,
    /// Protocols refused to NodePorts on loopback addresses, sorted.
    refused_on_localhost: &'static [Protocol],
}

impl Engine {
    /// An engine without objects, in front of kernels without tables. `owned` says whether tables are
    /// created owned and persistent.
    pub fn new(
        options: RuleOptions,
        node_topology: NodeTopology,
        families: Families,
        owned: bool,
    ) -> Self {
        let state = PerFamily::from_fn(|family| FamilyState {
            program: program(family, &options),
            claims: Claims::default(),
            applied: Applied::default(),
            dirty: BTreeSet::new(),
            set_aside: BTreeMap::new(),
            node_elements: node_elements(
                family,
                &options,
                &Store::default(),
                initial(family, &options),
            ),
        });
        Engine { options, node_topology, families, owned, store: Store::default(), state }
    }

    pub fn families(&self) -> Families {
        self.families
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    pub fn options(&self) -> &RuleOptions {
        &self.options
    }

    /// This node as endpoint selection sees it.
    pub fn node_topology(&self) -> &NodeTopology {
        &self.node_topology
    }

    pub fn program(&self, family: Family) -> &Program {
        &self.state[family].program
    }

    /// The table object of a family, as it should be.
    pub fn table(&self, family: Family) -> Table {
        self.state[family].program.table(self.owned)
    }

    /// Whose the table of a family is, as the last reading or commit showed it.
    pub fn ownership(&self, family: Family) -> Ownership {
        self.state[family].applied.owner
    }

    /// The kernel says that another process owns the table.
    pub fn disowned(&mut self, family: Family, portid: u32) {
        self.state[family].applied.owner = Ownership::Other(portid);
    }

    /// Takes a change from a source. Returns what it touched; nothing is planned here. Nodes other
    /// than this one are ignored.
    pub fn apply(&mut self, change: Change) -> Effect {
        let mut effect = self.store.apply(self.of_this_node(change));
        let mut families = Families::default();
        for family in self.families.iter() {
            for service in &effect.services {
                if effect.service_objects.contains(service) {
                    self.claim(family, service);
                }
                if self.concerns(family, service) {
                    self.mark_dirty(family, service.clone());
                    families = families.with(family);
                }
            }
        }
        if effect.service_cidrs {
            families = families.union(self.refresh_statics(None));
        }
        if effect.node {
            effect.zone = self.set_zone(self.store.node().and_then(|node| node.zone.clone()));
        }
        // The first lists, and a new zone, concern every service.
        if effect.zone || effect.listed.is_some() {
            families = self.families;
        }
        effect.families = families;
        effect
    }

    fn of_this_node(&self, change: Change) -> Change {
        let is_other = |object: &Object| {
            object.kind() == Kind::Node && object.name().name != self.node_topology.node
        };
        match change {
            Change::Apply(object) if is_other(&object) => {
                Change::Delete(Kind::Node, object.name().clone())
            }
            Change::Replace(Kind::Node, mut nodes) => {
                nodes.retain(|node| !is_other(node));
                Change::Replace(Kind::Node, nodes)
            }
            change => change,
        }
    }

    /// The node's zone changed: every cluster list may (B-060).
    pub fn set_zone(&mut self, zone: Option<std::sync::Arc<str>>) -> bool {
        let changed = self.node_topology.zone != zone;
        if changed {
            self.node_topology.zone = zone;
            self.mark_all_dirty();
        }
        changed
    }

    /// The node's addresses, or what its Node says of them, are others now. Returns the families that
    /// have work with it, and those whose rules are others: their tables have to be read, so that
    /// affinity outlives them, and are replaced.
    pub fn set_surroundings(&mut self, addressing: &NodeAddressing) -> (Families, Families) {
        let NodeAddressing { options, local_addresses } = addressing;
        let mut rewritten = Families::default();
        for family in self.families.iter() {
            let program = program(family, options);
            if self.state[family].program.mark != program.mark {
                self.state[family].program = program;
                rewritten = rewritten.with(family);
            }
        }
        let before = std::mem::replace(&mut self.options, options.clone());
        let mut changed = self.set_local_addresses(local_addresses).union(rewritten);
        // Source ranges depend on them (B-161).
        if before.node_ips != self.options.node_ips {
            self.mark_all_dirty();
            changed = self.families;
        }
        (changed, rewritten)
    }

    /// The addresses that accept NodePort traffic, or, in match-all mode, all addresses of the node.
    /// Returns the families that have work with it.
    pub fn set_local_addresses(&mut self, addresses: &PerFamily<Vec<IpAddr>>) -> Families {
        self.refresh_statics(Some(addresses))
    }

    /// Everything may differ from what is applied.
    pub fn mark_all_dirty(&mut self) {
        let names: Vec<ObjectName> =
            self.store.services().map(|service| service.name.clone()).collect();
        for family in self.families.iter() {
            let state = &mut self.state[family];
            state.dirty.extend(names.iter().cloned());
            state.dirty.extend(state.applied.service_names().cloned());
        }
    }

    /// Whether services and slices are completely listed: before that nothing is planned (B-190).
    pub fn is_ready(&self) -> bool {
        self.store.is_listed(Kind::Service) && self.store.is_listed(Kind::EndpointSlice)
    }

    /// Whether a family has something to commit.
    pub fn is_pending(&self, family: Family) -> bool {
        let state = &self.state[family];
        let settled = state.dirty.is_empty()
            && state.applied.is_settled(self.owned)
            && state.applied.node_elements == state.node_elements;
        self.is_ready() && self.families.contains(family) && !settled
    }

    /// Whether a service has, had or may get something in a family. Most clusters serve most services
    /// in one family only; the other has no work with them.
    fn concerns(&self, family: Family, name: &ObjectName) -> bool {
        let state = &self.state[family];
        let has_slices = || self.store.slices(name).iter().any(|slice| slice.family == family);
        self.store.service(name).is_some_and(|service| service.cluster_ip(family).is_some())
            || state.applied.services.contains_key(name)
            || state.set_aside.contains_key(name)
            || has_slices()
    }

    /// A service is to be planned as its objects say, also if it was set aside.
    fn mark_dirty(&mut self, family: Family, service: ObjectName) {
        if self.state[family].set_aside.remove(&service).is_some() {
            self.claim(family, &service);
        }
        self.state[family].dirty.insert(service);
    }

    fn claim(&mut self, family: Family, name: &ObjectName) {
        let claims = self
            .store
            .service(name)
            .map(|service| desired::claims(service, family))
            .unwrap_or_default();
        let state = &mut self.state[family];
        state.dirty.extend(state.claims.set(name, claims));
    }

    fn refresh_statics(&mut self, addresses: Option<&PerFamily<Vec<IpAddr>>>) -> Families {
        let mut changed = Families::default();
        for family in self.families.iter() {
            let current = &self.state[family].node_elements.node_port_ips;
            let addresses = addresses.map_or(current, |addresses| &addresses[family]).clone();
            let new = node_elements(family, &self.options, &self.store, &addresses);
            if new != self.state[family].node_elements {
                self.state[family].node_elements = new;
                changed = changed.with(family);
            }
        }
        changed
    }
}

/// The addresses the options were made with.
fn initial(family: Family, options: &RuleOptions) -> &[IpAddr] {
    match &options.node_ports[family] {
        NodePortMatch::AnyLocal => &[],
        NodePortMatch::Addresses(addresses) => addresses,
    }
}

fn node_elements(
    family: Family,
    options: &RuleOptions,
    store: &Store,
    addresses: &[IpAddr],
) -> NodeElements {
    let mut node_port_ips = addresses.to_vec();
    node_port_ips.sort_unstable();
    node_port_ips.dedup();
    let mut service_cidrs = Vec::new();
    if options.guard_cluster_ips {
        let all: Vec<IpNet> = store
            .service_cidrs()
            .flat_map(|object| object.cidrs.iter().copied())
            .filter(|net| Family::of_net(net) == family)
            .collect();
        service_cidrs = IpNet::aggregate(&all);
        service_cidrs.sort();
    }
    let refused_on_localhost = options.localhost[family].refused();
    NodeElements { node_port_ips, service_cidrs, refused_on_localhost }
}

// What others want to know of the engine: conntrack, health, metrics, status.

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
    pub set_aside: usize,
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
