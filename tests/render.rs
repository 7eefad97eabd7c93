//! The renderer against stock nft, in network namespaces of their own: text of ours that nft loads,
//! and tables that we program over netlink, must be listed as the text we render.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

#[path = "golden/listing.rs"]
mod listing;
mod netns;

use std::collections::BTreeMap;

use kubeweir::kernel::{Kernel, Op, Transaction};
use kubeweir::model::{Family, PerFamily, Protocol};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::program::{
    Class, Extension, FrontendSpace, ListScope, LocalPods, NodePortMatch, RuleOptions, program,
};
use kubeweir::ruleset::{
    Chain, ChainType, CmpOp, CtDirection, CtKey, Element, Expr, Field, Hook, Hooked, Key, MetaKey,
    Ownership, PayloadBase, Register, Rule, Ruleset, Set, SetKind, SetUpdate, Table, Verdict,
    apply, render,
};
use listing::sorted_blocks;
use netns::{in_netns, run};

/// Loads a table's text and lists the table.
fn listed_by_nft(family: Family, text: &str) -> String {
    in_netns(|| {
        run(&["nft", "-f", "-"], text);
        run(&["nft", "list", "table", family.nft(), "kube-proxy"], "")
    })
}

fn assert_listed_alike(name: &str, ruleset: &Ruleset) {
    let ours = render(ruleset);
    assert_alike(name, &ours, &listed_by_nft(ruleset.family, &ours));
}

fn assert_alike(name: &str, ours: &str, nfts: &str) {
    let (ours, nfts) = (sorted_blocks(ours), sorted_blocks(nfts));
    for (ours, nfts) in ours.iter().zip(&nfts) {
        assert_eq!(ours, nfts, "{name}");
    }
    assert_eq!(ours.len(), nfts.len(), "{name}");
}

fn built(family: Family, ops: Vec<Op>) -> Ruleset {
    let mut ruleset = Ruleset::empty(family);
    apply(&mut ruleset, &Transaction { family, ops }).expect("a sound table");
    ruleset
}

fn chain_ops(chains: Vec<(Chain, Vec<Rule>)>) -> Vec<Op> {
    let declared: Vec<Op> = chains.iter().map(|(chain, _)| Op::AddChain(chain.clone())).collect();
    let rules = chains.into_iter().flat_map(|(chain, rules)| {
        rules.into_iter().map(move |rule| Op::AddRule(chain.name.clone(), rule))
    });
    declared.into_iter().chain(rules).collect()
}

/// nft 1.0.6 prints these, but does not read them: two in a concatenation, and the empty name of no
/// interface.
fn nft_reads(rule: &Rule) -> bool {
    let unreadable = |e: &Expr| match e {
        Expr::Ct { key: CtKey::ProtoDst, .. } | Expr::Random { .. } => true,
        Expr::Cmp { data, .. } => data.as_bytes() == [0; 16],
        _ => false,
    };
    !rule.exprs.iter().any(unreadable)
}

fn whole_program(family: Family, options: &RuleOptions) -> Vec<Op> {
    let program = program(family, options);
    let mut ops = vec![Op::AddTable(program.table(false))];
    ops.extend(program.counters.iter().cloned().map(Op::AddCounter));
    ops.extend(program.sets.iter().cloned().map(Op::AddSet));
    let mut chains = program.chains.clone();
    chains.extend(program.base_chains.clone());
    let class = Extension::Class(FrontendSpace::Services, ListScope::Cluster, Class::FOUR);
    let mut dispatch = Vec::new();
    let mut rewritten = BTreeMap::new();
    let extensions: Vec<Extension> = [class].into_iter().chain(Extension::FEATURES).collect();
    for extension in &extensions {
        let objects = extension.objects(family, program.addresses);
        for (chain, _) in objects.before {
            let rules = program.rules_after(&chain, family, &extensions);
            rewritten.insert(chain, rules);
        }
        chains.extend(objects.base_chains);
        ops.extend(objects.sets.into_iter().map(Op::AddSet));
        chains.extend(objects.chain);
        dispatch.extend(objects.dispatch);
    }
    for (chain, rules) in &mut chains {
        if let Some(more) = rewritten.remove(&chain.name) {
            *rules = more;
        }
    }
    let mut ops = [ops, chain_ops(chains)].concat();
    ops.extend(dispatch.into_iter().map(|(chain, rule)| Op::AddRule(chain, rule)));
    ops
}

