//! Any order and batching of events ends where a fresh start ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use crate::engine::Engine;
use crate::model::{
    Change, Endpoint, Families, Family, Hints, Kind, Object, ObjectName, PerFamily, Protocol,
    ServiceType, TrafficPolicy,
};
use crate::program::{LocalPods, NodeAddressing, NodePortMatch, RuleOptions};
use crate::sync::{Synchronizer, release};
use crate::testing::FakeKernel;
use crate::testing::normal::{NormalForm, assert_alike, normal_form};
use crate::testing::objects::{endpoint, name, port, service, service_cidr, slice};
use crate::topology::NodeTopology;

/// Where a node may move.
const PLACES: u8 = 3;

/// A node in one of three places: NodePorts are on every address, or on one, which source ranges may
/// contain. Connections are counted, and they are not in the next three.
pub(super) fn options(place: u8) -> RuleOptions {
    let at = format!("192.168.{}.1", place % PLACES / 2);
    let node_ips: PerFamily<IpAddr> =
        PerFamily { v4: at.parse().unwrap(), v6: "fd00::1".parse().unwrap() };
    let node_ports = |family| match place % PLACES {
        0 => NodePortMatch::AnyLocal,
        _ => NodePortMatch::Addresses(vec![node_ips[family]]),
    };
    RuleOptions {
        local_pods: PerFamily {
            v4: LocalPods::Cidr("10.244.0.0/16".parse().unwrap()),
            v6: LocalPods::Interface("cni0".to_owned()),
        },
        node_ports: PerFamily::from_fn(node_ports),
        node_ips: PerFamily::from_fn(|family| Some(node_ips[family])),
        service_counters: place < PLACES,
        ..RuleOptions::nftables()
    }
}

/// What becomes known when the node moves.
pub(super) fn addressing(place: u8) -> NodeAddressing {
    let options = options(place);
    let local_addresses = PerFamily::from_fn(|family| match &options.node_ports[family] {
        NodePortMatch::AnyLocal => Vec::new(),
        NodePortMatch::Addresses(addresses) => addresses.clone(),
    });
    NodeAddressing { options, local_addresses }
}

fn synchronizer(kernel: FakeKernel, place: u8) -> Synchronizer<FakeKernel> {
    let node_topology = NodeTopology { node: "a".into(), zone: Some("z1".into()) };
    let engine = Engine::new(options(place), node_topology, Families::DUAL, true);
    Synchronizer::new(engine, kernel)
}

/// One event of a history.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Change(Change),
    Sync,
    /// The process is replaced by a new one, which lists everything anew.
    Restart,
    /// The same, but its last sync gets only so many commits through.
    Killed(usize),
    /// The same, but it ends in order: it makes its tables plain, unless it is killed after so many
    /// commits.
    Ended(usize),
    Zone(Option<&'static str>),
    /// The node is in another of its places.
    Moved(u8),
}

fn policy() -> impl Strategy<Value = TrafficPolicy> {
    prop_oneof![Just(TrafficPolicy::Cluster), Just(TrafficPolicy::Local)]
}

