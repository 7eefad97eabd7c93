use std::time::Instant;

use super::*;
use crate::model::{Family, Protocol};
use crate::program::rule::{CtState, Part, RuleBuilder, rule};
use crate::ruleset::{
    Chain, ChainType, Element, Expr, Field, Hooked, Key, Lifetime, Op, Ownership, Rule, Set,
    SetKind, Table, Transaction, apply,
};

const FRONTEND: [Part; 3] = [Part::Daddr, Part::L4Proto, Part::Dport];
const FIELDS: [Field; 3] = [Field::Ipv4Addr, Field::InetProto, Field::InetService];

fn v4() -> RuleBuilder {
    rule(Family::V4)
}

fn endpoint(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

fn tuple(text: &str) -> Key {
    let to = endpoint(text);
    Key::new().address(to.ip()).protocol(Protocol::Tcp).port(to.port())
}

fn backend(text: &str) -> Key {
    let to = endpoint(text);
    Key::new().address(to.ip()).port(to.port())
}

fn chain(name: &str, rules: Vec<Rule>) -> Vec<Op> {
    hooked(name, None, rules)
}

fn hooked(name: &str, hooked: Option<Hooked>, rules: Vec<Rule>) -> Vec<Op> {
    let name = Name::from(name);
    let chain = Op::AddChain(Chain { name: name.clone(), hooked, comment: None });
    let rules = rules.into_iter().map(|rule| Op::AddRule(name.clone(), rule));
    std::iter::once(chain).chain(rules).collect()
}

fn base(name: &str, kind: ChainType, hook: Hook, priority: i32, rules: Vec<Rule>) -> Vec<Op> {
    hooked(name, Some(Hooked { kind, hook, priority }), rules)
}

fn set(name: &str, kind: SetKind, key: &[Field], elements: Vec<Element>) -> Vec<Op> {
    let set = Set { kind, ..Set::plain(name, key.to_vec()) };
    vec![Op::AddSet(set), Op::AddElements(name.into(), elements)]
}

fn data() -> SetKind {
    SetKind::Map(vec![Field::Ipv4Addr, Field::InetService])
}

fn table(parts: Vec<Vec<Op>>) -> Ruleset {
    let mut ruleset = Ruleset::empty(Family::V4);
    let mut ops =
        vec![Op::AddTable(Table { comment: None, owner: Ownership::Nobody, persist: false })];
    ops.extend(parts.into_iter().flatten());
    apply(&mut ruleset, &Transaction { family: Family::V4, ops }).expect("a sound table");
    ruleset
}

fn dial(to: &str, input: Option<&str>) -> Packet {
    Packet {
        source: endpoint("10.244.0.9:40000"),
        destination: endpoint(to),
        protocol: 6,
        input: input.map(str::to_owned),
        state: FlowState::New,
    }
}

fn node() -> Environment {
    Environment { local_addresses: [endpoint("192.168.0.1:0").ip()].into() }
}

fn outcomes(flow: &Flow) -> Vec<(Outcome, bool)> {
    flow.branches.iter().map(|branch| (branch.outcome, branch.masquerade)).collect()
}

fn nat_prerouting(rules: Vec<Rule>) -> Vec<Op> {
    base("nat", ChainType::Nat, Hook::Prerouting, -100, rules)
}

/// What the rules of one prerouting chain make of a packet.
fn filtered(rules: Vec<Rule>, others: Vec<Vec<Op>>, packet: &Packet) -> Outcome {
    let mut parts = others;
    parts.push(base("filter", ChainType::Filter, Hook::Prerouting, 0, rules));
    walk_flow(&table(parts), packet, &node()).branches[0].outcome
}

#[test]
fn chains_go_on_as_in_the_kernel() {
    let drops = |builder: RuleBuilder| builder.drops();
    let others = || {
        vec![
            chain("empty", vec![]),
            chain("returns", vec![v4().returns(), drops(v4())]),
            chain("drops", vec![drops(v4())]),
            chain("jumps", vec![v4().jump("returns"), drops(v4())]),
            chain("goes", vec![v4().goto("returns"), drops(v4())]),
        ]
    };
    let accept = Rule { exprs: vec![Expr::Verdict(Verdict::Accept)], comment: None };
    let cases = [
        ("no rule", vec![], Outcome::Untouched),
        ("jump comes back", vec![v4().jump("empty"), drops(v4())], Outcome::Drop),
        ("goto does not", vec![v4().goto("empty"), drops(v4())], Outcome::Untouched),
        ("return comes back", vec![v4().jump("returns"), drops(v4())], Outcome::Drop),
        (
            "goto returns where jump left",
            vec![v4().jump("goes"), accept.clone()],
            Outcome::Untouched,
        ),
        ("drop in a nested chain", vec![v4().jump("drops"), accept.clone()], Outcome::Drop),
        ("rule after a jump", vec![v4().jump("jumps"), accept.clone()], Outcome::Drop),
        ("accept ends the base chain", vec![accept, drops(v4())], Outcome::Untouched),
        ("return ends the base chain", vec![v4().returns(), drops(v4())], Outcome::Untouched),
    ];
    for (name, rules, outcome) in cases {
        let packet = dial("10.96.0.1:80", Some("veth1"));
        assert_eq!(filtered(rules, others(), &packet), outcome, "{name}");
    }
}

#[test]
fn matches_read_the_packet() {
    use crate::program::LocalPods::{Cidr, Interface, InterfacePrefix};
    let net = |text: &str| text.parse().expect("a network");
    let pod = |op, detector| v4().pod(op, &detector).expect("a detector");
    use crate::ruleset::CmpOp::{Eq, Neq};
    let cases = [
        ("source in the network", pod(Eq, Cidr(net("10.244.0.0/16"))), true),
        ("source outside", pod(Eq, Cidr(net("10.245.0.0/16"))), false),
        ("source not in an odd network", pod(Neq, Cidr(net("10.128.0.0/11"))), true),
        ("interface", pod(Eq, Interface("veth1".into())), true),
        ("start of the interface is not it", pod(Eq, Interface("veth".into())), false),
        ("interface prefix", pod(Eq, InterfacePrefix("veth".into())), true),
        ("other interface prefix", pod(Neq, InterfacePrefix("cali".into())), true),
        ("new flow", v4().ct_state(CtState::New), true),
        ("not invalid", v4().ct_state(CtState::Invalid), false),
        ("not translated", v4().ct_status_dnat(), false),
        ("not from the host", v4().from_host(), false),
        ("to the host", v4().to_host(), true),
        ("tcp", v4().tcp(), true),
        ("range", v4().is_in(&[Part::Saddr], "ranges"), true),
        ("outside the range", v4().is_in(&[Part::Daddr], "ranges"), false),
        ("inverted", v4().is_not_in(&[Part::Daddr], "ranges"), true),
        ("lone port", v4().is_in(&[Part::Dport], "ports"), true),
        ("dialled port", v4().is_in(&[Part::OriginalDport], "ports"), true),
    ];
    let address = |text: &str| Key::new().address(endpoint(text).ip());
    let range = Element {
        last: Some(address("10.244.0.99:0")),
        ..Element::member(address("10.244.0.0:0"))
    };
    let ranges = Set { interval: true, ..Set::plain("ranges", vec![Field::Ipv4Addr]) };
    let port = Key::from_bytes(&80u16.to_be_bytes()).expect("two bytes");
    for (name, builder, matches) in cases {
        let others = vec![
            vec![Op::AddSet(ranges.clone()), Op::AddElements("ranges".into(), vec![range.clone()])],
            set("ports", SetKind::Set, &[Field::InetService], vec![Element::member(port)]),
        ];
        let expected = if matches { Outcome::Drop } else { Outcome::Untouched };
        let packet = dial("192.168.0.1:80", Some("veth1"));
        assert_eq!(filtered(vec![builder.drops()], others, &packet), expected, "{name}");
    }
}

fn balanced(slots: u32, filled: u32, draws: usize) -> Ruleset {
    let elements = (0..filled)
        .map(|slot| {
            let to = format!("10.244.{}.{}:8080", slot / 256, slot % 256);
            Element::data(tuple("10.96.0.1:80").slot(slot), backend(&to))
        })
        .collect();
    let key = [&FRONTEND[..], &[Part::Slot(slots)]].concat();
    let last = [&FRONTEND[..], &[Part::Slot(slots / 4)]].concat();
    let mut rules: Vec<Rule> = (0..draws).map(|_| v4().dnat(&key, "endpoints")).collect();
    rules.push(v4().dnat(&last, "endpoints"));
    table(vec![
        set("endpoints", data(), &[&FIELDS[..], &[Field::Mark]].concat(), elements),
        nat_prerouting(rules),
    ])
}

// B-140: the draws of a class spread flows evenly, within the bound the program promises.
#[test]
fn draws_split_the_flow() {
    for (slots, filled) in [(4, 2), (4, 3), (4, 4), (16, 5), (16, 16), (64, 17), (1024, 300)] {
        let ruleset = balanced(slots, filled, 16);
        let flow = walk_flow(&ruleset, &dial("10.96.0.1:80", Some("veth1")), &node());
        assert_eq!(flow.branches.len(), filled as usize, "{slots} slots, {filled} filled");
        let sum: f64 = flow.branches.iter().map(|branch| branch.probability).sum();
        assert!((sum - 1.0).abs() < 1e-9, "{slots} slots, {filled} filled: {sum}");
        let fair = 1.0 / f64::from(filled);
        for branch in &flow.branches {
            // One flow in a hundred may miss 16 times; the first quarter of the slots takes it.
            let excess = 0.75_f64.powi(16) * 4.0 / f64::from(slots);
            let off = (branch.probability - fair).abs();
            assert!(off <= excess + 1e-9, "{slots} slots, {filled} filled: off by {off}");
        }
    }
}

#[test]
fn a_draw_that_misses_goes_on() {
    let ruleset = balanced(4, 1, 2);
    let flow = walk_flow(&ruleset, &dial("10.96.0.1:80", Some("veth1")), &node());
    assert_eq!(flow.branches.len(), 1, "both draws and the last rule lead to one endpoint");
    assert!((flow.branches[0].probability - 1.0).abs() < 1e-12);
    let steps = flow.branches[0].steps.iter().map(|step| {
        let lookup = &step.lookups[0];
        (step.repeats, lookup.key.as_str(), lookup.found.as_deref(), &step.effect)
    });
    let hit = Effect::Dnat(endpoint("10.244.0.0:8080"));
    let steps: Vec<_> = steps.collect();
    assert_eq!(
        steps,
        [
            (2, "10.96.0.1 . tcp . 80 . random mod 4", None, &Effect::NoMatch),
            (1, "10.96.0.1 . tcp . 80 . random mod 1", Some("10.244.0.0 . 8080"), &hit),
        ],
        "the likeliest way: 9 of 16 flows miss twice"
    );
}

#[test]
fn a_thousand_endpoints_take_moments() {
    let ruleset = balanced(1024, 1000, 16);
    let start = Instant::now();
    let flow = walk_flow(&ruleset, &dial("10.96.0.1:80", Some("veth1")), &node());
    assert_eq!(flow.branches.len(), 1000);
    assert!(start.elapsed().as_secs() < 5, "{:?}: draws are not enumerated", start.elapsed());
}

/// Which hooks see what: each hook has a chain that drops its own destination port.
#[test]
fn hooks_follow_the_route() {
    use Hook::{Forward, Input, Output, Postrouting, Prerouting};
    let cases = [
        ("pod to pod", "10.244.0.7", Some("veth1"), vec![Prerouting, Forward, Postrouting]),
        ("pod to host", "192.168.0.1", Some("veth1"), vec![Prerouting, Input]),
        ("host to pod", "10.244.0.7", None, vec![Output, Postrouting]),
        ("host to host", "192.168.0.1", None, vec![Output, Postrouting, Prerouting, Input]),
        ("host to loopback", "127.0.0.1", None, vec![Output, Postrouting, Prerouting, Input]),
    ];
    let hooks = [Prerouting, Input, Forward, Output, Postrouting];
    let chains = hooks.map(|hook| {
        let any = v4().is_not_in(&[Part::Daddr], "none").done();
        base(hook.nft(), ChainType::Filter, hook, 0, vec![any])
    });
    let mut parts = vec![set("none", SetKind::Set, &[Field::Ipv4Addr], vec![])];
    parts.extend(chains);
    let ruleset = table(parts);
    for (name, to, input, expected) in cases {
        let flow = walk_flow(&ruleset, &dial(&format!("{to}:80"), input), &node());
        let seen: Vec<Hook> = flow.branches[0].steps.iter().map(|step| step.hook).collect();
        assert_eq!(seen, expected, "{name}");
    }
}

fn translating() -> Ruleset {
    let dnat = || vec![v4().dnat(&FRONTEND, "endpoints")];
    let status = v4().ct_status_dnat().masquerade();
    table(vec![
        set(
            "endpoints",
            data(),
            &FIELDS,
            vec![
                Element::data(tuple("10.96.0.1:80"), backend("10.244.0.1:8080"))
                    .with_comment("shop/cart:http".into()),
                Element::data(tuple("10.96.0.2:80"), backend("192.168.0.1:9100")),
            ],
        ),
        set("blocked", SetKind::Set, &FIELDS, vec![Element::member(tuple("10.244.0.1:8080"))]),
        nat_prerouting(dnat()),
        base("nat-output", ChainType::Nat, Hook::Output, -100, dnat()),
        base("postrouting", ChainType::Nat, Hook::Postrouting, 100, vec![status]),
    ])
}

#[test]
fn translation_decides_the_route() {
    let ruleset = translating();
    let cases = [
        ("10.96.0.1:80", Some("veth1"), Outcome::Dnat(endpoint("10.244.0.1:8080")), true),
        ("10.96.0.1:80", None, Outcome::Dnat(endpoint("10.244.0.1:8080")), true),
        // Delivered here: postrouting never sees it.
        ("10.96.0.2:80", Some("veth1"), Outcome::Dnat(endpoint("192.168.0.1:9100")), false),
        ("10.96.0.3:80", Some("veth1"), Outcome::Untouched, false),
    ];
    for (to, input, outcome, masquerade) in cases {
        let flow = walk_flow(&ruleset, &dial(to, input), &node());
        assert_eq!(outcomes(&flow), [(outcome, masquerade)], "{to} from {input:?}");
    }
    let flow = walk_flow(&ruleset, &dial("10.96.0.1:80", Some("veth1")), &node());
    let lookup = &flow.branches[0].steps[0].lookups[0];
    assert_eq!(lookup.found.as_deref(), Some("10.244.0.1 . 8080"));
    assert_eq!(lookup.comment.as_deref(), Some("shop/cart:http"));
}

#[test]
fn established_flows_keep_their_translation() {
    let ruleset = translating();
    let before = endpoint("10.244.0.77:8080");
    for translated in [Some(before), None] {
        let state = FlowState::Established { translated };
        let packet = Packet { state, ..dial("10.96.0.1:80", Some("veth1")) };
        let flow = walk_flow(&ruleset, &packet, &node());
        let outcome = translated.map_or(Outcome::Untouched, Outcome::Dnat);
        assert_eq!(outcomes(&flow), [(outcome, false)], "nat chains do not see it");
        assert_eq!(flow.branches[0].steps, vec![]);
    }
}

// While a table is replaced, its nat hooks have two chains of it (`Chain::handover`).
#[test]
fn of_several_nat_chains_the_first_that_translates_decides() {
    let endpoints = |name: &str, entries: &[(&str, &str)]| {
        let element = |(to, by): &(&str, &str)| Element::data(tuple(to), backend(by));
        set(name, data(), &FIELDS, entries.iter().map(element).collect())
    };
    let first = [("10.96.0.1:80", "10.244.0.1:8080")];
    let second = [("10.96.0.2:80", "10.244.0.2:8080"), ("10.244.0.1:8080", "10.244.0.3:8080")];
    let dnat = |from: &str| vec![v4().dnat(&FRONTEND, from)];
    let later =
        |name: &str, hook, priority, rules| base(name, ChainType::Nat, hook, priority, rules);
    let masquerade = || vec![v4().ct_status_dnat().masquerade()];
    let ruleset = table(vec![
        endpoints("first", &first),
        endpoints("second", &second),
        nat_prerouting(dnat("first")),
        later("nat-later", Hook::Prerouting, -99, dnat("second")),
        later("postrouting", Hook::Postrouting, 100, masquerade()),
        later("postrouting-later", Hook::Postrouting, 101, masquerade()),
    ]);
    for (to, by) in [("10.96.0.1:80", "10.244.0.1:8080"), ("10.96.0.2:80", "10.244.0.2:8080")] {
        let flow = walk_flow(&ruleset, &dial(to, Some("veth1")), &node());
        assert_eq!(outcomes(&flow), [(Outcome::Dnat(endpoint(by)), true)], "{to}");
        let masqueraded = flow.branches[0].steps.iter().filter(|s| s.effect == Effect::Masquerade);
        assert_eq!(masqueraded.count(), 1, "{to}");
    }
}

#[test]
fn updates_are_told_and_not_made() {
    let clients = Set {
        kind: data(),
        dynamic: true,
        timeout: Some(600_000),
        ..Set::plain("clients", vec![Field::Ipv4Addr])
    };
    let known = Element {
        lifetime: Some(Lifetime { timeout: 600_000, expires: 1 }),
        ..Element::data(Key::new().address(endpoint("10.244.0.8:0").ip()), backend("10.244.0.1:1"))
    };
    let update = v4().update("clients", &[Part::Saddr], &[Part::Daddr, Part::Dport], 600_000);
    let ruleset = table(vec![
        vec![Op::AddSet(clients), Op::AddElements("clients".into(), vec![known])],
        base("input", ChainType::Filter, Hook::Input, 0, vec![update]),
    ]);
    let flow = walk_flow(&ruleset, &dial("192.168.0.1:80", Some("veth1")), &node());
    let effect =
        Effect::Update { set: "clients".into(), element: "10.244.0.9 : 192.168.0.1 . 80".into() };
    assert_eq!(flow.branches[0].steps[0].effect, effect);
    assert_eq!(flow.branches[0].outcome, Outcome::Untouched);
}

#[test]
fn verdict_maps_lead_on() {
    let verdicts = vec![
        Element::verdict(tuple("10.96.0.1:80"), Verdict::Goto("refuse".into())),
        Element::verdict(tuple("10.96.0.2:80"), Verdict::Drop),
    ];
    let ruleset = table(vec![
        chain("refuse", vec![v4().tcp().reject(RejectKind::TcpReset)]),
        set("verdicts", SetKind::VerdictMap, &FIELDS, verdicts),
        base(
            "filter",
            ChainType::Filter,
            Hook::Prerouting,
            0,
            vec![v4().vmap(&FRONTEND, "verdicts")],
        ),
    ]);
    for (to, outcome) in [
        ("10.96.0.1:80", Outcome::Reject(RejectKind::TcpReset)),
        ("10.96.0.2:80", Outcome::Drop),
        ("10.96.0.3:80", Outcome::Untouched),
    ] {
        let flow = walk_flow(&ruleset, &dial(to, Some("veth1")), &node());
        assert_eq!(outcomes(&flow), [(outcome, false)], "{to}");
    }
}

#[test]
fn what_cannot_be_followed_is_said() {
    let unknown = Rule {
        exprs: vec![Expr::Unknown("log".into()), Expr::Verdict(Verdict::Drop)],
        comment: None,
    };
    let ruleset =
        table(vec![base("filter", ChainType::Filter, Hook::Prerouting, 0, vec![unknown])]);
    let flow = walk_flow(&ruleset, &dial("10.96.0.1:80", Some("veth1")), &node());
    assert_eq!(flow.branches[0].steps[0].effect, Effect::NotFollowed);
    assert_eq!(flow.branches[0].outcome, Outcome::Untouched);
}