#[test]
fn the_program_is_listed_as_rendered() {
    let pods = |v4: &str, v6: &str| PerFamily {
        v4: LocalPods::Cidr(v4.parse().expect("a network")),
        v6: LocalPods::Cidr(v6.parse().expect("a network")),
    };
    let plain = RuleOptions::nftables();
    let any_local = PerFamily::from_fn(|_| NodePortMatch::AnyLocal);
    let interface = |pods: LocalPods| PerFamily::from_fn(move |_| pods.clone());
    let cases = [
        ("plain", plain.clone()),
        (
            "pods by network",
            RuleOptions { local_pods: pods("10.20.0.0/16", "fd20::/56"), ..plain.clone() },
        ),
        (
            "pods by odd network",
            RuleOptions { local_pods: pods("10.20.0.0/13", "fd20::/53"), ..plain.clone() },
        ),
        (
            "pods by interface",
            RuleOptions {
                local_pods: interface(LocalPods::Interface("cni0".into())),
                ..plain.clone()
            },
        ),
        (
            "pods by prefix",
            RuleOptions {
                local_pods: interface(LocalPods::InterfacePrefix("veth".into())),
                ..plain.clone()
            },
        ),
        ("any local address", RuleOptions { node_ports: any_local.clone(), ..plain.clone() }),
        (
            "iptables mode",
            RuleOptions {
                masquerade_all: true,
                guard_cluster_ips: false,
                drop_invalid: true,
                node_ports: any_local,
                localhost_node_ports: true,
                service_counters: true,
                ..plain.clone()
            },
        ),
    ];
    for (name, options) in cases {
        for family in Family::BOTH {
            let mut ops = whole_program(family, &options);
            ops.retain(|op| !matches!(op, Op::AddRule(_, rule) if !nft_reads(rule)));
            assert_listed_alike(&format!("{name}, {family}"), &built(family, ops));
        }
    }
}

fn address(family: Family, last: u8) -> std::net::IpAddr {
    match family {
        Family::V4 => std::net::Ipv4Addr::new(10, 0, 0, last).into(),
        Family::V6 => std::net::Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
    }
}

fn frontend(family: Family, last: u8, protocol: Protocol, port: u16) -> Key {
    Key::new().address(address(family, last)).protocol(protocol).port(port)
}

fn frontends(family: Family) -> Vec<Field> {
    vec![Field::address(family), Field::InetProto, Field::InetService]
}

fn set_of(name: &str, key: Vec<Field>, elements: Vec<Element>) -> Vec<Op> {
    vec![Op::AddSet(Set::plain(name, key)), Op::AddElements(name.into(), elements)]
}

/// A key of one field has no padding.
fn lone(bytes: &[u8]) -> Element {
    Element::member(Key::from_bytes(bytes).expect("fits"))
}

fn sets(family: Family) -> Vec<Op> {
    let members =
        |count: u8| (1..=count).map(|n| Element::member(Key::new().address(address(family, n))));
    let ports = (1..=9u16).rev().map(|n| lone(&(n * 100).to_be_bytes()));
    let marks = (0..7).map(|n| Element::member(Key::new().slot(n * 300)));
    let protocols = [1, 6, 17, 58, 132, 253].map(|n| lone(&[n]));
    let comment = |element: Element| element.with_comment("default/web:http".into());
    let tuples = (1..=3u8).flat_map(|n| {
        Protocol::ALL.map(|p| comment(Element::member(frontend(family, n, p, 256 - u16::from(n)))))
    });
    let mut ops = set_of("members", vec![Field::address(family)], members(5).collect());
    ops.extend(set_of("one", vec![Field::address(family)], members(1).map(comment).collect()));
    ops.extend(set_of("none", vec![Field::address(family)], vec![]));
    ops.extend(set_of("ports", vec![Field::InetService], ports.collect()));
    ops.extend(set_of("marks", vec![Field::Mark], marks.collect()));
    ops.extend(set_of("protocols", vec![Field::InetProto], protocols.to_vec()));
    ops.extend(set_of("tuples", frontends(family), tuples.collect()));
    ops
}

