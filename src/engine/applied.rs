//! What the kernel has, as far as we know: the mirror.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use foldhash::{HashMap, HashSet};

use super::NodeElements;
use crate::model::{Family, ObjectName, TrafficPolicy};
use crate::program::{Class, Extension, FrontendSpace, ListScope, Placement, Role, SetId, Slots};
use crate::ruleset::{Element, Key, Name, Ownership, Rule, Set, Value};
use crate::topology::Backend;

/// How far a table's program is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// There is no table.
    #[default]
    Absent,
    /// There is one that is not ours, or not as we left it: to be replaced in one transaction.
    Foreign,
    /// Our table is there, but traffic does not reach it yet.
    Detached,
    /// Everything is in place.
    Attached,
}

/// Elements by set and key, as found in the kernel.
pub type FoundElements = HashMap<SetId, HashMap<Key, Element>>;

/// Sums over everything that is applied in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct ServiceCounts {
    /// Services with something in the kernel.
    pub services: usize,
    pub ports: usize,
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

/// One family's mirror.
///
/// Shape: either a service's elements follow from its placements, or they are among what was found
/// and has no owner yet; never both.
#[derive(Debug, Default)]
pub struct Applied {
    pub(super) stage: Stage,
    /// Whose the table is, as the last reading or commit showed it.
    pub(super) owner: Ownership,
    pub(super) services: HashMap<ObjectName, Vec<Placement>>,
    /// Those of them with session affinity.
    pub(super) sticky: HashSet<ObjectName>,
    /// Those of them with frontends that source ranges restrict.
    pub(super) restricted: HashSet<ObjectName>,
    pub(super) shared: HashMap<(SetId, Key), u32>,
    pub(super) extensions: BTreeSet<Extension>,
    pub(super) node_elements: NodeElements,
    pub(super) totals: ServiceCounts,
    /// Labels of service ports that are not served to everyone; no reason without one.
    pub(super) unserved: BTreeMap<UnservedReason, BTreeSet<Arc<str>>>,
    /// Elements found in the kernel that nobody owns yet.
    pub(super) found: FoundElements,
    /// Chains and sets of single services found in the kernel that nobody owns yet.
    pub(super) found_chains: BTreeMap<Name, Vec<Rule>>,
    pub(super) found_sets: BTreeMap<Name, (Set, BTreeMap<Key, Element>)>,
    /// What services had before the table was read: what one keeps that is set aside then.
    pub(super) before: HashMap<ObjectName, Vec<Placement>>,
    /// What was found in a table that is to be replaced, as far as it is like ours.
    pub(super) previous: Option<Box<Applied>>,
    /// Clients remembered by a table that is to be replaced.
    pub(super) carried: BTreeMap<Name, Vec<Element>>,
    /// Chains and sets that nothing uses any more.
    pub(super) garbage_chains: BTreeSet<Name>,
    pub(super) garbage_sets: BTreeSet<Name>,
}

impl Applied {
    /// Keeps up which ports are not served; before the service is replaced.
    pub(super) fn note_unserved(&mut self, service: &ObjectName, after: &[Placement]) {
        for placement in self.services.get(service).into_iter().flatten() {
            for reason in UnservedReason::of(placement) {
                if let Some(labels) = self.unserved.get_mut(&reason) {
                    labels.remove(&placement.label);
                }
            }
        }
        for placement in after {
            for reason in UnservedReason::of(placement) {
                self.unserved.entry(reason).or_default().insert(placement.label.clone());
            }
        }
        self.unserved.retain(|_, labels| !labels.is_empty());
    }

