//! The errors of a real nf_tables, one by one: what each costs, and where it ends.

use std::time::Duration;

use super::refusals::{V4, assert_serves, cluster, start};
use crate::engine::Adoption;
use crate::kernel::{CommitError, DumpError, Op};
use crate::model::{Change, Kind};
use crate::program::{SetId, ended};
use crate::ruleset::{Expr, Ownership, Ruleset};
use crate::sync::{Synchronizer, release};
use crate::testing::objects::name;
use crate::testing::{FakeKernel, Fault};

/// Errors that say nothing about a service: a lack of memory or of descriptors, a table that somebody
/// else is busy with, a signal, an interrupted batch.
const PASSING: [i32; 7] = [
    libc::ENOMEM,
    libc::ENFILE,
    libc::EBUSY,
    libc::EINTR,
    libc::EAGAIN,
    libc::ENOBUFS,
    libc::EPERM,
];

// At every commit of a cold start once, twice, and so often that the sync fails: everything is
// served in the end, nobody is blamed.
#[test]
fn passing_errors_cost_a_retry_and_no_service() {
    let mut injected = 0;
    let mut whole = start(cluster(40), FakeKernel::new()).in_batches_of(50);
    whole.sync(V4, Duration::ZERO);
    for errno in PASSING {
        for before in 0..whole.kernel.commits() {
            for times in [1, 2, 5, 7, 12] {
                let mut current = start(cluster(40), FakeKernel::new()).in_batches_of(50);
                current.kernel.fail_after(before, vec![Fault::Refused(errno); times]);
                injected += times;
                let mut syncs = 0;
                while current.is_pending(V4) || !current.quarantined(V4).is_empty() {
                    syncs += 1;
                    assert!(syncs < 20, "errno {errno} x{times} after {before} commits");
                    let report = current.sync(V4, Duration::from_secs(1000 * syncs)).unwrap();
                    assert!(report.refused.is_empty(), "errno {errno} x{times} after {before}");
                }
                assert_serves(&current.kernel, cluster(40), "in the end");
            }
        }
    }
    println!("{injected} refusals injected");
}

#[test]
fn lost_outcomes_at_any_commit_are_settled_by_reading_back() {
    let mut whole = start(cluster(40), FakeKernel::new()).in_batches_of(50);
    whole.sync(V4, Duration::ZERO);
    for before in 0..whole.kernel.commits() {
        for fault in [Fault::LostBefore, Fault::LostAfter] {
            let mut current = start(cluster(40), FakeKernel::new()).in_batches_of(50);
            current.kernel.fail_after(before, vec![fault; 2]);
            let report = current.sync(V4, Duration::ZERO).unwrap();
            assert!(report.result.is_ok(), "{fault:?} after {before}: {:?}", report.result);
            let lost = |error: &CommitError| matches!(error, CommitError::Unknown(_));
            assert!(report.troubles.iter().all(lost) && report.troubles.len() <= 2);
            assert!(current.quarantined(V4).is_empty());
            assert_serves(&current.kernel, cluster(40), "in the end");
        }
    }
}

// A set that something still uses cannot be deleted: it is tried again with the next sync, and
// until then hinders nothing.
#[test]
fn garbage_that_is_busy_stays_and_goes_later() {
    let mut current = start(cluster(3), FakeKernel::new());
    current.sync(V4, Duration::ZERO);
    let garbage = |op: &Op| matches!(op, Op::DeleteSet(_) | Op::DeleteChain(_));
    current.kernel.dislike(move |op| garbage(op).then_some(libc::EBUSY));
    let mut sticky = crate::testing::objects::service("s1", &["10.96.0.1"]);
    sticky.ports.push(crate::testing::objects::port("http", crate::model::Protocol::Tcp, 80, None));
    let plain = sticky.clone();
    sticky.session_affinity = Some(60);
    current.engine.apply(Change::Apply(sticky.into()));
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    current.engine.apply(Change::Apply(plain.into()));
    let report = current.sync(V4, Duration::ZERO).unwrap();
    assert!(report.result.is_ok(), "{:?}", report.result);
    let busy = |error: &CommitError| matches!(error, CommitError::Rejected(rejection) if rejection.errno == libc::EBUSY);
    assert!(report.troubles.iter().any(busy), "{:?}", report.troubles);
    assert!(report.garbage_stays);
    assert!(current.quarantined(V4).is_empty());
    let maps = |kernel: &FakeKernel| {
        kernel.ruleset(V4).sets.keys().filter(|name| name.as_str().starts_with("clients-")).count()
    };
    assert!(maps(&current.kernel) > 0, "the garbage is still there");
    current.kernel.like_everything();
    current.engine.apply(Change::Delete(Kind::Service, name("s2")));
    let report = current.sync(V4, Duration::ZERO).unwrap();
    assert!(report.result.is_ok() && !report.garbage_stays);
    assert_eq!(maps(&current.kernel), 0, "gone with the next sync");
}