fn maps(family: Family) -> Vec<Op> {
    let backend = vec![Field::address(family), Field::InetService];
    let to = |n: u8| Key::new().address(address(family, n)).port(8080);
    let key = |n: u8| frontend(family, n, Protocol::Tcp, 80);
    let mut slots = frontends(family);
    slots.push(Field::Mark);
    let map = |name: &str, key: Vec<Field>| Set {
        kind: SetKind::Map(backend.clone()),
        ..Set::plain(name, key)
    };
    let verdict = |n: u8, verdict: Verdict| Element::verdict(key(n), verdict);
    let affinity = Set {
        dynamic: true,
        timeout: Some(10_800_000),
        size: Some(1000),
        comment: Some("clients".into()),
        ..map("affinity", vec![Field::address(family)])
    };
    vec![
        Op::AddSet(map("single", frontends(family))),
        Op::AddElements(
            "single".into(),
            vec![Element::data(key(1), to(9)).with_comment("a/b".into())],
        ),
        Op::AddSet(map("slots", slots)),
        Op::AddElements(
            "slots".into(),
            (0..12).map(|n| Element::data(key(1).slot(n), to(n as u8))).collect(),
        ),
        Op::AddSet(affinity),
        Op::AddSet(Set { timeout: Some(93_784_000), ..map("mortal", vec![Field::Mark]) }),
        Op::AddChain(Chain {
            name: "a".into(),
            hooked: None,
            comment: Some("for verdicts".into()),
        }),
        Op::AddSet(Set { kind: SetKind::VerdictMap, ..Set::plain("verdicts", frontends(family)) }),
        Op::AddElements(
            "verdicts".into(),
            vec![
                verdict(1, Verdict::Goto("a".into())).with_comment("a/b".into()),
                verdict(2, Verdict::Jump("a".into())),
                verdict(3, Verdict::Drop),
                verdict(4, Verdict::Return),
                verdict(5, Verdict::Accept),
            ],
        ),
    ]
}

fn ranges(family: Family) -> Vec<Op> {
    let range = |first: &str, last: &str| Element {
        last: Some(Key::new().address(last.parse().expect("an address"))),
        ..Element::member(Key::new().address(first.parse().expect("an address")))
    };
    let elements = match family {
        Family::V4 => vec![
            range("10.0.0.0", "10.255.255.255"),
            range("11.0.0.1", "11.0.0.7").with_comment("odd".into()),
            range("12.0.0.1", "12.0.0.1"),
            range("224.0.0.0", "255.255.255.255"),
        ],
        Family::V6 => vec![
            range("fd00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            range("2001:db8::1", "2001:db8::7").with_comment("odd".into()),
            range("::1", "::1"),
        ],
    };
    let set = Set { interval: true, ..Set::plain("ranges", vec![Field::address(family)]) };
    vec![Op::AddSet(set), Op::AddElements("ranges".into(), elements)]
}

#[test]
fn sets_and_maps_are_listed_as_rendered() {
    for family in Family::BOTH {
        let table =
            Table { comment: Some("rules".into()), owner: Ownership::Nobody, persist: false };
        let ops = [vec![Op::AddTable(table)], sets(family), maps(family), ranges(family)].concat();
        assert_listed_alike(&format!("{family}"), &built(family, ops));
    }
}

#[test]
fn priorities_are_listed_as_rendered() {
    let priorities = [
        -310, -300, -150, -111, -110, -101, -100, -99, -90, -89, -1, 0, 1, 50, 61, 89, 90, 100,
        110, 111,
    ];
    let hooks = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];
    let mut ops =
        vec![Op::AddTable(Table { comment: None, owner: Ownership::Nobody, persist: false })];
    for hook in hooks {
        for priority in priorities {
            let name = format!("{}{}", hook.nft(), priority + 1000);
            let hooked = Some(Hooked { kind: ChainType::Filter, hook, priority });
            ops.push(Op::AddChain(Chain { name: name.into(), hooked, comment: None }));
        }
    }
    assert_listed_alike("priorities", &built(Family::V4, ops));
}

fn load(offset: u32, len: u32, dst: u8) -> Expr {
    Expr::Payload { base: PayloadBase::Network, offset, len, dst: Register(dst) }
}

fn compare(op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp { op, src: Register(0), data: Key::from_bytes(data).expect("fits") }
}

fn dport(dst: u8) -> Expr {
    Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dst: Register(dst) }
}

