use libc::{EBUSY, EEXIST, EINVAL, ELOOP, ENFILE, ENOENT, EOPNOTSUPP};

use super::*;
use crate::model::Family;
use crate::ruleset::{
    ChainType, Expr, Field, Hook, Hooked, Key, Lifetime, Ownership, Register, SetKind, Verdict,
};

fn table(owner: bool, persist: bool) -> Op {
    let owner = if owner { Ownership::Ours } else { Ownership::Nobody };
    Op::AddTable(Table { comment: None, owner, persist })
}

fn chain(name: &str) -> Op {
    Op::AddChain(Chain { name: name.into(), hooked: None, comment: None })
}

fn base(name: &str, priority: i32) -> Op {
    let hooked = Some(Hooked { kind: ChainType::Nat, hook: Hook::Prerouting, priority });
    Op::AddChain(Chain { name: name.into(), hooked, comment: None })
}

fn rule(exprs: Vec<Expr>) -> Rule {
    Rule { exprs, comment: None }
}

fn jump(from: &str, to: &str) -> Op {
    Op::AddRule(from.into(), rule(vec![Expr::Verdict(Verdict::Jump(to.into()))]))
}

fn lookup(set: &str, dst: Option<Register>, verdict: bool) -> Vec<Expr> {
    vec![Expr::Lookup { set: set.into(), src: Register(0), dst, verdict, inverted: false }]
}

fn key(last: u8) -> Key {
    Key::from_bytes(&[10, 0, 0, last]).expect("four bytes fit")
}

fn range(first: u8, last: u8) -> Element {
    Element { last: Some(key(last)), ..Element::member(key(first)) }
}

fn to(first: u8, chain: &str) -> Element {
    Element::verdict(key(first), Verdict::Goto(chain.into()))
}

fn add(set: &str, elements: Vec<Element>) -> Op {
    Op::AddElements(set.into(), elements)
}

fn delete(set: &str, elements: Vec<Element>) -> Op {
    Op::DeleteElements(set.into(), elements)
}

fn sets() -> Vec<Op> {
    let plain = |name: &str| Set::plain(name, vec![Field::Ipv4Addr]);
    vec![
        Op::AddSet(plain("members")),
        Op::AddSet(Set { kind: SetKind::Map(vec![Field::Ipv4Addr]), ..plain("data") }),
        Op::AddSet(Set { kind: SetKind::VerdictMap, ..plain("verdicts") }),
        Op::AddSet(Set { interval: true, ..plain("ranges") }),
        Op::AddSet(Set { size: Some(2), ..plain("small") }),
    ]
}

fn transaction(ops: Vec<Op>) -> Transaction {
    Transaction { family: Family::V4, ops }
}

fn fixture() -> Ruleset {
    let mut ruleset = Ruleset::empty(Family::V4);
    let mut ops = vec![table(false, false), chain("a"), chain("b"), base("nat", -100)];
    ops.extend(sets());
    ops.extend([
        jump("nat", "a"),
        Op::AddRule("a".into(), rule(lookup("members", None, false))),
        add("members", vec![Element::member(key(1))]),
        add("data", vec![Element::data(key(1), key(9))]),
        add("ranges", vec![range(10, 20), Element::member(key(30))]),
        add("small", vec![Element::member(key(1))]),
    ]);
    apply(&mut ruleset, &transaction(ops)).expect("the fixture is sound");
    ruleset
}