// A table that kept changing, or was cut off, is no reason to believe anything.
#[test]
fn a_table_that_cannot_be_read_is_read_again() {
    let mut first = start(cluster(3), FakeKernel::new());
    first.sync(V4, Duration::ZERO);
    let mut kernel = first.kernel;
    kernel.close_socket();
    let before = kernel.commits();
    kernel.fail_dumps(3);
    let mut second = start(cluster(3), kernel);
    for _ in 0..3 {
        let report = second.sync(V4, Duration::ZERO).unwrap();
        let interrupted =
            matches!(report.result, Err(crate::sync::SyncError::Dump(DumpError::Interrupted(_))));
        assert!(interrupted && report.commits.is_empty(), "{report:?}");
        assert_eq!(second.kernel.commits(), before, "nothing is written in the dark");
        assert!(second.is_pending(V4));
    }
    let report = second.sync(V4, Duration::ZERO).unwrap();
    assert_eq!(report.adoption, Some(Adoption::Adopted));
    assert!(report.result.is_ok());
    assert_serves(&second.kernel, cluster(3), "in the end");
}

// B-188: a released table is plain and otherwise the same; the next start replaces it at once.
#[test]
fn a_released_table_is_anyones_and_the_same() {
    let mut first = start(cluster(40), FakeKernel::new());
    first.sync(V4, Duration::ZERO);
    let Synchronizer { mut kernel, .. } = first;
    kernel.close_socket();
    let before = kernel.ruleset(V4).clone();
    assert!(before.table.as_ref().unwrap().persist);
    release(&mut kernel, V4).unwrap();
    let after = kernel.ruleset(V4).clone();
    let table = after.table.clone().unwrap();
    assert!(table.owner == Ownership::Nobody && !table.persist);
    assert_eq!(Ruleset { table: None, ..after }, Ruleset { table: None, ..before });
    let commits = kernel.commits();
    release(&mut kernel, V4).unwrap();
    assert_eq!(kernel.commits(), commits, "a plain table is left alone");
    let mut next = start(cluster(40), kernel);
    let report = next.sync(V4, Duration::ZERO).unwrap();
    // The second ends the handover.
    assert_eq!((report.adoption, report.commits.len()), (Some(Adoption::Replace), 2));
    assert_serves(&next.kernel, cluster(40), "in the end");
}

// What a version without counters wrote is another program: it is replaced in one transaction, as any other.
#[test]
fn a_table_without_counters_is_replaced_at_once() {
    let mut first = start(cluster(40), FakeKernel::new());
    first.sync(V4, Duration::ZERO);
    let counters = first.kernel.ruleset(V4).counters.clone();
    assert!(!counters.is_empty());
    let Synchronizer { mut kernel, .. } = first;
    kernel.close_socket();
    let table = kernel.ruleset_mut(V4);
    table.counters.clear();
    for rule in table.chains.values_mut().flat_map(|(_, rules)| rules) {
        rule.exprs.retain(|expr| !matches!(expr, Expr::Count(_)));
    }
    let mut second = start(cluster(40), kernel);
    let report = second.sync(V4, Duration::ZERO).unwrap();
    // The second ends the handover.
    assert_eq!((report.adoption, report.commits.len()), (Some(Adoption::Replace), 2));
    assert_eq!(second.kernel.ruleset(V4).counters, counters);
    assert_serves(&second.kernel, cluster(40), "in the end");
}

fn twins(kernel: &FakeKernel) -> usize {
    kernel.ruleset(V4).chains.values().filter(|(chain, _)| chain.is_handover()).count()
}

// A process that dies between replacing a table and ending the handover leaves twins: they are in
// force and say the same, and whoever comes next tidies them, replacing nothing again.
#[test]
fn a_handover_that_was_cut_off_is_ended_by_the_next() {
    let ended = || {
        let mut first = start(cluster(40), FakeKernel::new());
        first.sync(V4, Duration::ZERO);
        first.kernel.close_socket();
        first.kernel
    };
    let mut kernel = ended();
    kernel.fail_after(1, [Fault::Refused(libc::ENOMEM)]);
    assert!(release(&mut kernel, V4).is_err());
    assert!(twins(&kernel) > 0, "the release was cut off");

    kernel.fail_after(1, [Fault::Refused(libc::ENOMEM)]);
    let mut second = start(cluster(40), kernel);
    let report = second.sync(V4, Duration::ZERO).unwrap();
    assert_eq!((report.adoption, report.garbage_stays), (Some(Adoption::Replace), true));
    assert!(report.result.is_ok() && twins(&second.kernel) > 0, "the start was cut off");
    second.kernel.close_socket();

    let mut third = start(cluster(40), second.kernel);
    let report = third.sync(V4, Duration::ZERO).unwrap();
    assert_eq!(report.adoption, Some(Adoption::Adopted));
    assert_serves(&third.kernel, cluster(40), "in the end");

    let mut kernel = ended();
    kernel.fail_after(1, [Fault::Refused(libc::ENOMEM)]);
    assert!(release(&mut kernel, V4).is_err());
    kernel.ruleset_mut(V4).table.as_mut().unwrap().persist = true;
    release(&mut kernel, V4).unwrap();
    assert_eq!(twins(&kernel), 0, "released again");
}

