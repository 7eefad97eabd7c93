//! What one turn of the worker did, as values: all that the rest of the agent learns.
//!
//! Place in the flow: the worker takes what came in, syncs the families that are due, and hands one
//! [`Turn`] to its subscribers. Nobody is called in between, and nobody gets at engine or kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::blame::Quarantined;
use super::{Report, Synchronizer};
use crate::engine::{Conflict, Effect, Engine, FamilySummary, UnservedReason};
use crate::kernel::Kernel;
use crate::model::{Change, EndpointSlice, Families, Family, Kind, Node, ObjectName, Service};
use crate::program::{LocalhostPort, NodeAddressing};
use crate::ruleset::Ownership;

/// Learns what each turn did. Called on the worker's thread: must not block.
pub trait Subscriber: Send {
    fn turn(&mut self, turn: &Turn);
}

#[derive(Debug, Default)]
pub struct Turn {
    pub families: Families,
    /// What came in from the source, in order.
    pub arrivals: Vec<Arrival>,
    /// This node's object, if it changed.
    pub node: Option<Arc<Node>>,
    /// It was deleted.
    pub node_deleted: bool,
    /// Where the node is reached now, if its addresses or its object changed.
    pub addressing: Option<NodeAddressing>,
    /// Families that what came in gave work to.
    pub requested: Families,
    /// Families that had work when the turn began to sync.
    pub waiting: Families,
    /// The syncs, at most one a family.
    pub syncs: Vec<Synced>,
    /// Changes that wait already for the next turn.
    pub backlog: usize,
}

/// A change as it was delivered, without its objects, and what it meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    pub kind: Kind,
    /// How many objects.
    pub objects: usize,
    /// It was a complete list.
    pub list: bool,
    pub effect: Effect,
}

impl Arrival {
    /// Kind, number of objects, and whether they are a complete list.
    pub(super) fn shape(change: &Change) -> (Kind, usize, bool) {
        match change {
            Change::Apply(object) => (object.kind(), 1, false),
            Change::Delete(kind, _) => (*kind, 1, false),
            Change::Replace(kind, objects) => (*kind, objects.len(), true),
        }
    }
}

#[derive(Debug)]
pub struct Synced {
    /// What was done.
    pub report: Report,
    pub elapsed: Duration,
    /// It was a repair: who had changed the table, as far as is known.
    pub repair: Option<Foreign>,
    /// The services whose rules are in force since, whatever became of the others.
    pub in_force: Vec<InForce>,
    /// How the family stands after it.
    pub state: FamilyState,
}

/// Someone else's change of our table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Foreign {
    /// What was changed, in words.
    pub what: String,
    /// Name of the process that did it, as it calls itself.
    pub by: Option<String>,
}

/// A service whose rules are in force, with the objects they were made from.
#[derive(Debug, Clone)]
pub struct InForce {
    pub name: ObjectName,
    /// The Service; `None` if it is gone.
    pub service: Option<Arc<Service>>,
    /// Its slices of all families, sorted by name.
    pub slices: SmallVec<[Arc<EndpointSlice>; 1]>,
    /// Distinct addresses of ready endpoints on this node, for a Service with a health-check node
    /// port; otherwise zero.
    pub local_ready: usize,
    /// What a proxy on loopback addresses has to serve for it in the family.
    pub localhost: Vec<LocalhostPort>,
}

impl InForce {
    fn of(engine: &Engine, family: Family, name: &ObjectName) -> Self {
        let service = engine.store().service(name).cloned();
        let checked = service.as_ref().is_some_and(|s| s.health_check_node_port.is_some());
        InForce {
            slices: engine.store().slices(name).iter().cloned().collect(),
            localhost: engine.localhost_ports(family, name),
            local_ready: if checked { engine.local_ready(family, name) } else { 0 },
            service,
            name: name.clone(),
        }
    }
}

/// How many service ports a state names for each reason why they are not served.
const NAMED_UNSERVED: usize = 5;

/// How a family stands.
#[derive(Debug, Clone, Default)]
pub struct FamilyState {
    pub summary: FamilySummary,
    /// Mark of the program.
    pub program: String,
    /// Who owns the table, as the kernel said last.
    pub ownership: Ownership,
    /// Elements in the kernel, if they were counted: after the table was read.
    pub elements: Option<usize>,
    pub conflicts: Vec<Conflict>,
    /// Service ports that are not served to everyone: how many, and the first of them.
    pub unserved: BTreeMap<UnservedReason, (usize, Vec<Arc<str>>)>,
    pub quarantine: BTreeMap<ObjectName, Quarantined>,
}

impl FamilyState {
    fn of<K: Kernel>(synchronizer: &Synchronizer<K>, family: Family, read: bool) -> Self {
        let engine = &synchronizer.engine;
        let named = |labels: &BTreeSet<Arc<str>>| {
            (labels.len(), labels.iter().take(NAMED_UNSERVED).cloned().collect())
        };
        let unserved = engine.unserved(family).iter();
        FamilyState {
            summary: engine.summary(family),
            program: engine.program(family).mark.clone(),
            ownership: engine.ownership(family),
            elements: read.then(|| engine.element_count(family)),
            conflicts: engine.conflicts(family),
            unserved: unserved.map(|(reason, labels)| (*reason, named(labels))).collect(),
            quarantine: synchronizer.quarantined(family).clone(),
        }
    }
}

impl Synced {
    /// Of a report, while engine and kernel are as it left them.
    pub(super) fn new<K: Kernel>(
        synchronizer: &Synchronizer<K>,
        report: Report,
        elapsed: Duration,
        repair: Option<Foreign>,
    ) -> Self {
        let (family, engine) = (report.family, &synchronizer.engine);
        let services = report.services.iter();
        Synced {
            elapsed,
            repair,
            in_force: services.map(|name| InForce::of(engine, family, name)).collect(),
            state: FamilyState::of(synchronizer, family, report.adoption.is_some()),
            report,
        }
    }
}
