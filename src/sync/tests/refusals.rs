//! What happens when the kernel says no, or says nothing.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::time::Duration;

use crate::engine::{Adoption, Engine};
use crate::kernel::{Kernel, Op, Transaction};
use crate::model::{Change, Families, Family, Kind, Object, Protocol};
use crate::program::RuleOptions;
use crate::ruleset::{Chain, Element, Field, Hook, Key, Name, Set, Value};
use crate::sync::Synchronizer;
use crate::testing::normal::{assert_alike, normal_form};
use crate::testing::objects::{name, port, service, slice};
use crate::testing::{FakeKernel, Fault};
use crate::topology::NodeTopology;

pub(super) const V4: Family = Family::V4;

/// Services s0 to s(n-1), each with two endpoints.
pub(super) fn cluster(count: u8) -> Vec<Object> {
    (0..count)
        .flat_map(|i| {
            let mut object = service(&format!("s{i}"), &[&format!("10.96.0.{i}")]);
            object.ports.push(port("http", Protocol::Tcp, 80, None));
            let endpoints = [format!("10.244.0.{i}@a"), format!("10.244.1.{i}@b")];
            let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
            let slice = slice(
                &format!("s{i}-x"),
                &format!("s{i}"),
                ("http", Protocol::Tcp, 8080),
                &endpoints,
            );
            [object.into(), slice.into()]
        })
        .collect()
}

pub(super) fn start(objects: Vec<Object>, kernel: FakeKernel) -> Synchronizer<FakeKernel> {
    let node_topology = NodeTopology { node: "a".into(), zone: None };
    let families = Families { v4: true, v6: false };
    let mut engine = Engine::new(RuleOptions::nftables(), node_topology, families, true);
    for kind in Kind::ALL {
        let of_kind = objects.iter().filter(|o| o.kind() == kind).cloned().collect();
        engine.apply(Change::Replace(kind, of_kind));
    }
    Synchronizer::new(engine, kernel)
}

pub(super) fn expected(objects: Vec<Object>) -> crate::testing::normal::NormalForm {
    let mut fresh = start(objects, FakeKernel::new());
    assert!(fresh.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    normal_form(fresh.kernel.ruleset(V4))
}

/// The kernel has what a fresh start programs for these objects.
#[track_caller]
pub(super) fn assert_serves(kernel: &FakeKernel, objects: Vec<Object>, context: impl Display) {
    assert_alike(&normal_form(kernel.ruleset(V4)), &expected(objects), context);
}

/// Refuses whatever mentions an address 10.96.0.`suffix`.
pub(super) fn poison(kernel: &mut FakeKernel, suffixes: impl Into<Vec<u8>>) {
    let addresses: Vec<Key> = suffixes
        .into()
        .into_iter()
        .map(|suffix| Key::new().address([10, 96, 0, suffix].into()))
        .collect();
    kernel.dislike(move |op| {
        let Op::AddElements(_, elements) = op else { return None };
        let starts = |e: &Element, address: &Key| e.key.as_bytes().starts_with(address.as_bytes());
        let mentions = |e: &Element| addresses.iter().any(|address| starts(e, address));
        elements.iter().any(mentions).then_some(libc::EINVAL)
    });
}

#[test]
fn a_lost_outcome_is_settled_by_reading_back() {
    for fault in [Fault::LostBefore, Fault::LostAfter] {
        let mut current = start(cluster(3), FakeKernel::new());
        current.kernel.fail([fault]);
        let report = current.sync(V4, Duration::ZERO).unwrap();
        assert!(report.result.is_ok(), "{fault:?}: {:?}", report.result);
        assert_eq!(report.troubles.len(), 1, "{fault:?}");
        assert_serves(&current.kernel, cluster(3), format!("{fault:?}"));
        assert!(!current.is_pending(V4));
    }
}

// B-196: what failed stays pending and is done by the next sync.
#[test]
fn a_failed_sync_stays_pending() {
    let mut current = start(cluster(3), FakeKernel::new());
    current.kernel.fail([Fault::Unsent]);
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_err());
    assert!(current.is_pending(V4));
    current.kernel.fail_dumps(1);
    current.distrust(V4);
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_err());
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    assert_serves(&current.kernel, cluster(3), "in the end");
}

