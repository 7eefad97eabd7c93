//! Owners, orphans, and changes by others.

use std::time::Duration;

use kubeweir::kernel::{CommitError, Kernel, Op};
use kubeweir::model::Family;
use kubeweir::netlink::{Monitor, NetlinkKernel, Notice, probe_ownership};
use kubeweir::ruleset::{ChainType, Field, Hook, Ownership, Ruleset, Set, Table};
use kubeweir::testing::{slowed, wait_unowned};

use crate::commit::{commit, nft};
use crate::netns::in_netns;
use crate::shapes::{base_chain, chain, everything, table};

const FAMILY: Family = Family::V4;

/// Long enough for a busy machine; reached only when a test fails.
const DEADLINE: Duration = Duration::from_secs(10);

fn owned() -> Op {
    Op::AddTable(Table { comment: Some("program 1".into()), owner: Ownership::Ours, persist: true })
}

fn is_owned(kernel: &mut NetlinkKernel) -> Option<(bool, bool)> {
    kernel.table(FAMILY).unwrap().map(|table| (table.owner.is_ours(), table.persist))
}

#[test]
fn probing_leaves_nothing_behind() {
    in_netns(|| {
        assert!(probe_ownership().unwrap(), "these tests need kernel 6.9");
        assert_eq!(nft("list tables").unwrap(), "");
    });
}

#[test]
fn an_owned_table_is_out_of_reach_of_others() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        commit(&mut kernel, FAMILY, vec![owned(), chain("services")]).unwrap();
        assert_eq!(is_owned(&mut kernel), Some((true, true)));
        nft("flush ruleset").unwrap();
        let denied = nft("add chain ip kube-proxy intruder").unwrap_err();
        assert!(denied.contains("Operation not permitted"), "{denied}");
        let mut other = NetlinkKernel::open().unwrap();
        let owner = kernel.portid();
        assert_eq!(other.table(FAMILY).unwrap().unwrap().owner, Ownership::Other(owner));
        match commit(&mut other, FAMILY, vec![chain("intruder")]) {
            Err(CommitError::Owned { portid, .. }) => assert_eq!(portid, owner),
            outcome => panic!("{outcome:?}"),
        }
        assert_eq!(kernel.dump(FAMILY).unwrap().chains.len(), 1);
        commit(&mut kernel, FAMILY, vec![owned(), chain("more")]).unwrap();
        assert_eq!(kernel.dump(FAMILY).unwrap().chains.len(), 2);
    });
}

#[test]
fn an_orphan_is_adopted_with_all_it_holds() {
    in_netns(|| {
        let mut first = NetlinkKernel::open().unwrap();
        let mut ops = everything(FAMILY);
        ops[0] = owned();
        commit(&mut first, FAMILY, ops).unwrap();
        let held = first.dump(FAMILY).unwrap();
        drop(first);

        let mut second = NetlinkKernel::open().unwrap();
        wait_unowned(&mut second);
        let orphan = second.dump(FAMILY).unwrap();
        let table = Table { owner: Ownership::Nobody, ..held.table.clone().unwrap() };
        assert_eq!(orphan, Ruleset { table: Some(table), ..held.clone() });
        commit(&mut second, FAMILY, vec![owned(), chain("mine")]).unwrap();
        assert_eq!(is_owned(&mut second), Some((true, true)));
        nft("flush ruleset").unwrap();
        assert_eq!(second.dump(FAMILY).unwrap().chains.len(), held.chains.len() + 1);
    });
}

#[test]
fn a_plain_table_is_replaced_by_an_owned_one_in_one_transaction() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let base = || base_chain("nat-prerouting", ChainType::Nat, Hook::Prerouting, -100);
        commit(&mut kernel, FAMILY, vec![table(), base(), chain("old")]).unwrap();
        match commit(&mut kernel, FAMILY, vec![owned()]) {
            Err(CommitError::Rejected(rejection)) => assert_eq!(rejection.errno, libc::EOPNOTSUPP),
            outcome => panic!("{outcome:?}"),
        }
        commit(&mut kernel, FAMILY, vec![Op::DeleteTable, owned(), base()]).unwrap();
        assert_eq!(is_owned(&mut kernel), Some((true, true)));
        assert_eq!(kernel.dump(FAMILY).unwrap().chains.len(), 1);
    });
}

#[test]
fn the_monitor_hears_others_and_not_us() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let mut monitor = Monitor::open(kernel.portid()).unwrap();
        for family in Family::BOTH {
            commit(&mut kernel, family, vec![table(), chain("services")]).unwrap();
        }
        nft("add table ip other").unwrap();
        nft("add rule ip6 kube-proxy services counter accept").unwrap();
        // Notices come in order: the first heard is nft's, so neither ours nor `other` is one.
        let notice = monitor.wait(slowed(DEADLINE)).unwrap();
        let foreign = Notice::Foreign {
            family: Family::V6,
            changes: ["add rule services".to_owned()].into(),
            by: Some("nft".to_owned()),
        };
        assert_eq!(notice, Some(foreign));
        nft("flush ruleset").unwrap();
        for family in Family::BOTH {
            match monitor.wait(slowed(DEADLINE)).unwrap() {
                Some(Notice::Foreign { family: changed, changes, .. }) => {
                    assert_eq!(changed, family);
                    assert!(changes.contains("delete table"), "{changes:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        commit(&mut kernel, FAMILY, vec![table()]).unwrap();
        assert_eq!(monitor.wait(Duration::from_millis(1)).unwrap(), None);
    });
}

#[test]
fn lost_notifications_are_told() {
    in_netns(|| {
        let mut kernel = NetlinkKernel::open().unwrap();
        let set = Set::plain("slots", vec![Field::Mark]);
        commit(&mut kernel, FAMILY, vec![table(), Op::AddSet(set)]).unwrap();
        // A port that is nobody's: every change counts as foreign.
        let mut monitor = Monitor::open(u32::MAX).unwrap();
        let elements: Vec<_> = (0..100_000)
            .map(|n| kubeweir::ruleset::Element::member(kubeweir::ruleset::Key::new().slot(n)))
            .collect();
        let add = Op::AddElements("slots".into(), elements);
        commit(&mut kernel, FAMILY, vec![add]).unwrap();
        let mut heard = Vec::new();
        while let Some(notice) = monitor.wait(Duration::from_millis(1)).unwrap() {
            heard.push(notice);
        }
        assert!(heard.contains(&Notice::Overflow), "{heard:?}");
    });
}