#[test]
fn refuses_what_the_kernel_refuses() {
    let renamed = |name: &str, f: fn(&mut Set)| {
        let mut set = Set::plain(name, vec![Field::Ipv4Addr]);
        f(&mut set);
        Op::AddSet(set)
    };
    let one = |last| vec![Element::member(key(last))];
    let mortal =
        Element { lifetime: Some(Lifetime { timeout: 1, expires: 1 }), ..Element::member(key(5)) };
    let short = Element::member(Key::from_bytes(&[1, 2]).expect("two bytes fit"));
    let dynset = |set: &str| Expr::Dynset {
        set: set.into(),
        update: crate::ruleset::SetUpdate::Update,
        key: Register(0),
        data: None,
        timeout: None,
    };
    let cases: Vec<(&str, Op, i32)> = vec![
        ("owned table over a plain one", table(true, true), EOPNOTSUPP),
        ("rule in a missing chain", jump("nowhere", "a"), ENOENT),
        ("jump to a missing chain", jump("a", "nowhere"), ENOENT),
        ("jump to a base chain", jump("a", "nat"), EOPNOTSUPP),
        ("jump loop", jump("a", "a"), ELOOP),
        ("flush of a missing chain", Op::FlushChain("nowhere".into()), ENOENT),
        ("deletion of a missing chain", Op::DeleteChain("nowhere".into()), ENOENT),
        ("deletion of a chain jumped to", Op::DeleteChain("a".into()), EBUSY),
        ("base chain with another priority", base("nat", -99), EEXIST),
        ("set with another flag", renamed("members", |s| s.interval = true), EEXIST),
        ("set with another key", renamed("members", |s| s.key = vec![Field::Mark]), EEXIST),
        ("deletion of a set in use", Op::DeleteSet("members".into()), EBUSY),
        ("deletion of a missing set", Op::DeleteSet("nowhere".into()), ENOENT),
        ("flush of a missing set", Op::FlushSet("nowhere".into()), ENOENT),
        (
            "missing counter",
            Op::AddRule("a".into(), rule(vec![Expr::Count("nowhere".into())])),
            ENOENT,
        ),
        (
            "lookup in a missing set",
            Op::AddRule("a".into(), rule(lookup("x", None, false))),
            ENOENT,
        ),
        (
            "verdict from a plain set",
            Op::AddRule("a".into(), rule(lookup("members", None, true))),
            EINVAL,
        ),
        (
            "data from a plain set",
            Op::AddRule("a".into(), rule(lookup("members", Some(Register(0)), false))),
            EINVAL,
        ),
        (
            "update of a static set",
            Op::AddRule("a".into(), rule(vec![dynset("small")])),
            EOPNOTSUPP,
        ),
        ("element of a missing set", add("nowhere", one(1)), ENOENT),
        ("other data", add("data", vec![Element::data(key(1), key(8))]), EEXIST),
        ("no data", add("data", one(2)), EINVAL),
        ("data in a plain set", add("members", vec![Element::data(key(2), key(2))]), EINVAL),
        ("short key", add("members", vec![short]), EINVAL),
        ("range in a set of single keys", add("members", vec![range(2, 3)]), EINVAL),
        ("lifetime in a set without", add("members", vec![mortal]), EINVAL),
        ("verdict to a missing chain", add("verdicts", vec![to(1, "nowhere")]), ENOENT),
        ("overlap at the start", add("ranges", vec![range(5, 10)]), EEXIST),
        ("overlap at the end", add("ranges", vec![range(20, 25)]), EEXIST),
        ("overlap around", add("ranges", vec![range(25, 35)]), EEXIST),
        ("same start, other end", add("ranges", vec![range(10, 19)]), EEXIST),
        ("too many", add("small", vec![Element::member(key(2)), Element::member(key(3))]), ENFILE),
        ("deletion of a missing element", delete("members", one(7)), ENOENT),
        ("deletion of a range with another end", delete("ranges", vec![range(10, 19)]), ENOENT),
    ];
    for (name, op, errno) in cases {
        let mut ruleset = fixture();
        let before = ruleset.clone();
        let result = apply(&mut ruleset, &transaction(vec![op]));
        assert_eq!(result.map_err(|r| r.errno), Err(errno), "{name}");
        assert_eq!(ruleset, before, "{name}: nothing changes");
    }
}

#[test]
fn takes_what_the_kernel_takes() {
    let owned_again = |name: &str| {
        Op::AddSet(Set { comment: Some("other".into()), ..Set::plain(name, vec![Field::Ipv4Addr]) })
    };
    let cases: Vec<(&str, Vec<Op>)> = vec![
        ("equal element", vec![add("data", vec![Element::data(key(1), key(9))])]),
        ("equal range", vec![add("ranges", vec![range(10, 20)])]),
        ("range beside ranges", vec![add("ranges", vec![range(21, 29)])]),
        ("set with another comment", vec![owned_again("members")]),
        ("equal chain", vec![chain("a"), base("nat", -100)]),
        ("equal table", vec![table(false, false)]),
        (
            "swap of an element",
            vec![
                delete("data", vec![Element::member(key(1))]),
                add("data", vec![Element::data(key(1), key(8))]),
            ],
        ),
        (
            "swap in a full set",
            vec![
                add("small", vec![Element::member(key(2))]),
                delete("small", vec![Element::member(key(1))]),
                add("small", vec![Element::member(key(3))]),
            ],
        ),
        (
            "chain after the jump to it",
            vec![Op::FlushChain("nat".into()), Op::DeleteChain("a".into())],
        ),
        (
            "set after the rule that looks it up",
            vec![Op::FlushChain("a".into()), Op::DeleteSet("members".into())],
        ),
        ("owned table in place of a plain one", vec![Op::DeleteTable, table(true, true)]),
    ];
    for (name, ops) in cases {
        assert_eq!(apply(&mut fixture(), &transaction(ops)), Ok(()), "{name}");
    }
}

