//! Histories in which the kernel refuses, answers get lost and others interfere.
//!
//! An endpoint that the kernel never takes makes services that have it refused, with or without a name.
//! After every sync: what is not set aside is as after a fresh start, and what is set aside has what
//! it had before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use proptest::prelude::*;

use super::histories::{Event, Source, any_event, any_slice, moved, options};
use crate::agent::flows::{Flows, lost};
use crate::agent::subscribers::tests::addressing;
use crate::conntrack::Served;
use crate::engine::Engine;
use crate::kernel::Op;
use crate::model::{Change, Families, Family, Kind, Object, ObjectName, Protocol};
use crate::program::{Class, FrontendSpace, SetId};
use crate::ruleset::{Element, Key, Ruleset, Value};
use crate::sync::{Report, Subscriber, SyncError, Synced, Synchronizer, Turn, release};
use crate::testing::normal::{assert_alike, normal_form};
use crate::testing::{FakeKernel, Fault};
use crate::topology::NodeTopology;

/// The host number of the endpoint that is refused.
const REFUSED: u8 = 99;

/// What happens.
#[derive(Debug, Clone)]
enum Trouble {
    /// Nothing special.
    Event(Event),
    /// A slice with the endpoint that is refused.
    Refused(Object),
    /// A kind is listed anew; of its objects some are lost.
    Relist(Kind, u8),
    /// Whether refusals name what is refused.
    Blame(bool),
    /// A commit goes wrong.
    Fault(usize, Fault),
    /// Services that are set aside are tried again.
    Retry,
    /// Somebody else takes an element away.
    Taken(usize),
    /// Somebody else removes the table.
    Removed,
    /// The table is of another version of the program.
    Older,
    /// There is something that belongs to nobody and cannot be deleted for a while.
    Stubborn,
}

fn refused_slice() -> impl Strategy<Value = Object> {
    any_slice().prop_map(|object| {
        let Object::EndpointSlice(slice) = object else { unreachable!() };
        let mut slice = (*slice).clone();
        let address = match slice.family {
            Family::V4 => format!("10.244.0.{REFUSED}@a"),
            Family::V6 => format!("fd00:244::{REFUSED}@a"),
        };
        slice.endpoints.push(crate::testing::objects::endpoint(&address));
        slice.into()
    })
}

fn any_trouble() -> impl Strategy<Value = Trouble> {
    let fault = prop_oneof![
        Just(Fault::LostBefore),
        Just(Fault::LostAfter),
        Just(Fault::Unsent),
        Just(Fault::Refused(libc::ENOMEM)),
    ];
    prop_oneof![
        30 => any_event().prop_map(Trouble::Event),
        4 => refused_slice().prop_map(Trouble::Refused),
        1 => (prop_oneof![Just(Kind::Service), Just(Kind::EndpointSlice)], any::<u8>())
            .prop_map(|(kind, lost)| Trouble::Relist(kind, lost)),
        1 => any::<bool>().prop_map(Trouble::Blame),
        2 => (0..4usize, fault).prop_map(|(after, fault)| Trouble::Fault(after, fault)),
        2 => Just(Trouble::Retry),
        2 => any::<usize>().prop_map(Trouble::Taken),
        1 => Just(Trouble::Removed),
        1 => Just(Trouble::Older),
        1 => Just(Trouble::Stubborn),
    ]
}

/// A process and what is around it.
struct World {
    current: Synchronizer<FakeKernel>,
    source: Source,
    zone: Option<&'static str>,
    setup: Setup,
    now: Duration,
    /// Faults are to come, so that a sync may fail.
    faulty: bool,
    /// Hears of every sync, as in the agent.
    flows: Flows,
}

/// A subscriber that has heard nothing; nobody does its jobs.
fn flows() -> Flows {
    Flows::new(channel().0, &addressing(), None)
}

#[derive(Debug, Clone, Copy)]
struct Setup {
    place: u8,
    families: Families,
    batch: usize,
}

fn started(
    kernel: FakeKernel,
    source: &Source,
    zone: Option<&str>,
    setup: Setup,
) -> Synchronizer<FakeKernel> {
    let node_topology = NodeTopology { node: "a".into(), zone: zone.map(Into::into) };
    let engine = Engine::new(options(setup.place), node_topology, setup.families, true);
    let mut synchronizer = Synchronizer::new(engine, kernel).in_batches_of(setup.batch);
    for list in source.lists() {
        synchronizer.engine.apply(list);
    }
    synchronizer
}