/// Services out of a small universe, so that they collide in addresses, ports and node ports.
fn any_service() -> impl Strategy<Value = Object> {
    let shape = (0..4u8, 0..3u8, 0..4u8, 0..3u8, policy(), policy());
    let extras = (any::<bool>(), any::<bool>(), 0..3u8, 0..3i64);
    (shape, extras).prop_map(|(shape, (external, balancer, affinity, created))| {
        let (id, families, ports, kind, internal, external_policy) = shape;
        let v4 = format!("10.96.0.{id}");
        let v6 = format!("fd00:96::{id}");
        let ips: &[&str] = match families {
            0 => &[&v4],
            1 => &[&v6],
            _ => &[&v4, &v6],
        };
        let mut object = service(&format!("s{id}"), ips);
        object.created = created;
        object.kind = match kind {
            0 => ServiceType::ClusterIp,
            1 => ServiceType::NodePort,
            _ => ServiceType::LoadBalancer,
        };
        let node_port = (kind > 0).then_some(30000 + u16::from(ports % 2));
        object.ports.push(port("http", Protocol::Tcp, 80, node_port));
        if ports > 1 {
            object.ports.push(port("dns", Protocol::Udp, 53, None));
        }
        if external {
            object.external_ips =
                vec!["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        }
        if balancer {
            object.load_balancer_ips = vec!["203.0.113.1".parse().unwrap()];
            if kind == 2 {
                object.source_ranges =
                    vec!["192.168.0.0/24".parse().unwrap(), "198.51.100.0/24".parse().unwrap()];
            }
        }
        object.internal_policy = internal;
        object.external_policy = external_policy;
        object.session_affinity = (affinity > 0).then_some(u32::from(affinity) * 10);
        object.into()
    })
}

fn any_endpoint(v6: bool) -> impl Strategy<Value = Endpoint> {
    (0..24u8, 0..3u8, 0..6u8, 0..4u8).prop_map(move |(id, node, condition, hint)| {
        let address = if v6 { format!("fd00:244::{id}") } else { format!("10.244.0.{id}") };
        let mut endpoint = endpoint(&format!("{address}@{}", ["a", "b", "c"][usize::from(node)]));
        (endpoint.ready, endpoint.serving, endpoint.terminating) = match condition {
            0 => (false, true, true),
            1 => (false, false, true),
            _ => (true, true, false),
        };
        if hint > 1 {
            let zones = [["z1", "z2"][usize::from(hint) - 2].into()].into();
            endpoint.hints = Some(Hints { zones, ..Hints::default() }.into());
        }
        endpoint
    })
}

pub(super) fn any_slice() -> impl Strategy<Value = Object> {
    any::<bool>().prop_flat_map(|v6| {
        let endpoints = prop::collection::vec(any_endpoint(v6), 0..22);
        (0..4u8, 0..2u8, endpoints, any::<bool>()).prop_map(move |(id, number, endpoints, dns)| {
            let (port, number_of) = if dns {
                (("dns", Protocol::Udp, 53), 2)
            } else {
                (("http", Protocol::Tcp, 8080), 0)
            };
            let slice_name = format!("s{id}-{}-{}", number + number_of, if v6 { 6 } else { 4 });
            let mut object = slice(&slice_name, &format!("s{id}"), port, &[]);
            object.family = if v6 { Family::V6 } else { Family::V4 };
            object.endpoints = endpoints;
            object.into()
        })
    })
}

pub(super) fn any_event() -> impl Strategy<Value = Event> {
    let slice_names = (0..4u8, 0..4u8, prop_oneof![Just(4), Just(6)])
        .prop_map(|(id, number, family)| name(&format!("s{id}-{number}-{family}")));
    prop_oneof![
        6 => any_service().prop_map(|o| Event::Change(Change::Apply(o))),
        12 => any_slice().prop_map(|o| Event::Change(Change::Apply(o))),
        2 => (0..4u8).prop_map(|id| {
            Event::Change(Change::Delete(Kind::Service, name(&format!("s{id}"))))
        }),
        3 => slice_names.prop_map(|n| Event::Change(Change::Delete(Kind::EndpointSlice, n))),
        1 => (0..2u8, 0..3u8).prop_map(|(id, net)| {
            let cidrs = [format!("10.{}.0.0/16", 96 + net), "fd00:96::/112".to_owned()];
            let cidrs: Vec<&str> = cidrs.iter().map(String::as_str).collect();
            Event::Change(Change::Apply(service_cidr(&format!("c{id}"), &cidrs).into()))
        }),
        1 => Just(Event::Change(Change::Delete(
            Kind::ServiceCidr,
            ObjectName::cluster_scoped("c0"),
        ))),
        1 => prop_oneof![Just(None), Just(Some("z1")), Just(Some("z2"))].prop_map(Event::Zone),
        1 => (0..PLACES).prop_map(Event::Moved),
        8 => Just(Event::Sync),
        1 => Just(Event::Restart),
        1 => (0..4usize).prop_map(Event::Killed),
        1 => (0..5usize).prop_map(Event::Ended),
    ]
}

/// The objects as a source has them.
#[derive(Debug, Default)]
pub(super) struct Source(pub(super) BTreeMap<(Kind, ObjectName), Object>);

impl Source {
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Apply(object) => {
                self.0.insert((object.kind(), object.name().clone()), object.clone());
            }
            Change::Delete(kind, name) => {
                self.0.remove(&(*kind, name.clone()));
            }
            Change::Replace(kind, objects) => {
                self.0.retain(|(known, _), _| known != kind);
                let objects = objects.iter().cloned();
                self.0.extend(objects.map(|object| ((*kind, object.name().clone()), object)));
            }
        }
    }

    pub(super) fn lists(&self) -> Vec<Change> {
        let of = |kind| self.0.values().filter(move |o| o.kind() == kind).cloned().collect();
        Kind::ALL.into_iter().map(|kind| Change::Replace(kind, of(kind))).collect()
    }
}

fn sync_all(synchronizer: &mut Synchronizer<FakeKernel>) {
    for family in Family::BOTH {
        if let Some(report) = synchronizer.sync(family, Duration::ZERO) {
            assert!(report.result.is_ok(), "{family}: {:?}", report.result);
            assert!(report.refused.is_empty(), "{family}: {:?}", report.refused);
            assert!(report.troubles.is_empty(), "{family}: {:?}", report.troubles);
        }
        assert!(!synchronizer.is_pending(family), "{family} is still pending");
    }
}

