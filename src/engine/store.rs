//! The objects as the sources gave them, by key.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};

use crate::model::{
    Change, EndpointSlice, Families, Family, Kind, Node, Object, ObjectName, Service, ServiceCidr,
};

/// What a change means for the rules.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effect {
    /// Services whose fragment may be different now.
    pub services: HashSet<ObjectName>,
    /// Services whose own object changed, not just their slices.
    pub service_objects: HashSet<ObjectName>,
    /// Services one of whose slices changed.
    pub slices: HashSet<ObjectName>,
    /// Services that lost a slice: their trigger times are discarded (B-257).
    pub slices_removed: HashSet<ObjectName>,
    /// Trigger times of slices that were added or changed.
    pub triggers: Vec<(Family, ObjectName, i64)>,
    pub service_cidrs: bool,
    pub node: bool,
    pub node_deleted: bool,
    /// The node's zone changed with it (B-060).
    pub zone: bool,
    /// The kind was listed for the first time.
    pub listed: Option<Kind>,
    /// Families that have work with it.
    pub families: Families,
}

impl Effect {
    pub fn is_empty(&self) -> bool {
        *self == Effect::default()
    }
}

/// Objects by key, and which slices a service has.
#[derive(Debug, Default)]
pub struct Store {
    services: HashMap<ObjectName, Arc<Service>>,
    /// The service of each slice: the way from a slice's name to [`Store::slices_of`].
    slice_owner: HashMap<ObjectName, ObjectName>,
    /// Slices of each service, sorted by name; nearly always one.
    slices_of: HashMap<ObjectName, Vec<Arc<EndpointSlice>>>,
    service_cidrs: BTreeMap<ObjectName, Arc<ServiceCidr>>,
    node: Option<Arc<Node>>,
    listed: HashSet<Kind>,
}

impl Store {
    pub fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The slices of a service, sorted by name. They may be there before their service (B-105).
    pub fn slices(&self, service: &ObjectName) -> &[Arc<EndpointSlice>] {
        self.slices_of.get(service).map_or(&[], Vec::as_slice)
    }

    /// All ServiceCIDRs, by name.
    pub fn service_cidrs(&self) -> impl Iterator<Item = &Arc<ServiceCidr>> {
        self.service_cidrs.values()
    }

    /// This node's object: the last one seen, even when it was deleted since (B-059).
    pub fn node(&self) -> Option<&Arc<Node>> {
        self.node.as_ref()
    }

    /// Whether a kind's complete list was seen.
    pub fn is_listed(&self, kind: Kind) -> bool {
        self.listed.contains(&kind)
    }

    /// Takes a change; says what it means. Equal objects mean nothing (B-107).
    pub fn apply(&mut self, change: Change) -> Effect {
        let mut effect = Effect::default();
        match change {
            Change::Apply(object) => self.put(object, &mut effect),
            Change::Delete(kind, name) => self.remove(kind, &name, &mut effect),
            Change::Replace(kind, objects) => {
                let known = self.names(kind);
                if !known.is_empty() {
                    let present: HashSet<&ObjectName> = objects.iter().map(Object::name).collect();
                    for name in known.iter().filter(|name| !present.contains(name)) {
                        self.remove(kind, name, &mut effect);
                    }
                }
                for object in objects {
                    self.put(object, &mut effect);
                }
                if self.listed.insert(kind) {
                    effect.listed = Some(kind);
                }
            }
        }
        effect
    }

    fn names(&self, kind: Kind) -> Vec<ObjectName> {
        match kind {
            Kind::Service => self.services.keys().cloned().collect(),
            Kind::EndpointSlice => self.slice_owner.keys().cloned().collect(),
            Kind::Node => self.node.iter().map(|node| node.name.clone()).collect(),
            Kind::ServiceCidr => self.service_cidrs.keys().cloned().collect(),
        }
    }

    fn put(&mut self, object: Object, effect: &mut Effect) {
        match object {
            Object::Service(service) => {
                let name = service.name.clone();
                if self.services.get(&name) != Some(&service) {
                    self.services.insert(name.clone(), service);
                    effect.services.insert(name.clone());
                    effect.service_objects.insert(name);
                }
            }
            Object::EndpointSlice(slice) => self.put_slice(slice, effect),
            Object::Node(node) => {
                if self.node.as_ref() != Some(&node) {
                    self.node = Some(node);
                    effect.node = true;
                }
            }
            Object::ServiceCidr(cidr) => {
                if self.service_cidrs.get(&cidr.name) != Some(&cidr) {
                    self.service_cidrs.insert(cidr.name.clone(), cidr);
                    effect.service_cidrs = true;
                }
            }
        }
    }

    fn put_slice(&mut self, slice: Arc<EndpointSlice>, effect: &mut Effect) {
        let owner = self.slice_owner.get(&slice.name);
        if owner.is_some_and(|owner| *owner != slice.service) {
            self.remove(Kind::EndpointSlice, &slice.name.clone(), effect);
        }
        let siblings = self.slices_of.entry(slice.service.clone()).or_default();
        let (name, service) = (slice.name.clone(), slice.service.clone());
        let trigger = slice.trigger_time.map(|time| (slice.family, service.clone(), time));
        match siblings.binary_search_by(|sibling| sibling.name.cmp(&name)) {
            Ok(at) if siblings[at] == slice => return,
            Ok(at) => siblings[at] = slice,
            Err(at) => siblings.insert(at, slice),
        }
        self.slice_owner.insert(name, service.clone());
        effect.triggers.extend(trigger);
        effect.slices.insert(service.clone());
        effect.services.insert(service);
    }

    fn remove(&mut self, kind: Kind, name: &ObjectName, effect: &mut Effect) {
        match kind {
            Kind::Service => {
                if self.services.remove(name).is_some() {
                    effect.services.insert(name.clone());
                    effect.service_objects.insert(name.clone());
                }
            }
            Kind::EndpointSlice => {
                let Some(service) = self.slice_owner.remove(name) else { return };
                if let Some(siblings) = self.slices_of.get_mut(&service) {
                    siblings.retain(|sibling| sibling.name != *name);
                    if siblings.is_empty() {
                        self.slices_of.remove(&service);
                    }
                }
                effect.slices_removed.insert(service.clone());
                effect.slices.insert(service.clone());
                effect.services.insert(service);
            }
            // The last Node seen stays in use: what it said of zone and addresses is still the best
            // there is (section 3.4).
            Kind::Node => {
                effect.node_deleted |= self.node.as_ref().is_some_and(|node| node.name == *name);
            }
            Kind::ServiceCidr => {
                effect.service_cidrs |= self.service_cidrs.remove(name).is_some();
            }
        }
    }
}