fn refuse(kernel: &mut FakeKernel) {
    let v4 = Key::new().address([10, 244, 0, REFUSED].into());
    let v6: std::net::Ipv6Addr = format!("fd00:244::{REFUSED}").parse().unwrap();
    let v6 = Key::new().address(v6.into());
    let is_refused = move |key: &Key| {
        [v4, v6].iter().any(|refused| key.as_bytes().starts_with(refused.as_bytes()))
    };
    kernel.dislike(move |op| {
        let mentions = |element: &Element| match &element.value {
            Value::Data(data) => is_refused(data),
            _ => false,
        };
        match op {
            Op::AddElements(_, elements) => elements.iter().any(mentions).then_some(libc::EINVAL),
            Op::DeleteElements(_, elements) => {
                elements.iter().any(|element| element.key == stubborn()).then_some(libc::EBUSY)
            }
            _ => None,
        }
    });
}

/// An element of `cluster-ips` that is nobody's.
fn stubborn() -> Key {
    Key::new().address([10, 96, 0, 200].into())
}

/// Frontends by the label of their service, with all that the kernel has under their keys, apart from
/// what others may share.
type Fragments = BTreeMap<(FrontendSpace, Key), (String, BTreeSet<(SetId, Key, Value)>)>;

fn fragments(ruleset: &Ruleset) -> Fragments {
    let mut fragments = Fragments::new();
    let classes = Class::all_with_slots().flat_map(|(space, scope, class)| {
        [SetId::Members(space, scope, class), SetId::Endpoints(space, scope, class)]
    });
    let ids: Vec<SetId> = SetId::fixed().chain(classes).filter(|id| id.space().is_some()).collect();
    let elements = |id: SetId| ruleset.sets.get(&id.name()).map(|(_, elements)| elements);
    for id in &ids {
        let labelled = match id {
            SetId::Refused(_) | SetId::Dropped(_) | SetId::Members(..) => true,
            SetId::Endpoints(_, _, class) => *class == Class::ONE,
            _ => false,
        };
        for element in elements(*id).into_iter().flat_map(|e| e.values()).filter(|_| labelled) {
            let label = element.comment.as_deref().unwrap_or_default();
            let service = label.split(':').next().unwrap_or_default().to_owned();
            let space = id.space().unwrap();
            fragments.entry((space, element.key)).or_insert((service, BTreeSet::new()));
        }
    }
    for id in ids {
        for element in elements(id).into_iter().flat_map(|e| e.values()) {
            let len = match (id.space().unwrap(), ruleset.family) {
                (FrontendSpace::NodePorts, _) => 8,
                (FrontendSpace::Services, family) => family.address_len() + 8,
            };
            let frontend = Key::from_bytes(&element.key.as_bytes()[..len]).unwrap();
            if let Some((_, all)) = fragments.get_mut(&(id.space().unwrap(), frontend)) {
                all.insert((id, element.key, element.value.clone()));
            }
        }
    }
    fragments
}

impl World {
    fn families(&self) -> impl Iterator<Item = Family> + use<> {
        self.setup.families.iter()
    }

    fn change(&mut self, change: Change) {
        self.source.apply(&change);
        self.current.engine.apply(change);
    }

    fn restart(&mut self) {
        let mut kernel = std::mem::take(&mut self.current.kernel);
        kernel.die_after(None);
        kernel.heal();
        kernel.close_socket();
        self.faulty = false;
        self.flows = flows();
        self.current = started(kernel, &self.source, self.zone, self.setup);
    }

    /// Whether a service has the refused endpoint.
    fn is_refusable(&self, family: Family, service: &ObjectName) -> bool {
        let slices = self.current.engine.store().slices(service).iter();
        let mut endpoints =
            slices.filter(|slice| slice.family == family).flat_map(|slice| &slice.endpoints);
        endpoints.any(|endpoint| match endpoint.address {
            std::net::IpAddr::V4(address) => address.octets()[3] == REFUSED,
            std::net::IpAddr::V6(address) => address.to_string().ends_with(&format!("::{REFUSED}")),
        })
    }

    fn sync_all(&mut self) {
        for family in self.families() {
            let before = fragments(self.current.kernel.ruleset(family));
            self.sync(family, &before);
        }
    }

