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
mod queries;
mod read_back;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

pub use adopt::Adoption;
pub use applied::surviving_clients;
pub use applied::{ServiceCounts, UnservedReason};
pub use aside::MOST_ENTRIES;
pub use claims::Claim;
pub use plan::{Draft, Plan, Selection, replace_clients};
pub use queries::{Conflict, FamilySummary};
pub use store::{Effect, Store};

use crate::model::{Change, Families, Family, Kind, Object, ObjectName, PerFamily, Protocol};
use crate::program::{NodeAddressing, NodePortMatch, Placement, Program, RuleOptions, program};
use crate::ruleset::{Ownership, Table};
use crate::topology::NodeTopology;
use applied::Applied;
use claims::Claims;

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

    /// The families that are programmed.
    pub fn families(&self) -> Families {
        self.families
    }

    /// The objects.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The options of the program.
    pub fn options(&self) -> &RuleOptions {
        &self.options
    }

    /// This node as endpoint selection sees it.
    pub fn node_topology(&self) -> &NodeTopology {
        &self.node_topology
    }

    /// The program of a family.
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
