//! Plans: what to commit for some dirty services, and what it will mean.

mod draft;

use std::collections::{BTreeMap, BTreeSet};

use foldhash::HashMap;

pub use super::affinity::replace_clients;
use super::applied::{Applied, Stage};
use super::aside::still_owned;
use super::changes::{Changes, Settled};
use super::desired::{Context, placements};
use super::{Engine, FamilyState, NodeElements, ServiceCounts};
use crate::kernel::{Op, Rejection, Transaction};
use crate::model::{Family, ObjectName};
use crate::program::{Extension, Placement, SetId, elements as program_elements, service_objects};
use crate::ruleset::{Chain, Element, Key, Name, Rule, handover};
use crate::topology::Backend;
pub use draft::Draft;
use draft::ObjectChanges;

/// Which dirty services a plan takes.
#[derive(Debug, Clone, Copy)]
pub enum Selection<'a> {
    /// As many as fit into this number of elements that are added or deleted, so that a commit does not
    /// hold the kernel's lock for long; the last one may exceed it. A foreign table is replaced whole,
    /// whatever the number.
    Elements(usize),
    /// These.
    Only(&'a BTreeSet<ObjectName>),
    /// All but these.
    Except(&'a BTreeSet<ObjectName>),
}

/// A transaction, and what the applied state becomes when it is committed.
#[derive(Debug)]
pub struct Plan {
    /// What to commit; may be empty when services turned out to be as they should be.
    pub transaction: Transaction,
    /// The services it covers.
    pub services: BTreeSet<ObjectName>,
    /// Affinity maps that lost a member, and the members they may refer to: a packet of the old
    /// generation may write one more entry, so they are read again after the commit.
    pub recheck: Vec<(Name, Vec<Backend>)>,
    /// Services that were left out, and how many list entries they would have: they are to be set
    /// aside.
    pub oversized: Vec<(ObjectName, usize)>,
    placements: Vec<(ObjectName, Vec<Placement>)>,
    settled: Settled,
    extensions: BTreeSet<Extension>,
    /// Services with frontends that source ranges restrict.
    restricted: BTreeSet<ObjectName>,
    objects: ObjectChanges,
    clients: Vec<Op>,
    node_elements: Option<NodeElements>,
    /// No service is left to be planned.
    covers: bool,
    /// Nor is anything left that was found.
    finishes: bool,
    stage: Stage,
    /// Chains that stand by until the transaction has replaced a table.
    handover: Vec<Name>,
}

impl Engine {
    /// Begins a plan for dirty services of a family.
    pub fn draft<'a>(&'a self, family: Family, selection: Selection<'a>) -> Draft<'a> {
        Draft::start(self, family, selection)
    }

    /// A plan for dirty services of a family where no affinity map has to be read that is not among
    /// `clients`.
    pub fn plan(
        &self,
        family: Family,
        selection: Selection<'_>,
        clients: &BTreeMap<Name, Vec<Element>>,
    ) -> Plan {
        let mut draft = self.draft(family, selection);
        while let Some(maps) = draft.advance() {
            for map in maps {
                if let Some(known) = clients.get(&map) {
                    draft.remember(map, known.clone());
                }
            }
        }
        draft.finish()
    }

    /// The placements a service should have.
    fn placements(&self, family: Family, service: &ObjectName) -> Vec<Placement> {
        let state = &self.state[family];
        if let Some(kept) = state.set_aside.get(service) {
            return still_owned(kept, &state.claims);
        }
        let Some(object) = self.store.service(service) else { return Vec::new() };
        let context = Context {
            family,
            options: &self.options,
            node_topology: &self.node_topology,
            claims: &state.claims,
        };
        placements(context, object, self.store.slices(service), |placement| {
            state.applied.lists(placement, family)
        })
    }

    /// The elements of a service's ports, in order of set and key. A port may repeat a shared element
    /// of another.
    fn elements(&self, family: Family, placements: &[Placement]) -> Vec<(SetId, Element)> {
        let of_port = |placement| program_elements(placement, family, &self.options);
        let mut all: Vec<(SetId, Element)> = placements.iter().flat_map(of_port).collect();
        if placements.len() > 1 {
            all.sort_by_key(|(set, element)| (*set, element.key));
        }
        all
    }

    /// The transaction of a plan was committed.
    pub fn applied(&mut self, family: Family, plan: Plan) {
        let taken = self.taken_from_aside(family, &plan);
        let state = &mut self.state[family];
        for (service, _) in &plan.placements {
            state.dirty.remove(service);
        }
        state.applied.install(plan);
        for (service, keys) in taken {
            self.let_go(family, service, &keys);
        }
    }

    /// What has late packets of connections refused that are ended (see [`crate::program::ended`]); `None`
    /// where no traffic passes yet.
    pub fn refusal(&self, family: Family, connections: Vec<Element>) -> Option<Transaction> {
        let state = &self.state[family];
        let mut refusal = Transaction::new(family);
        let mut new = BTreeSet::from([Extension::EndedConnections]);
        new.retain(|extension| !state.applied.extensions.contains(extension));
        extend_program(family, state, &new, true, &mut refusal.ops);
        refusal.ops.push(Op::AddElements(SetId::EndedConnections.name(), connections));
        (state.applied.stage == Stage::Attached).then_some(refusal)
    }

    /// It was committed.
    pub fn refused(&mut self, family: Family) {
        self.state[family].applied.extensions.insert(Extension::EndedConnections);
    }

    /// The service whose part of a plan the kernel refused, as far as the refusal tells.
    pub fn culprit(
        &self,
        family: Family,
        plan: &Plan,
        rejection: &Rejection,
    ) -> Option<ObjectName> {
        let op = plan.transaction.ops.get(rejection.op?)?;
        let (Op::AddElements(set, elements) | Op::DeleteElements(set, elements)) = op else {
            return plan.placements.iter().find(|(_, p)| self.owns(family, p, op)).map(first);
        };
        let key = elements.get(rejection.element?)?.key;
        let has = |placement: &Placement| {
            let of_port = program_elements(placement, family, &self.options);
            of_port.iter().any(|(id, element)| element.key == key && id.name() == *set)
        };
        let adds = matches!(op, Op::AddElements(..));
        // Of what moves from one service to another, the one loses it, and the other gets it.
        plan.placements
            .iter()
            .find(|(service, after)| {
                let before = self.state[family].applied.placements(service);
                let mut concerned = if adds { after.iter() } else { before.iter() };
                concerned.any(has) || self.owns(family, after, op)
            })
            .map(first)
    }

    /// Whether an operation is about an object of one of these ports.
    fn owns(&self, family: Family, placements: &[Placement], op: &Op) -> bool {
        let name = match op {
            Op::AddChain(chain) => &chain.name,
            Op::AddSet(set) => &set.name,
            Op::FlushChain(name)
            | Op::AddRule(name, _)
            | Op::FlushSet(name)
            | Op::AddElements(name, _)
            | Op::DeleteElements(name, _) => name,
            Op::AddTable(_)
            | Op::DeleteTable
            | Op::DeleteChain(_)
            | Op::AddCounter(_)
            | Op::DeleteSet(_) => return false,
        };
        placements.iter().any(|placement| {
            let objects = service_objects(placement, family, &self.options);
            objects.sets.iter().any(|(set, _)| set.name == *name)
                || objects.chains.iter().any(|(chain, _)| chain == name)
        })
    }

    /// Chains and sets that nothing uses any more, in transactions of at most `limit` operations that
    /// are to be committed in their order. They are transactions of their own: kernels before 6.2 let
    /// go of a map's references only some time after the element was deleted, and refuse with EBUSY
    /// until then.
    pub fn garbage(&self, family: Family, limit: usize) -> Vec<Transaction> {
        let applied = &self.state[family].applied;
        // All rules first: chains of one service refer to each other.
        let rules = applied.garbage_chains.iter().cloned().map(Op::FlushChain);
        let chains = applied.garbage_chains.iter().cloned().map(Op::DeleteChain);
        let sets = applied.garbage_sets.iter().cloned().map(Op::DeleteSet);
        let ops: Vec<Op> = rules.chain(chains).chain(sets).collect();
        let transaction = |ops: &[Op]| Transaction { family, ops: ops.to_vec() };
        ops.chunks(limit.max(1)).map(transaction).collect()
    }

    /// One of these transactions was committed.
    pub fn garbage_collected(&mut self, family: Family, transaction: &Transaction) {
        let applied = &mut self.state[family].applied;
        for op in &transaction.ops {
            match op {
                Op::DeleteChain(chain) => applied.garbage_chains.remove(chain),
                Op::DeleteSet(set) => applied.garbage_sets.remove(set),
                _ => false,
            };
        }
    }
}

fn first<A: Clone, B>(pair: &(A, B)) -> A {
    pair.0.clone()
}

impl Plan {
    /// The services it covers, and what they have afterwards.
    pub(super) fn placements(&self) -> &[(ObjectName, Vec<Placement>)] {
        &self.placements
    }

    fn start(family: Family, state: &FamilyState) -> Plan {
        Plan {
            transaction: Transaction::new(family),
            services: BTreeSet::new(),
            recheck: Vec::new(),
            oversized: Vec::new(),
            placements: Vec::new(),
            settled: Settled::default(),
            extensions: BTreeSet::new(),
            restricted: BTreeSet::new(),
            objects: ObjectChanges::default(),
            clients: Vec::new(),
            node_elements: None,
            covers: false,
            finishes: false,
            stage: state.applied.stage,
            handover: Vec::new(),
        }
    }

    fn node_elements(&mut self, state: &FamilyState, changes: &mut Changes) {
        if state.node_elements == state.applied.node_elements {
            return;
        }
        let ips = SetId::NodePortIps(state.program.addresses);
        let elements = |node_elements: &NodeElements| -> Vec<(SetId, Element)> {
            let addresses = node_elements.node_port_ips.iter().map(|ip| Key::new().address(*ip));
            let members = addresses.map(|key| (ips, Element::member(key)));
            let cidrs = node_elements.service_cidrs.iter().map(|net| Element {
                last: Some(Key::new().address(net.broadcast())),
                ..Element::member(Key::new().address(net.network()))
            });
            // Alone in its key, a protocol is one byte.
            let protocols = node_elements.refused_on_localhost.iter().map(|p| [p.number()]);
            let refused = protocols.filter_map(|bytes| Key::from_bytes(&bytes));
            let refused = refused.map(|key| (SetId::RefusedOnLocalhost, Element::member(key)));
            members.chain(cidrs.map(|cidr| (SetId::ServiceCidrs, cidr))).chain(refused).collect()
        };
        let wants = elements(&state.node_elements);
        match state.applied.found.get(&SetId::ServiceCidrs).filter(|found| !found.is_empty()) {
            // Networks overlap: the kernel takes a new one only when those in its way go with it.
            Some(found) => {
                let found = found.values().map(|net| (SetId::ServiceCidrs, net.clone()));
                changes.takeover(found.collect(), wants);
            }
            None => changes.difference(elements(&state.applied.node_elements), wants),
        }
        self.node_elements = Some(state.node_elements.clone());
    }

    /// Puts the operations in an order in which each finds what it refers to.
    fn assemble(&mut self, family: Family, state: &FamilyState, owned: bool) {
        let ops = &mut self.transaction.ops;
        // What replaces another table takes its place at once.
        let attaches = self.covers || self.stage == Stage::Foreign;
        if matches!(self.stage, Stage::Absent | Stage::Foreign) {
            create_program(state, self.stage, owned, ops);
            self.stage = Stage::Detached;
        } else if state.applied.is_orphan(owned) {
            ops.push(Op::AddTable(state.program.table(owned)));
        }
        self.extensions.retain(|extension| !state.applied.extensions.contains(extension));
        let is_attached = self.stage == Stage::Attached;
        extend_program(family, state, &self.extensions, is_attached, ops);
        ops.append(&mut self.objects.ops);
        ops.append(&mut self.settled.deletions);
        ops.append(&mut self.settled.additions);
        ops.append(&mut self.clients);
        if attaches && self.stage == Stage::Detached {
            self.handover = attach(family, state, &self.extensions, ops);
            self.stage = Stage::Attached;
        }
    }
}

/// Lets packets in. Returns the chains that stand by if another table is replaced.
fn attach(
    family: Family,
    state: &FamilyState,
    new: &BTreeSet<Extension>,
    ops: &mut Vec<Op>,
) -> Vec<Name> {
    let all = || new.union(&state.applied.extensions);
    let hooks = all().flat_map(|one| one.objects(family, state.program.addresses).base_chains);
    let own =
        state.program.base_chains.iter().map(|(chain, _)| {
            (chain.clone(), state.program.rules_after(&chain.name, family, all()))
        });
    let base_chains: Vec<(Chain, Vec<Rule>)> = hooks.chain(own).collect();
    for (chain, rules) in &base_chains {
        create_chain(chain, rules, ops);
    }
    if state.applied.stage != Stage::Foreign {
        return Vec::new();
    }
    let twins = handover(&base_chains).map(|(twin, rules)| {
        create_chain(&twin, rules, ops);
        twin.name
    });
    twins.collect()
}

fn create_program(state: &FamilyState, stage: Stage, owned: bool, ops: &mut Vec<Op>) {
    if stage == Stage::Foreign {
        ops.push(Op::DeleteTable);
    }
    ops.push(Op::AddTable(state.program.table(owned)));
    ops.extend(state.program.counters.iter().cloned().map(Op::AddCounter));
    ops.extend(state.program.sets.iter().cloned().map(Op::AddSet));
    ops.extend(state.program.chains.iter().map(|(chain, _)| Op::AddChain(chain.clone())));
    for (chain, rules) in &state.program.chains {
        ops.extend(rules.iter().map(|rule| Op::AddRule(chain.name.clone(), rule.clone())));
    }
}

/// Writes what new extensions add. Their hooks only where traffic comes already.
fn extend_program(
    family: Family,
    state: &FamilyState,
    new: &BTreeSet<Extension>,
    is_attached: bool,
    ops: &mut Vec<Op>,
) {
    let mut rewritten = BTreeSet::new();
    for extension in new {
        let objects = extension.objects(family, state.program.addresses);
        ops.extend(objects.sets.into_iter().map(Op::AddSet));
        if let Some((chain, rules)) = objects.chain {
            create_chain(&chain, &rules, ops);
        }
        ops.extend(objects.dispatch.into_iter().map(|(chain, rule)| Op::AddRule(chain, rule)));
        rewritten.extend(objects.before.into_iter().map(|(chain, _)| chain));
        for (chain, rules) in objects.base_chains.iter().filter(|_| is_attached) {
            ops.push(Op::AddChain(chain.clone()));
            rewrite_chain(&chain.name, rules.clone(), ops);
        }
    }
    for chain in rewritten {
        let all = new.union(&state.applied.extensions);
        rewrite_chain(&chain, state.program.rules_after(&chain, family, all), ops);
    }
}

/// A packet that gets there meets the old rules or the new ones, never none. It may be garbage that
/// was not collected yet.
fn rewrite_chain(chain: &Name, rules: Vec<Rule>, ops: &mut Vec<Op>) {
    ops.push(Op::FlushChain(chain.clone()));
    ops.extend(rules.into_iter().map(|rule| Op::AddRule(chain.clone(), rule)));
}

fn create_chain(chain: &Chain, rules: &[Rule], ops: &mut Vec<Op>) {
    ops.push(Op::AddChain(chain.clone()));
    ops.extend(rules.iter().map(|rule| Op::AddRule(chain.name.clone(), rule.clone())));
}

impl Applied {
    /// Makes a committed plan the applied state.
    fn install(&mut self, plan: Plan) {
        for (service, placements) in plan.placements {
            self.before.remove(&service);
            let (before, after) = (self.placements(&service), &placements);
            self.totals = self.totals.replace(ServiceCounts::of(before), ServiceCounts::of(after));
            self.note_unserved(&service, &placements);
            if placements.iter().any(|placement| placement.affinity.is_some()) {
                self.sticky.insert(service.clone());
            } else {
                self.sticky.remove(&service);
            }
            if plan.restricted.contains(&service) {
                self.restricted.insert(service.clone());
            } else {
                self.restricted.remove(&service);
            }
            if placements.is_empty() {
                self.services.remove(&service);
            } else {
                self.services.insert(service, placements);
            }
        }
        for (key, delta) in plan.settled.shared {
            let count = i64::from(self.shared.get(&key).copied().unwrap_or(0)) + delta;
            match u32::try_from(count) {
                Ok(count) if count > 0 => self.shared.insert(key, count),
                _ => self.shared.remove(&key),
            };
        }
        for (set, key) in plan.settled.claimed {
            if let Some(elements) = self.found.get_mut(&set) {
                elements.remove(&key);
            }
        }
        let family = plan.transaction.family;
        for hook in plan.extensions.iter().flat_map(|extension| extension.hooks(family)) {
            self.garbage_chains.remove(&hook);
        }
        self.extensions.extend(plan.extensions);
        if let Some(node_elements) = plan.node_elements {
            self.node_elements = node_elements;
        }
        let objects = plan.objects;
        for name in &objects.used_chains {
            self.garbage_chains.remove(name);
            self.found_chains.remove(name);
        }
        for name in &objects.used_sets {
            self.garbage_sets.remove(name);
            self.found_sets.remove(name);
        }
        self.garbage_chains.extend(objects.stale_chains);
        self.garbage_sets.extend(objects.stale_sets);
        self.stage = plan.stage;
        self.garbage_chains.extend(plan.handover);
        let table = plan.transaction.ops.iter().find_map(|op| match op {
            Op::AddTable(table) => Some(table),
            _ => None,
        });
        if let Some(table) = table {
            self.owner = table.owner;
        }
        if plan.finishes {
            self.carried.clear();
            self.before = HashMap::default();
            self.previous = None;
            self.found.clear();
            self.garbage_chains.extend(std::mem::take(&mut self.found_chains).into_keys());
            self.garbage_sets.extend(std::mem::take(&mut self.found_sets).into_keys());
        }
        self.forget_source_ranges(family);
    }

    /// The hooks of source ranges go with the last service that has some.
    fn forget_source_ranges(&mut self, family: Family) {
        let is_found = self.found.get(&SetId::Restricted).is_some_and(|found| !found.is_empty());
        let is_needed = is_found || !self.restricted.is_empty();
        if self.stage == Stage::Attached
            && !is_needed
            && self.extensions.remove(&Extension::SourceRanges)
        {
            self.garbage_chains.extend(Extension::SourceRanges.hooks(family));
        }
    }
}