    /// Syncs a family until it is as it should be, and looks whether it is.
    fn sync(&mut self, family: Family, before: &Fragments) {
        for attempt in 0.. {
            let Some(report) = self.current.sync(family, self.now) else { break };
            let garbage_stays = report.garbage_stays;
            let result = self.tell(report);
            if garbage_stays {
                // It goes with the next sync, whatever that is for.
                self.current.distrust(family);
            }
            if result.is_ok() && !self.current.is_pending(family) {
                break;
            }
            assert!(self.faulty && attempt < 10, "{family}: {result:?}");
        }
        self.check(family, before);
        self.check_flows(family);
    }

    /// Tells of a sync, as the worker does.
    fn tell(&mut self, report: Report) -> Result<(), SyncError> {
        let synced = Synced::new(&self.current, report, Duration::ZERO, None);
        let mut turn = Turn { syncs: vec![synced], ..Turn::default() };
        self.flows.turn(&turn);
        turn.syncs.remove(0).report.result
    }

    /// Nothing that is in force was missed, whatever became of the syncs (B4).
    fn check_flows(&self, family: Family) {
        let (engine, known) = (&self.current.engine, self.flows.known(family));
        let conflicts = engine.conflicts(family);
        let mut lost = lost(&conflicts);
        for service in engine.store().services() {
            if engine.is_set_aside(family, &service.name) {
                continue;
            }
            let served = Served {
                service: Arc::clone(service),
                slices: engine.store().slices(&service.name).iter().cloned().collect(),
                lost: lost.remove(&service.name).unwrap_or_default(),
            };
            let wanted = served.ports(family, Protocol::Udp);
            let heard = known.get(&service.name).map_or(&[][..], Vec::as_slice);
            assert_eq!(heard, wanted, "{family}: flows of {}", service.name);
        }
        for name in known.keys() {
            let is_there = engine.store().service(name).is_some();
            assert!(is_there || engine.is_set_aside(family, name), "{family}: {name} is gone");
        }
    }

    fn check(&self, family: Family, before: &Fragments) {
        let aside = self.current.engine.aside(family);
        for service in aside.keys() {
            assert!(self.is_refusable(family, service), "{family}: {service} is innocent");
            assert!(self.current.quarantined(family).contains_key(service), "{service}");
        }
        let now = fragments(self.current.kernel.ruleset(family));
        for (frontend, (service, had)) in before {
            let (namespace, name) = service.split_once('/').unwrap();
            let name = ObjectName::new(namespace, name);
            if !aside.contains_key(&name) {
                continue;
            }
            match now.get(frontend) {
                Some((owner, has)) if owner == service => {
                    assert_eq!(has, had, "{family}: {service} does not keep {frontend:?}");
                }
                Some((owner, _)) => assert_ne!(owner, service),
                None => panic!("{family}: {service} lost {frontend:?}"),
            }
        }
        let mut fresh = started(FakeKernel::new(), &self.source, self.zone, self.setup);
        for (service, kept) in aside {
            fresh.engine.keep(family, service.clone(), kept.clone());
        }
        if let Some(report) = fresh.sync(family, Duration::ZERO) {
            assert!(report.result.is_ok() && report.refused.is_empty(), "{report:?}");
        }
        let forms = [&self.current, &fresh].map(|s| normal_form(s.kernel.ruleset(family)));
        assert_alike(&forms[0], &forms[1], format!("{family}: not as after a fresh start"));
    }

    /// Somebody else changes the tables, and it is noticed.
    fn foreign(&mut self, change: impl Fn(&mut FakeKernel, Family)) {
        self.sync_all();
        for family in self.families() {
            let before = fragments(self.current.kernel.ruleset(family));
            change(&mut self.current.kernel, family);
            self.current.distrust(family);
            self.sync(family, &before);
        }
    }

    fn stubborn(&mut self) {
        self.sync_all();
        if !self.setup.families.v4 {
            return;
        }
        let family = Family::V4;
        let before = fragments(self.current.kernel.ruleset(family));
        let set = SetId::ClusterIps.name();
        let (_, elements) = self.current.kernel.ruleset_mut(family).sets.get_mut(&set).unwrap();
        elements.insert(stubborn(), Element::member(stubborn()));
        self.current.distrust(family);
        let report = self.current.sync(family, self.now).unwrap();
        assert!(self.tell(report).is_err(), "it cannot be deleted");
        for service in self.current.engine.aside(family).keys() {
            assert!(self.is_refusable(family, service), "{service} is blamed for leftovers");
        }
        let (_, elements) = self.current.kernel.ruleset_mut(family).sets.get_mut(&set).unwrap();
        elements.remove(&stubborn());
        self.current.distrust(family);
        self.sync(family, &before);
    }

