//! What one transaction holds, and what is read for it.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::refusals::{V4, assert_serves, cluster, poison, start};
use crate::engine::Adoption;
use crate::kernel::Op;
use crate::model::{Change, Kind, Object, Protocol};
use crate::ruleset::{Element, Key};
use crate::sync::Synchronizer;
use crate::testing::FakeKernel;
use crate::testing::objects::{name, port, service, slice};

/// What is in one transaction by default.
const BOUND: usize = 10_000;

fn large_cluster(services: u32, endpoints: u32, affinity: Option<u32>) -> Vec<Object> {
    let objects = (0..services).flat_map(|n| {
        let name = format!("s{n}");
        let mut object = service(&name, &[&Ipv4Addr::from(0x0a60_0000 + n).to_string()]);
        object.ports.push(port("http", Protocol::Tcp, 80, None));
        object.session_affinity = affinity;
        let addresses: Vec<String> = (0..endpoints)
            .map(|e| format!("{}@b", Ipv4Addr::from(0x0af4_0000 + n * endpoints + e)))
            .collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let slice = slice(&format!("{name}-x"), &name, ("http", Protocol::Tcp, 8080), &addresses);
        [object.into(), slice.into()]
    });
    objects.collect()
}

/// Syncs, and returns the number of elements in the largest transaction.
fn largest(current: &mut Synchronizer<FakeKernel>) -> usize {
    current.kernel.take_committed();
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    assert!(!current.is_pending(V4));
    let committed = current.kernel.take_committed();
    let sizes = committed.iter().map(|transaction| {
        let counts = transaction.counts();
        counts.elements_added + counts.elements_deleted
    });
    sizes.max().unwrap()
}

// kubernetes#139328: a cold start is no giant transaction. B8: also of deletions, whether services are
// deleted, a list has lost them, or they were deleted while no process ran.
#[test]
fn no_transaction_is_larger_than_a_batch_and_a_service() {
    let (services, endpoints) = (3000, 20);
    let one = 2 * endpoints as usize;
    let objects = || large_cluster(services, endpoints, None);
    let whole = || {
        let mut current = start(objects(), FakeKernel::new());
        assert!(largest(&mut current) <= BOUND + one);
        current
    };

    let mut current = whole();
    for n in 0..services {
        current.engine.apply(Change::Delete(Kind::Service, name(&format!("s{n}"))));
    }
    assert!(largest(&mut current) <= BOUND + one, "services are deleted");
    assert_serves(&current.kernel, Vec::new(), "services are deleted");

    let mut current = whole();
    current.engine.apply(Change::Replace(Kind::EndpointSlice, Vec::new()));
    assert!(largest(&mut current) <= BOUND + one, "a list has lost all slices");

    let mut current = whole();
    current.kernel.close_socket();
    let mut next = start(Vec::new(), current.kernel);
    assert!(largest(&mut next) <= BOUND + one, "leftovers at start");
    assert_serves(&next.kernel, Vec::new(), "leftovers at start");
}

// B8: chains and maps of Services that are gone are deleted in batches, too.
#[test]
fn garbage_is_collected_in_batches() {
    let services = 300;
    let mut current = start(large_cluster(services, 2, Some(60)), FakeKernel::new());
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    current.engine.apply(Change::Replace(Kind::Service, Vec::new()));
    let mut current = current.in_batches_of(100);
    current.kernel.take_committed();
    let report = current.sync(V4, Duration::ZERO).unwrap();
    assert!(report.result.is_ok() && !report.garbage_stays);
    let about = |op: &&Op| matches!(op, Op::FlushChain(_) | Op::DeleteChain(_) | Op::DeleteSet(_));
    let garbage = current.kernel.take_committed().into_iter();
    let ops: Vec<usize> = garbage.map(|t| t.ops.iter().filter(about).count()).collect();
    assert!(ops.iter().sum::<usize>() >= 2 * services as usize, "{ops:?}");
    assert!(ops.iter().all(|ops| *ops <= 100), "{ops:?}");
    assert_serves(&current.kernel, Vec::new(), "all services are gone");
}

/// A service with an external address that others want, too.
fn contender(id: u8, created: i64, external: bool) -> Change {
    let mut object = service(&format!("s{id}"), &[&format!("10.96.0.{id}")]);
    object.ports.push(port("http", Protocol::Tcp, 80, None));
    object.created = created;
    if external {
        object.external_ips = vec!["192.0.2.1".parse().unwrap()];
    }
    Change::Apply(object.into())
}