// A refusal of everything is nobody's fault: no service is set aside for it.
#[test]
fn a_kernel_that_refuses_everything_blames_no_service() {
    let mut current = start(cluster(3), FakeKernel::new());
    current.kernel.dislike(|op| matches!(op, Op::AddTable(_)).then_some(libc::EPERM));
    let report = current.sync(V4, Duration::ZERO).unwrap();
    assert!(report.result.is_err());
    assert!(report.refused.is_empty() && current.quarantined(V4).is_empty());
    current.kernel.like_everything();
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    assert_serves(&current.kernel, cluster(3), "in the end");
}

#[test]
fn a_refused_service_is_set_aside_and_the_others_are_served() {
    for blames in [true, false] {
        let mut current = start(cluster(9), FakeKernel::new());
        current.kernel.blame(blames);
        poison(&mut current.kernel, [5]);
        let report = current.sync(V4, Duration::ZERO).unwrap();
        assert!(report.result.is_ok(), "blames {blames}: {:?}", report.result);
        let aside: BTreeSet<_> = current.quarantined(V4).keys().cloned().collect();
        assert_eq!(aside, [name("s5")].into(), "blames {blames}");
        let others = cluster(9).into_iter().filter(|o| !o.name().name.starts_with("s5")).collect();
        assert_serves(&current.kernel, others, format!("blames {blames}"));
        assert!(!current.is_pending(V4));
    }
}