    fn happen(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Event(Event::Change(change)) => self.change(change),
            Trouble::Event(Event::Sync) => self.sync_all(),
            Trouble::Event(Event::Zone(zone)) => {
                self.zone = zone;
                self.current.engine.set_zone(zone.map(Into::into));
            }
            Trouble::Event(Event::Moved(to)) => moved(&mut self.current, &mut self.setup.place, to),
            Trouble::Event(Event::Restart) => self.restart(),
            Trouble::Event(Event::Killed(commits)) => {
                self.current.kernel.die_after(Some(commits));
                for family in self.families() {
                    self.current.sync(family, self.now);
                }
                self.restart();
            }
            Trouble::Event(Event::Ended(commits)) => {
                self.current.kernel.close_socket();
                self.current.kernel.die_after(Some(commits));
                for family in self.families() {
                    // An error is the death.
                    let _ = release(&mut self.current.kernel, family);
                }
                self.restart();
            }
            Trouble::Refused(object) => self.change(Change::Apply(object)),
            Trouble::Relist(kind, lost) => {
                let of_kind = self.source.0.values().filter(|object| object.kind() == kind);
                let stays = |(n, _): &(usize, &Object)| lost & (1 << (n % 8)) == 0;
                let left = of_kind.enumerate().filter(stays).map(|(_, object)| object.clone());
                let left = left.collect();
                self.change(Change::Replace(kind, left));
            }
            Trouble::Blame(blames) => self.current.kernel.blame(blames),
            Trouble::Fault(after, fault) => {
                self.faulty = true;
                self.current.kernel.fail_after(after, [fault]);
            }
            Trouble::Retry => {
                self.now += Duration::from_secs(1000);
                self.sync_all();
            }
            Trouble::Taken(at) => self.foreign(|kernel, family| {
                let sets = &mut kernel.ruleset_mut(family).sets;
                let all: Vec<_> = sets
                    .iter()
                    .flat_map(|(name, (_, e))| e.keys().map(|key| (name.clone(), *key)))
                    .collect();
                if !all.is_empty() {
                    let (name, key) = &all[at % all.len()];
                    sets.get_mut(name).unwrap().1.remove(key);
                }
            }),
            Trouble::Removed => self.foreign(|kernel, family| {
                *kernel.ruleset_mut(family) = Ruleset::empty(family);
            }),
            Trouble::Older => self.foreign(|kernel, family| {
                if let Some(table) = &mut kernel.ruleset_mut(family).table {
                    table.comment = Some("an older program".into());
                }
            }),
            Trouble::Stubborn => self.stubborn(),
        }
    }

    /// In the end everything fits, and is as after a fresh start.
    fn end(&mut self) {
        self.sync_all();
        self.current.kernel.like_everything();
        self.now += Duration::from_secs(1000);
        self.sync_all();
        for family in self.families() {
            assert!(self.current.quarantined(family).is_empty(), "{family}");
            assert!(self.current.engine.aside(family).is_empty(), "{family}");
        }
    }
}

fn run(troubles: Vec<Trouble>, setup: Setup) {
    let source = Source::default();
    let mut kernel = FakeKernel::new();
    refuse(&mut kernel);
    let current = started(kernel, &source, Some("z1"), setup);
    let now = Duration::ZERO;
    let mut world =
        World { current, source, zone: Some("z1"), setup, now, faulty: false, flows: flows() };
    for trouble in troubles {
        world.happen(trouble);
    }
    world.end();
}

fn any_setup() -> impl Strategy<Value = Setup> {
    let families = prop_oneof![
        2 => Just(Families::DUAL),
        1 => Just(Families { v4: true, v6: false }),
        1 => Just(Families { v4: false, v6: true }),
    ];
    let batch = prop_oneof![3 => 1..8usize, 1 => Just(1000)];
    (0..6u8, families, batch).prop_map(|(place, families, batch)| Setup { place, families, batch })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_troubled_history_keeps_what_is_set_aside_and_the_rest_as_after_a_fresh_start(
        troubles in prop::collection::vec(any_trouble(), 1..40),
        setup in any_setup(),
    ) {
        run(troubles, setup);
    }
}
