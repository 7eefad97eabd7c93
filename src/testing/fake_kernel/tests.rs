use super::*;
use crate::ruleset::{Field, Set, Table};

const SET: &str = "members";

fn key(last: u8) -> Key {
    Key::from_bytes(&[10, 0, 0, last]).expect("four bytes fit")
}

fn add(last: u8) -> Transaction {
    let element = Element::member(key(last)).with_comment(format!("default/{last}").into());
    Transaction { family: Family::V4, ops: vec![Op::AddElements(SET.into(), vec![element])] }
}

fn kernel() -> FakeKernel {
    let mut kernel = FakeKernel::new();
    let table = Table { comment: None, owner: false, persist: false };
    let ops = vec![Op::AddTable(table), Op::AddSet(Set::plain(SET, vec![Field::Ipv4Addr]))];
    kernel.commit(&Transaction { family: Family::V4, ops }).expect("a fresh table");
    kernel.forget();
    kernel
}

fn members(kernel: &mut FakeKernel) -> usize {
    kernel.dump_set(Family::V4, &SET.into()).expect("no failure is planned").len()
}

#[test]
fn planned_commits_fail_and_others_do_not() {
    let cases = [
        (CommitFailure::Rejected(libc::ENOMEM), 0),
        (CommitFailure::UnknownBefore, 0),
        (CommitFailure::UnknownAfter, 1),
        (CommitFailure::Unsent, 0),
    ];
    for (failure, applied) in cases {
        let mut kernel = kernel();
        kernel.fail_commit(1, failure);
        kernel.commit(&add(1)).expect("the failure is planned for the one after");
        let error = kernel.commit(&add(2)).expect_err("planned");
        let fits = match failure {
            CommitFailure::Rejected(errno) => {
                matches!(&error, CommitError::Rejected(r) if r.errno == errno)
            }
            CommitFailure::Unsent => matches!(error, CommitError::Unsent { .. }),
            _ => matches!(error, CommitError::Unknown(_)),
        };
        assert!(fits, "{failure:?}: {error:?}");
        assert_eq!(members(&mut kernel), 1 + applied, "{failure:?}");
        kernel.commit(&add(2)).expect("only one was planned");
    }
}

#[test]
fn culprits_are_refused_until_forgiven() {
    let cases = [
        Culprit::Key(SET.into(), key(1)),
        Culprit::Comment("default/1".into()),
        Culprit::Object(SET.into()),
    ];
    for culprit in cases {
        let mut kernel = kernel();
        kernel.refuse(culprit.clone(), libc::EINVAL);
        let error = kernel.commit(&add(1)).expect_err("refused");
        let CommitError::Rejected(rejection) = error else { panic!("{error:?}") };
        assert_eq!((rejection.op, rejection.element), (Some(0), Some(0)), "{culprit:?}");
        kernel.forgive();
        kernel.commit(&add(1)).expect("forgiven");
    }
}

#[test]
fn innocent_transactions_pass() {
    let mut kernel = kernel();
    kernel.refuse(Culprit::Key(SET.into(), key(1)), libc::EINVAL);
    kernel.commit(&add(2)).expect("another key");
    assert_eq!(kernel.committed(), vec![add(2)]);
    assert_eq!(kernel.refused(), vec![]);
}

#[test]
fn dumps_fail_as_often_as_told() {
    let mut kernel = kernel();
    kernel.commit(&add(1)).expect("sound");
    kernel.commit(&add(2)).expect("sound");
    kernel.fail_dumps(1, DumpFailure::Interrupted).fail_dumps(1, DumpFailure::Io(libc::EPERM));
    kernel.fail_dumps(2, DumpFailure::Short);
    assert!(matches!(kernel.dump(Family::V4), Err(DumpError::Interrupted("ip"))));
    assert!(matches!(kernel.dump(Family::V4), Err(DumpError::Io { .. })));
    let short = kernel.dump(Family::V4).expect("short, but an answer");
    assert_eq!(short.sets[SET].1.len(), 1);
    assert_eq!(members(&mut kernel), 1, "short as well");
    assert_eq!(kernel.dump(Family::V4).expect("no failure left"), kernel.table(Family::V4));
    assert_eq!(kernel.dumps(), 5);
}

#[test]
fn others_interfere() {
    let mut kernel = kernel();
    kernel.interfere(Family::V4, |table| table.sets.clear());
    kernel.commit(&add(1)).expect_err("the set is gone");
    let set = Set::plain(SET, vec![Field::Ipv4Addr]);
    kernel.interfere_before(1, Family::V4, |table| *table = Ruleset::empty(Family::V4));
    let ops = vec![Op::AddSet(set)];
    kernel.commit(&Transaction { family: Family::V4, ops }).expect("not yet");
    kernel.commit(&add(1)).expect_err("the table is gone");
    assert_eq!(kernel.commits(), 4);
}