// B9: what the kernel says about the owner is asked, shown and acted upon.
#[test]
fn a_table_that_is_not_ours_is_taken_as_soon_as_it_is_nobodys() {
    let mut worker = start(cluster(3), FakeKernel::new());
    worker.sync(V4, Duration::ZERO);
    assert_eq!(worker.engine.ownership(V4), Ownership::Ours);
    assert!(!worker.is_pending(V4));
    for owner in [Ownership::Nobody, Ownership::Other(7)] {
        worker.kernel.own(V4, owner);
        worker.distrust(V4);
        while owner != Ownership::Nobody && worker.kernel.ruleset(V4).chains.len() > 1 {
            let report = worker.sync(V4, Duration::ZERO).unwrap();
            let refused = report.result.unwrap_err().to_string();
            assert!(refused.contains("another process (netlink port 7"), "{refused}");
            assert_eq!(report.commits.len(), 0);
            assert_eq!(worker.engine.ownership(V4), owner);
            assert!(worker.is_pending(V4), "it is tried again");
            // The owner does as it likes, and then it is gone.
            worker.kernel.ruleset_mut(V4).chains.pop_last();
        }
        worker.kernel.own(V4, Ownership::Nobody);
        let report = worker.sync(V4, Duration::ZERO).unwrap();
        assert!(report.result.is_ok() && report.full, "{report:?}");
        assert_eq!(worker.engine.ownership(V4), Ownership::Ours);
        assert_eq!(worker.kernel.ruleset(V4).table.as_ref().unwrap().owner, Ownership::Ours);
        assert_serves(&worker.kernel, cluster(3), "taken again");
    }
}

// B9: only a commit that adds the table makes it ours.
#[test]
fn a_table_stays_an_orphan_until_it_is_taken() {
    let mut worker = start(cluster(3), FakeKernel::new());
    worker.sync(V4, Duration::ZERO);
    worker.kernel.own(V4, Ownership::Nobody);
    // A change that is committed to a table that has silently become nobody's.
    worker.engine.apply(Change::Delete(Kind::Service, name("s0")));
    assert!(worker.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    assert_eq!(worker.kernel.ruleset(V4).table.as_ref().unwrap().owner, Ownership::Nobody);
    worker.distrust(V4);
    assert!(worker.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    assert_eq!(worker.kernel.ruleset(V4).table.as_ref().unwrap().owner, Ownership::Ours);
}

// Whoever follows the reports, flows among them, would not hear that it is gone.
#[test]
fn a_deleted_service_is_reported_although_the_table_was_read_anew() {
    let mut current = start(cluster(3), FakeKernel::new());
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    current.engine.apply(Change::Delete(Kind::Service, name("s1")));
    current.kernel.fail([Fault::LostAfter]);
    let report = current.sync(V4, Duration::ZERO).unwrap();
    assert!(report.result.is_ok() && report.adoption.is_some(), "{report:?}");
    assert!(report.services.contains(&name("s1")), "{:?}", report.services);
}

// The rule that refuses late packets of ended connections comes with the first of them and is known after
// a restart; a failure concerns no service.
#[test]
fn ended_connections_are_refused_on_demand() {
    let connection =
        |port: u16| vec![ended(([192, 0, 2, 9], port).into(), ([10, 96, 0, 1], 80).into())];
    let mut first = start(cluster(3), FakeKernel::new());
    assert!(matches!(first.refuse(V4, connection(1)), Ok(false)), "there are no rules yet");
    first.sync(V4, Duration::ZERO);
    let plain = first.kernel.ruleset(V4).clone();
    first.kernel.fail([Fault::Refused(libc::ENFILE)]);
    assert!(first.refuse(V4, connection(1)).is_err());
    assert!(!first.is_pending(V4));
    assert_eq!(first.kernel.ruleset(V4), &plain);
    for port in [1, 2] {
        assert!(matches!(first.refuse(V4, connection(port)), Ok(true)));
    }
    let refused = |kernel: &FakeKernel| {
        let sets = &kernel.ruleset(V4).sets;
        sets.get(&SetId::EndedConnections.name()).map(|(_, elements)| elements.len())
    };
    assert_eq!(refused(&first.kernel), Some(2));
    assert_serves(&first.kernel, cluster(3), "as before");

    let mut kernel = first.kernel;
    kernel.close_socket();
    let mut second = start(cluster(3), kernel);
    let report = second.sync(V4, Duration::ZERO).unwrap();
    assert_eq!(report.adoption, Some(Adoption::Adopted));
    second.kernel.take_committed();
    assert!(matches!(second.refuse(V4, connection(3)), Ok(true)));
    let committed = second.kernel.take_committed();
    assert!(matches!(committed[0].ops[..], [Op::AddElements(..)]), "{committed:?}");
    assert_eq!(refused(&second.kernel), Some(3));
}