// B18: who gets a frontend and who loses it are in different batches by name.
#[test]
fn a_frontend_moves_across_the_border_of_a_batch() {
    for batch in 1..8 {
        for (winner, loser) in [(0, 2), (2, 0)] {
            for released in [false, true] {
                let context = format!("batches of {batch}: from s{loser} to s{winner}, {released}");
                let mut current = start(cluster(3), FakeKernel::new()).in_batches_of(batch);
                current.engine.apply(contender(loser, 5, true));
                current.sync(V4, Duration::ZERO);
                let changes = [contender(loser, 5, !released), contender(winner, 1, true)];
                let mut objects = cluster(3);
                for change in changes {
                    let Change::Apply(object) = &change else { unreachable!() };
                    objects.retain(|known| {
                        (known.kind(), known.name()) != (object.kind(), object.name())
                    });
                    objects.push(object.clone());
                    current.engine.apply(change);
                }
                let report = current.sync(V4, Duration::ZERO).unwrap();
                assert!(report.result.is_ok() && report.troubles.is_empty(), "{context}");
                assert_serves(&current.kernel, objects, context);
            }
        }
    }
}

// B21.
#[test]
fn nobody_is_blamed_for_leftovers() {
    for blames in [true, false] {
        for batch in [1, 4, 1000] {
            let mut first = start(cluster(9), FakeKernel::new());
            first.sync(V4, Duration::ZERO);
            first.kernel.close_socket();
            let left: Vec<Object> =
                cluster(9).into_iter().filter(|o| !o.name().name.starts_with("s4")).collect();
            let mut second = start(left.clone(), first.kernel).in_batches_of(batch);
            second.kernel.blame(blames);
            second.kernel.dislike(|op| {
                let Op::DeleteElements(_, elements) = op else { return None };
                let address = Key::new().address([10, 96, 0, 4].into());
                let mentions = |e: &Element| e.key.as_bytes().starts_with(address.as_bytes());
                elements.iter().any(mentions).then_some(libc::ENOENT)
            });
            let report = second.sync(V4, Duration::ZERO).unwrap();
            assert!(report.refused.is_empty(), "{:?}", report.refused);
            assert!(second.quarantined(V4).is_empty() && report.result.is_err());
            second.kernel.like_everything();
            assert!(second.sync(V4, Duration::ZERO).unwrap().result.is_ok());
            assert_serves(&second.kernel, left, format!("blames {blames}, batches of {batch}"));
        }
    }
}

// B22.
#[test]
fn a_foreign_table_is_replaced_although_one_service_is_refused() {
    for blames in [true, false] {
        for refused in [vec![5], vec![0], vec![8], vec![1, 7], vec![0, 3, 8]] {
            let mut first = start(cluster(9), FakeKernel::new());
            first.sync(V4, Duration::ZERO);
            first.kernel.close_socket();
            first.kernel.ruleset_mut(V4).table.as_mut().unwrap().comment = None;
            let mut second = start(cluster(9), first.kernel);
            second.kernel.blame(blames);
            poison(&mut second.kernel, refused.clone());
            let report = second.sync(V4, Duration::ZERO).unwrap();
            assert_eq!(report.adoption, Some(Adoption::Replace));
            assert!(report.result.is_ok(), "blames {blames}: {:?}", report.result);
            let aside: Vec<String> = second.quarantined(V4).keys().map(|n| n.to_string()).collect();
            let names: Vec<String> = refused.iter().map(|id| format!("default/s{id}")).collect();
            assert_eq!(aside, names, "blames {blames}");
            let others = cluster(9).into_iter().filter(|object| {
                !refused.iter().any(|id| object.name().name.starts_with(&format!("s{id}")))
            });
            assert_serves(&second.kernel, others.collect(), format!("blames {blames} {refused:?}"));
        }
    }
}

// B23: a thousand sticky services lose an endpoint each, and one of them is refused without a name.
#[test]
fn affinity_maps_are_read_for_what_is_planned_only() {
    let services = 1000;
    let mut current = start(large_cluster(services, 3, Some(60)), FakeKernel::new());
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    let fewer = large_cluster(services, 2, Some(60));
    let slices = |objects: Vec<Object>| {
        let slices = objects.into_iter().filter(|object| object.kind() == Kind::EndpointSlice);
        Change::Replace(Kind::EndpointSlice, slices.collect())
    };
    // Each once for the plan, and once more after the commit for those that lost a member.
    current.engine.apply(slices(fewer));
    let before = current.kernel.set_dumps();
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    let read = current.kernel.set_dumps() - before;
    assert!(read <= 2 * services as usize, "{read} maps were read for one plan");

    current.kernel.blame(false);
    current.kernel.dislike(|op| {
        let Op::AddElements(_, elements) = op else { return None };
        let address = Key::new().address(Ipv4Addr::from(0x0a60_0000 + 500).into());
        let mentions = |e: &Element| e.key.as_bytes().starts_with(address.as_bytes());
        elements.iter().any(mentions).then_some(libc::EINVAL)
    });
    current.engine.apply(slices(large_cluster(services, 4, Some(60))));
    let before = current.kernel.set_dumps();
    let report = current.sync(V4, Duration::ZERO).unwrap();
    assert!(report.result.is_ok() && report.refused.len() == 1, "{:?}", report.refused);
    let read = current.kernel.set_dumps() - before;
    assert!(read <= 5 * services as usize, "{read} maps were read to find one service");
}