#[test]
fn a_deleted_chain_takes_its_rules_with_it() {
    let mut ruleset = fixture();
    let ops = vec![jump("b", "a"), Op::DeleteChain("b".into()), chain("b")];
    apply(&mut ruleset, &transaction(ops)).expect("nothing refers to b");
    assert_eq!(ruleset.chains["b"].1, vec![]);
}

#[test]
fn verdict_elements_hold_their_chain() {
    let mut ruleset = fixture();
    apply(&mut ruleset, &transaction(vec![add("verdicts", vec![to(1, "b")])])).expect("b exists");
    let deletion = transaction(vec![Op::DeleteChain("b".into())]);
    assert_eq!(apply(&mut ruleset, &deletion).map_err(|r| r.errno), Err(EBUSY));
    let after_element =
        transaction(vec![delete("verdicts", vec![to(1, "b")]), Op::DeleteChain("b".into())]);
    assert_eq!(apply(&mut ruleset, &after_element), Ok(()));
}

#[test]
fn loops_are_found_through_verdict_maps() {
    let mut ruleset = fixture();
    let before = ruleset.clone();
    let ops = vec![
        Op::AddRule("b".into(), rule(lookup("verdicts", None, true))),
        add("verdicts", vec![to(1, "a")]),
        jump("a", "b"),
    ];
    let rejection = apply(&mut ruleset, &transaction(ops)).expect_err("a jumps to b and b to a");
    assert_eq!((rejection.op, rejection.errno), (None, ELOOP));
    assert_eq!(ruleset, before);
}

#[test]
fn an_orphan_can_be_owned_again() {
    let mut ruleset = fixture();
    ruleset.table =
        Some(Table { comment: Some("v1".into()), owner: Ownership::Nobody, persist: true });
    let other = Table { comment: Some("v2".into()), owner: Ownership::Ours, persist: true };
    let ops = vec![Op::AddTable(other), jump("nowhere", "a")];
    apply(&mut ruleset, &transaction(ops)).expect_err("the chain is missing");
    assert!(!ruleset.table.as_ref().is_some_and(|t| t.owner == Ownership::Ours), "taken back");

    apply(&mut ruleset, &transaction(vec![table(true, true)])).expect("an orphan");
    let comment = Some("v1".into());
    assert_eq!(ruleset.table, Some(Table { comment, owner: Ownership::Ours, persist: true }));
}

#[test]
fn everything_needs_a_table() {
    let mut ruleset = Ruleset::empty(Family::V4);
    for op in [Op::DeleteTable, chain("a"), sets().remove(0), add("members", vec![])] {
        let result = apply(&mut ruleset, &transaction(vec![op.clone()]));
        assert_eq!(result.map_err(|r| r.errno), Err(ENOENT), "{op:?}");
    }
}

#[test]
fn every_kind_of_change_is_taken_back() {
    let mut ruleset = fixture();
    let before = ruleset.clone();
    let mut ops = vec![
        add("members", vec![Element::member(key(2))]),
        delete("data", vec![Element::member(key(1))]),
        chain("c"),
        Op::AddCounter("refused".into()),
        Op::AddRule("c".into(), rule(vec![Expr::Count("refused".into())])),
        jump("c", "a"),
        Op::FlushChain("a".into()),
        Op::FlushSet("ranges".into()),
        Op::DeleteSet("small".into()),
        Op::DeleteChain("b".into()),
        Op::DeleteTable,
        table(true, true),
    ];
    ops.extend(sets());
    ops.push(add("data", vec![Element::data(key(1), key(2)), Element::data(key(1), key(3))]));
    let last = ops.len() - 1;
    let rejection = apply(&mut ruleset, &transaction(ops)).expect_err("one key, two data");
    let expected = Rejection {
        op: Some(last),
        element: Some(1),
        object: "add element data".into(),
        errno: EEXIST,
    };
    assert_eq!(rejection, expected);
    assert_eq!(ruleset, before);
}