    /// Names of services that have something in the kernel.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        self.services.keys()
    }

    pub fn placements(&self, service: &ObjectName) -> &[Placement] {
        self.services.get(service).map_or(&[], Vec::as_slice)
    }

    /// Classes with slots whose objects are there.
    pub fn classes(&self) -> impl Iterator<Item = (FrontendSpace, ListScope, Class)> {
        self.extensions.iter().filter_map(|extension| match *extension {
            Extension::Class(space, scope, class) => Some((space, scope, class)),
            _ => None,
        })
    }

    /// How many services put an element there.
    pub fn shared_count(&self, set: SetId, key: &Key) -> u32 {
        self.shared.get(&(set, *key)).copied().unwrap_or(0)
    }

    /// An element found in the kernel that nobody owns yet.
    pub fn found(&self, set: SetId, key: &Key) -> Option<&Element> {
        self.found.get(&set)?.get(key)
    }

    /// Whether a table that is to be `owned` is somebody else's or nobody's.
    pub fn is_orphan(&self, owned: bool) -> bool {
        owned && self.owner != Ownership::Ours
    }

    /// Whether nothing is left to do besides dirty services.
    pub fn is_settled(&self, owned: bool) -> bool {
        self.stage == Stage::Attached
            && !self.is_orphan(owned)
            && self.found.values().all(HashMap::is_empty)
            && self.found_chains.is_empty()
            && self.found_sets.is_empty()
    }

    /// The lists a port has: those that were applied, or those found in the kernel.
    pub fn lists(&self, placement: &Placement, family: Family) -> (Slots, Slots) {
        let known = self.placements(&placement.name.service);
        if let Some(known) = known.iter().find(|known| known.name == placement.name) {
            return (known.cluster.clone(), known.local.clone());
        }
        if self.found.is_empty() {
            return (Slots::default(), Slots::default());
        }
        let find = |role: Role, scope: ListScope| {
            let frontend = placement.frontends.iter().find(|f| placement.role(f) == role)?;
            self.found_list(frontend.key.space(), scope, frontend.key.element_key(), family)
        };
        let cluster = find(Role::Cluster, ListScope::Cluster)
            .or_else(|| find(Role::LocalPolicy, ListScope::Cluster));
        let local = find(Role::Local, ListScope::Cluster)
            .or_else(|| find(Role::LocalPolicy, ListScope::Local));
        (cluster.unwrap_or_default(), local.unwrap_or_default())
    }

    /// Everything found in the kernel under a frontend's key and not owned yet, except shared
    /// elements: whoever takes the frontend over replaces all of it at once.
    pub fn found_of(&self, space: FrontendSpace, key: Key) -> Vec<(SetId, Element)> {
        let mut all = Vec::new();
        for (&set, elements) in self.found.iter().filter(|(set, _)| !set.is_shared()) {
            let take = |key: &Key| elements.get(key).cloned().map(|element| (set, element));
            match set {
                SetId::Endpoints(p, _, class) if p == space && class != Class::ONE => {
                    all.extend((0..class.slots()).map_while(|slot| take(&key.slot(slot))));
                }
                _ if set.space() == Some(space) => all.extend(take(&key)),
                _ => {}
            }
        }
        all
    }

    pub(super) fn found_list(
        &self,
        space: FrontendSpace,
        scope: ListScope,
        key: Key,
        family: Family,
    ) -> Option<Slots> {
        let one = SetId::Endpoints(space, scope, Class::ONE);
        if let Some(backend) = self.found(one, &key).and_then(|e| backend(e, family)) {
            return Some(Slots::found(Class::ONE, vec![backend]));
        }
        let (_, _, class) = self.classes().find(|(p, s, class)| {
            (*p, *s) == (space, scope)
                && self.found(SetId::Members(space, scope, *class), &key).is_some()
        })?;
        let endpoints = SetId::Endpoints(space, scope, class);
        let members = (0..class.slots())
            .map_while(|slot| self.found(endpoints, &key.slot(slot)))
            .map_while(|element| backend(element, family))
            .collect();
        Some(Slots::found(class, members))
    }
}

/// The endpoint an element leads to.
fn backend(element: &Element, family: Family) -> Option<Backend> {
    let Value::Data(data) = &element.value else { return None };
    let address: IpAddr = data.address_at(0, family)?;
    Some(Backend { address, port: data.port_at(family.address_len())? })
}

/// Of the clients a map remembers, those whose endpoint is still among the members; `None` if that
/// is all of them, so that nothing has to be done.
pub fn surviving_clients(
    clients: &[Element],
    members: &[Backend],
    family: Family,
) -> Option<Vec<Element>> {
    let stays = |element: &&Element| {
        backend(element, family).is_some_and(|backend| members.contains(&backend))
    };
    let survivors: Vec<Element> = clients.iter().filter(stays).cloned().collect();
    (survivors.len() < clients.len()).then_some(survivors)
}