/// Shapes of IPv4 rules that the program does not have, or only in concatenations nft cannot read.
fn other_rules() -> Vec<Vec<Expr>> {
    let bits = |key: CtKey, mask: u32, op: CmpOp| {
        let (src, xor) = (Register(0), Key::new().slot(0));
        vec![
            Expr::Ct { key, direction: None, dst: src },
            Expr::Bitwise { src, dst: src, mask: Key::new().slot(mask), xor },
            Expr::Cmp { op, src, data: Key::new().slot(0) },
            Expr::Verdict(Verdict::Accept),
        ]
    };
    let l4proto = || Expr::Meta { key: MetaKey::L4Proto, dst: Register(0) };
    let original = |key| Expr::Ct { key, direction: Some(CtDirection::Original), dst: Register(0) };
    let in_set = |inverted| Expr::Lookup {
        set: "members".into(),
        src: Register(0),
        dst: None,
        verdict: false,
        inverted,
    };
    vec![
        bits(CtKey::State, 8, CmpOp::Neq),
        bits(CtKey::State, 8, CmpOp::Eq),
        bits(CtKey::State, 6, CmpOp::Neq),
        bits(CtKey::Status, 0x20, CmpOp::Neq),
        bits(CtKey::Status, 0x30, CmpOp::Eq),
        vec![load(12, 1, 0), compare(CmpOp::Eq, &[10]), Expr::Verdict(Verdict::Drop)],
        vec![load(16, 3, 0), compare(CmpOp::Neq, &[10, 1, 2]), Expr::Verdict(Verdict::Drop)],
        vec![load(16, 4, 0), compare(CmpOp::Neq, &[10, 1, 2, 3]), Expr::Verdict(Verdict::Drop)],
        vec![load(9, 1, 0), compare(CmpOp::Eq, &[17]), Expr::Verdict(Verdict::Drop)],
        vec![l4proto(), compare(CmpOp::Eq, &[6]), Expr::Counter { packets: 3, bytes: 9 }],
        vec![l4proto(), compare(CmpOp::Neq, &[1]), Expr::Verdict(Verdict::Return)],
        vec![
            l4proto(),
            compare(CmpOp::Eq, &[17]),
            dport(0),
            compare(CmpOp::Eq, &[0, 53]),
            Expr::Verdict(Verdict::Accept),
        ],
        vec![dport(0), compare(CmpOp::Eq, &[0, 53]), Expr::Verdict(Verdict::Accept)],
        vec![original(CtKey::DstIp), compare(CmpOp::Eq, &[10, 0, 0, 1]), Expr::Masquerade],
        vec![original(CtKey::SrcIp), in_set(false), Expr::Masquerade],
        vec![original(CtKey::DstIp), in_set(true), Expr::Masquerade],
        vec![load(12, 4, 0), in_set(true), Expr::Verdict(Verdict::Drop)],
        vec![
            load(12, 4, 0),
            load(16, 4, 1),
            dport(2),
            Expr::Dynset {
                set: "affinity".into(),
                update: SetUpdate::Update,
                key: Register(0),
                data: Some(Register(1)),
                timeout: Some(5_400_000),
            },
        ],
    ]
}

#[test]
fn other_rules_are_listed_as_rendered() {
    let family = Family::V4;
    let hooked = Some(Hooked { kind: ChainType::Nat, hook: Hook::Postrouting, priority: 100 });
    let table = Table { comment: None, owner: Ownership::Nobody, persist: false };
    let mut ops = [vec![Op::AddTable(table)], sets(family), maps(family)].concat();
    ops.push(Op::AddChain(Chain { name: "rules".into(), hooked, comment: None }));
    for exprs in other_rules() {
        let comment = Some("why".into());
        ops.push(Op::AddRule("rules".into(), Rule { exprs, comment }));
    }
    assert_listed_alike("other rules", &built(family, ops));
}

/// What nft 1.0.6 cannot read it still has to print: programmed over netlink, dumped and rendered.
#[test]
fn a_programmed_table_is_listed_as_rendered() {
    for family in Family::BOTH {
        let options = RuleOptions { service_counters: true, ..RuleOptions::nftables() };
        let mut ops = whole_program(family, &options);
        ops.extend(sets(family));
        ops.extend(maps(family));
        ops.extend(ranges(family));
        let (dumped, nfts) = in_netns(|| {
            let mut kernel = NetlinkKernel::open().expect("a socket");
            kernel.commit(&Transaction { family, ops }).expect("a sound table");
            let dumped = kernel.dump(family).expect("a table");
            (dumped, run(&["nft", "list", "table", family.nft(), "kube-proxy"], ""))
        });
        assert_alike(&format!("{family}"), &render(&dumped), &nfts);
    }
}