fn forms(synchronizer: &Synchronizer<FakeKernel>) -> [NormalForm; 2] {
    Family::BOTH.map(|family| normal_form(synchronizer.kernel.ruleset(family)))
}

/// A process that has listed everything.
fn started(
    kernel: FakeKernel,
    source: &Source,
    zone: Option<&str>,
    place: u8,
) -> Synchronizer<FakeKernel> {
    let mut synchronizer = synchronizer(kernel, place);
    synchronizer.engine.set_zone(zone.map(Into::into));
    for list in source.lists() {
        synchronizer.engine.apply(list);
    }
    synchronizer
}

fn fresh_start(source: &Source, zone: Option<&str>, place: u8) -> [NormalForm; 2] {
    let mut fresh = started(FakeKernel::new(), source, zone, place);
    sync_all(&mut fresh);
    forms(&fresh)
}

/// The next process, on what this one left in the kernel.
fn restarted(
    before: Synchronizer<FakeKernel>,
    source: &Source,
    zone: Option<&str>,
    place: u8,
) -> Synchronizer<FakeKernel> {
    let mut kernel = before.kernel;
    kernel.die_after(None);
    kernel.close_socket();
    started(kernel, source, zone, place)
}

/// As the worker does it.
pub(super) fn moved(synchronizer: &mut Synchronizer<FakeKernel>, place: &mut u8, to: u8) {
    *place = *place / PLACES * PLACES + to;
    let (_, rewritten) = synchronizer.engine.set_surroundings(&addressing(*place));
    rewritten.iter().for_each(|family| synchronizer.distrust(family));
}

fn run(events: Vec<Event>, mut place: u8) {
    let mut source = Source::default();
    let mut zone = Some("z1");
    let mut current = started(FakeKernel::new(), &source, zone, place);
    for event in events {
        match event {
            Event::Change(change) => {
                source.apply(&change);
                current.engine.apply(change);
            }
            Event::Sync => sync_all(&mut current),
            Event::Zone(new) => {
                zone = new;
                current.engine.set_zone(new.map(Into::into));
            }
            Event::Moved(to) => moved(&mut current, &mut place, to),
            Event::Restart => current = restarted(current, &source, zone, place),
            Event::Killed(commits) => {
                current.kernel.die_after(Some(commits));
                for family in Family::BOTH {
                    current.sync(family, Duration::ZERO);
                }
                current = restarted(current, &source, zone, place);
            }
            Event::Ended(commits) => {
                current.kernel.close_socket();
                current.kernel.die_after(Some(commits));
                for family in Family::BOTH {
                    // An error is the death.
                    let _ = release(&mut current.kernel, family);
                }
                current = restarted(current, &source, zone, place);
            }
        }
    }
    sync_all(&mut current);
    let expected = fresh_start(&source, zone, place);
    for (found, wanted) in forms(&current).iter().zip(&expected) {
        assert_alike(found, wanted, "not as after a fresh start");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    // B-104, B-105, B-168, B-174, B-191, B-192, B-198.
    #[test]
    fn any_history_ends_where_a_fresh_start_ends(
        events in prop::collection::vec(any_event(), 1..40),
        place in 0..2 * PLACES,
    ) {
        run(events, place);
    }
}

// B-198: nothing new, nothing to commit.
#[test]
fn an_unchanged_state_commits_nothing() {
    let mut current = synchronizer(FakeKernel::new(), 1);
    let mut source = Source::default();
    source.apply(&Change::Apply(service("a", &["10.96.0.1"]).into()));
    for list in source.lists() {
        current.engine.apply(list);
    }
    sync_all(&mut current);
    let commits = current.kernel.commits();
    for list in source.lists() {
        assert!(current.engine.apply(list).is_empty());
    }
    sync_all(&mut current);
    current.engine.mark_all_dirty();
    sync_all(&mut current);
    assert_eq!(current.kernel.commits(), commits);
}

// B-190: before services and slices are listed nothing is written.
#[test]
fn nothing_is_written_before_services_and_slices_are_listed() {
    for missing in [Kind::Service, Kind::EndpointSlice] {
        let mut current = synchronizer(FakeKernel::new(), 1);
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != missing) {
            current.engine.apply(Change::Replace(kind, Vec::new()));
        }
        current.engine.apply(Change::Apply(service("a", &["10.96.0.1"]).into()));
        sync_all(&mut current);
        assert_eq!(current.kernel.commits(), 0, "without the list of {missing}");
        current.engine.apply(Change::Replace(missing, Vec::new()));
        sync_all(&mut current);
        assert!(current.kernel.commits() > 0);
    }
}