#[test]
fn a_refused_service_is_tried_again_with_longer_and_longer_pauses() {
    let mut current = start(cluster(3), FakeKernel::new());
    poison(&mut current.kernel, [1]);
    let mut now = Duration::ZERO;
    let mut pauses = Vec::new();
    for _ in 0..11 {
        assert_eq!(current.sync(V4, now).unwrap().refused.len(), 1);
        assert!(current.sync(V4, now).is_none());
        let retry = current.next_retry(V4).unwrap();
        pauses.push((retry - now).as_secs());
        now = retry;
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
    current.kernel.like_everything();
    let report = current.sync(V4, now).unwrap();
    assert!(report.result.is_ok() && current.quarantined(V4).is_empty());
    assert_serves(&current.kernel, cluster(3), "in the end");
}

#[test]
fn a_refused_service_gets_a_new_chance_when_it_changes() {
    let mut current = start(cluster(3), FakeKernel::new());
    poison(&mut current.kernel, [1]);
    current.sync(V4, Duration::ZERO);
    let mut changed = service("s1", &["10.96.0.77"]);
    changed.ports.push(port("http", Protocol::Tcp, 80, None));
    current.engine.apply(Change::Apply(changed.into()));
    assert!(current.sync(V4, Duration::ZERO).unwrap().refused.is_empty());
    assert!(current.quarantined(V4).is_empty());
}

/// What another program may do to a table.
fn interferences() -> Vec<(&'static str, fn(&mut FakeKernel))> {
    vec![
        ("an element is gone", |kernel| {
            let (_, elements) = kernel.ruleset_mut(V4).sets.get_mut("endpoints-4").unwrap();
            elements.pop_first();
        }),
        ("an element leads elsewhere", |kernel| {
            let (_, elements) = kernel.ruleset_mut(V4).sets.get_mut("endpoints-4").unwrap();
            let mut element = elements.first_entry().unwrap();
            let elsewhere = Key::new().address([1, 2, 3, 4].into()).port(5);
            element.get_mut().value = Value::Data(elsewhere);
        }),
        ("an element is too many", |kernel| {
            let (_, elements) = kernel.ruleset_mut(V4).sets.get_mut("cluster-ips").unwrap();
            let key = Key::new().address([1, 2, 3, 4].into());
            elements.insert(key, Element::member(key));
        }),
        ("a rule is gone", |kernel| {
            kernel.ruleset_mut(V4).chains.get_mut("frontends").unwrap().1.pop();
        }),
        ("a base chain is gone", |kernel| {
            kernel.ruleset_mut(V4).chains.remove("nat-prerouting");
        }),
        ("all base chains are gone", |kernel| {
            kernel.ruleset_mut(V4).chains.retain(|_, (chain, _)| chain.hooked.is_none());
        }),
        // B-188.
        ("a base chain has another priority", |kernel| {
            let (chain, _) = kernel.ruleset_mut(V4).chains.get_mut("nat-prerouting").unwrap();
            chain.hooked.as_mut().unwrap().priority = -99;
            assert_eq!(chain.hooked.unwrap().hook, Hook::Prerouting);
        }),
        ("a foreign chain appeared", |kernel| {
            let name = Name::from("theirs");
            let chain = Chain { name: name.clone(), hooked: None, comment: None };
            kernel.ruleset_mut(V4).chains.insert(name, (chain, Vec::new()));
        }),
        ("a class lost its chain", |kernel| {
            kernel.ruleset_mut(V4).chains.get_mut("pick").unwrap().1.pop();
        }),
        ("a map of ours is of another type", |kernel| {
            let name = Name::from("clients-default.s1.tcp.http");
            let set = Set::plain(name.clone(), vec![Field::Mark]);
            kernel.ruleset_mut(V4).sets.insert(name, (set, Default::default()));
        }),
        // B-201.
        ("the table is gone", |kernel| {
            let family = V4;
            kernel.commit(&Transaction { family, ops: vec![Op::DeleteTable] }).unwrap();
        }),
    ]
}

// B-188, B-201.
#[test]
fn foreign_changes_are_repaired() {
    for (what, interfere) in interferences() {
        let mut current = start(cluster(3), FakeKernel::new());
        current.sync(V4, Duration::ZERO);
        interfere(&mut current.kernel);
        assert!(current.sync(V4, Duration::ZERO).is_none(), "{what}: not noticed without a hint");
        current.distrust(V4);
        let report = current.sync(V4, Duration::ZERO).unwrap();
        assert!(report.result.is_ok(), "{what}: {:?}", report.result);
        assert_serves(&current.kernel, cluster(3), what);
    }
}

#[test]
fn a_stale_mirror_is_noticed_by_the_refusal_it_causes() {
    let mut current = start(cluster(3), FakeKernel::new());
    current.sync(V4, Duration::ZERO);
    current.kernel.ruleset_mut(V4).sets.get_mut("services-4").unwrap().1.clear();
    current.engine.apply(Change::Delete(Kind::Service, name("s1")));
    let report = current.sync(V4, Duration::ZERO).unwrap();
    assert!(report.result.is_ok() && report.adoption == Some(Adoption::Adopted));
    assert_eq!(report.troubles.len(), 1);
    let left = cluster(3).into_iter().filter(|o| o.name().name.as_ref() != "s1").collect();
    assert_serves(&current.kernel, left, "in the end");
}

/// Every commit of a cold start may be the last one of a process.
#[test]
fn a_start_killed_after_any_commit_is_finished_by_the_next() {
    let mut whole = start(cluster(40), FakeKernel::new()).in_batches_of(50);
    whole.sync(V4, Duration::ZERO);
    let commits = whole.kernel.commits();
    assert!(commits > 4, "a cold start goes in batches, here in {commits}");
    for survived in 0..commits {
        let mut first = start(cluster(40), FakeKernel::new()).in_batches_of(50);
        first.kernel.die_after(Some(survived));
        assert!(first.sync(V4, Duration::ZERO).unwrap().result.is_err());
        let mut kernel = first.kernel;
        kernel.die_after(None);
        kernel.close_socket();
        let mut second = start(cluster(40), kernel);
        assert!(second.sync(V4, Duration::ZERO).unwrap().result.is_ok());
        assert_serves(&second.kernel, cluster(40), survived);
    }
}

// B-191: a restart with nothing to change commits nothing but the adoption of the table.
#[test]
fn a_restart_adopts_what_is_there() {
    let mut first = start(cluster(20), FakeKernel::new());
    first.sync(V4, Duration::ZERO);
    let before = first.kernel.ruleset(V4).clone();
    let mut kernel = first.kernel;
    kernel.close_socket();
    kernel.take_committed();
    let mut second = start(cluster(20), kernel);
    let report = second.sync(V4, Duration::ZERO).unwrap();
    assert_eq!(report.adoption, Some(Adoption::Adopted));
    let committed = second.kernel.take_committed();
    assert_eq!(committed.len(), 1, "{committed:?}");
    assert!(matches!(committed[0].ops[..], [Op::AddTable(_)]), "{committed:?}");
    assert_eq!(second.kernel.ruleset(V4), &before);
}
