//! The shapes the program uses: expressions, sets, and how nft prints them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use kubeweir::kernel::Op;
use kubeweir::model::{Family, Protocol};
use kubeweir::ruleset::{
    Chain, ChainType, CmpOp, CtDirection, CtKey, Element, Expr, FibResult, Field, Hook, Hooked,
    Key, MetaKey, Name, Ownership, PayloadBase, Register, RejectKind, Rule, Set, SetKind,
    SetUpdate, Table, Verdict,
};

pub fn reg(word: u8) -> Register {
    Register(word)
}

pub fn bytes(bytes: &[u8]) -> Key {
    Key::from_bytes(bytes).unwrap()
}

pub fn table() -> Op {
    Op::AddTable(Table { comment: None, owner: Ownership::Nobody, persist: false })
}

pub fn chain(name: &str) -> Op {
    Op::AddChain(Chain { name: name.into(), hooked: None, comment: None })
}

pub fn base_chain(name: &str, kind: ChainType, hook: Hook, priority: i32) -> Op {
    let hooked = Some(Hooked { kind, hook, priority });
    Op::AddChain(Chain { name: name.into(), hooked, comment: None })
}

pub fn rule(chain: &str, exprs: Vec<Expr>) -> Op {
    Op::AddRule(chain.into(), Rule { exprs, comment: None })
}

pub fn map(name: &str, key: Vec<Field>, data: Vec<Field>) -> Set {
    Set { kind: SetKind::Map(data), ..Set::plain(name, key) }
}

pub fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 0, 0, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
    }
}

/// `address . tcp . 80`.
pub fn frontend(family: Family, last: u8) -> Key {
    Key::new().address(address(family, last)).protocol(Protocol::Tcp).port(80)
}

/// Fields of a frontend.
pub fn frontend_fields(family: Family) -> Vec<Field> {
    vec![Field::address(family), Field::InetProto, Field::InetService]
}

/// Fields of an endpoint.
pub fn endpoint_fields(family: Family) -> Vec<Field> {
    vec![Field::address(family), Field::InetService]
}

/// Words of an address.
pub fn words(family: Family) -> u8 {
    family.address_len() as u8 / 4
}

pub fn saddr(family: Family, dst: u8) -> Expr {
    let offset = if family == Family::V4 { 12 } else { 8 };
    network(offset, family.address_len() as u32, dst)
}

pub fn daddr(family: Family, dst: u8) -> Expr {
    let offset = if family == Family::V4 { 16 } else { 24 };
    network(offset, family.address_len() as u32, dst)
}

fn network(offset: u32, len: u32, dst: u8) -> Expr {
    Expr::Payload { base: PayloadBase::Network, offset, len, dst: reg(dst) }
}

pub fn dport(dst: u8) -> Expr {
    Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dst: reg(dst) }
}

pub fn l4proto(dst: u8) -> Expr {
    Expr::Meta { key: MetaKey::L4Proto, dst: reg(dst) }
}

pub fn lookup(set: &str) -> Expr {
    let set = set.into();
    Expr::Lookup { set, src: reg(0), dst: None, verdict: false, inverted: false }
}

fn lookup_data(set: &str) -> Expr {
    Expr::Lookup {
        set: set.into(),
        src: reg(0),
        dst: Some(reg(0)),
        verdict: false,
        inverted: false,
    }
}

fn cmp(op: CmpOp, data: &[u8]) -> Expr {
    Expr::Cmp { op, src: reg(0), data: bytes(data) }
}

fn bit(key: CtKey, bit: u32, op: CmpOp) -> Vec<Expr> {
    vec![
        Expr::Ct { key, direction: None, dst: reg(0) },
        Expr::Bitwise {
            src: reg(0),
            dst: reg(0),
            mask: bytes(&bit.to_ne_bytes()),
            xor: bytes(&[0; 4]),
        },
        cmp(op, &[0; 4]),
    ]
}

/// The frontend a packet is for, in registers 0 to.
fn packet_frontend(family: Family) -> Vec<Expr> {
    let w = words(family);
    vec![daddr(family, 0), l4proto(w), dport(w + 1)]
}

/// The frontend a flow was for.
fn original_frontend(family: Family) -> Vec<Expr> {
    let w = words(family);
    let key = if family == Family::V4 { CtKey::DstIp } else { CtKey::DstIp6 };
    let direction = Some(CtDirection::Original);
    vec![
        Expr::Ct { key, direction, dst: reg(0) },
        l4proto(w),
        Expr::Ct { key: CtKey::ProtoDst, direction, dst: reg(w + 1) },
    ]
}

fn dnat(family: Family) -> Expr {
    Expr::Dnat { address: reg(0), port: reg(words(family)) }
}

/// Expressions, and the line nft prints for the rule they make.
pub struct Line {
    pub chain: &'static str,
    pub exprs: Vec<Expr>,
    pub v4: &'static str,
    pub v6: &'static str,
}

fn line(chain: &'static str, exprs: Vec<Expr>, v4: &'static str, v6: &'static str) -> Line {
    Line { chain, exprs, v4, v6 }
}

fn with(mut exprs: Vec<Expr>, more: impl IntoIterator<Item = Expr>) -> Vec<Expr> {
    exprs.extend(more);
    exprs
}

/// Rules that send flows to endpoints.
fn dnat_lines(family: Family) -> Vec<Line> {
    let w = words(family);
    let slot = Expr::Random { modulus: 16, dst: reg(w + 2) };
    vec![
        line(
            "nat",
            with(packet_frontend(family), [lookup_data("endpoints-1"), dnat(family)]),
            "dnat ip to ip daddr . meta l4proto . th dport map @endpoints-1",
            "dnat ip6 to ip6 daddr . meta l4proto . th dport map @endpoints-1",
        ),
        line(
            "nat",
            with(packet_frontend(family), [slot, lookup_data("endpoints-16"), dnat(family)]),
            "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 16 map @endpoints-16",
            "dnat ip6 to ip6 daddr . meta l4proto . th dport . numgen random mod 16 map @endpoints-16",
        ),
        line(
            "nat",
            vec![saddr(family, 0), lookup_data("affinity-x"), dnat(family)],
            "dnat ip to ip saddr map @affinity-x",
            "dnat ip6 to ip6 saddr map @affinity-x",
        ),
    ]
}

/// Rules around masquerading.
fn masquerade_lines(family: Family) -> Vec<Line> {
    let local = [
        Expr::Fib { result: FibResult::SourceType, dst: reg(0) },
        cmp(CmpOp::Eq, &2_u32.to_ne_bytes()),
    ];
    let destination = [
        Expr::Fib { result: FibResult::DestinationType, dst: reg(0) },
        cmp(CmpOp::Neq, &2_u32.to_ne_bytes()),
    ];
    vec![
        line(
            "masquerade",
            with(bit(CtKey::Status, 32, CmpOp::Eq), [Expr::Verdict(Verdict::Accept)]),
            "ct status ! dnat accept",
            "ct status ! dnat accept",
        ),
        line(
            "masquerade",
            with(original_frontend(family), [lookup("masquerade-services"), Expr::Masquerade]),
            "ct original ip daddr . meta l4proto . ct original proto-dst @masquerade-services masquerade fully-random",
            "ct original ip6 daddr . meta l4proto . ct original proto-dst @masquerade-services masquerade fully-random",
        ),
        line(
            "masquerade",
            with(local.to_vec(), [Expr::Masquerade]),
            "fib saddr type local masquerade fully-random",
            "fib saddr type local masquerade fully-random",
        ),
        line(
            "masquerade",
            with(destination.to_vec(), [Expr::Verdict(Verdict::Return)]),
            "fib daddr type != local return",
            "fib daddr type != local return",
        ),
    ]
}

/// Rules that match.
fn match_lines(family: Family) -> Vec<Line> {
    let (mask, prefix) = match family {
        Family::V4 => (bytes(&[255, 240, 0, 0]), vec![172, 16, 0, 0]),
        Family::V6 => (
            bytes(&[[255; 4], [255, 0, 0, 0], [0; 4], [0; 4]].concat()),
            [vec![0xfd, 0, 0, 1, 2, 0, 0, 0], vec![0; 8]].concat(),
        ),
    };
    let xor = bytes(&vec![0; family.address_len()]);
    let cidr = vec![
        saddr(family, 0),
        Expr::Bitwise { src: reg(0), dst: reg(0), mask, xor },
        cmp(CmpOp::Neq, &prefix),
    ];
    let inverted = Expr::Lookup {
        set: "service-ips".into(),
        src: reg(0),
        dst: None,
        verdict: false,
        inverted: true,
    };
    let interface = Expr::Meta { key: MetaKey::IifName, dst: reg(0) };
    let mut exact = b"eth0".to_vec();
    exact.resize(16, 0);
    let accept = || Expr::Verdict(Verdict::Accept);
    vec![
        line(
            "filter",
            with(cidr, [accept()]),
            "ip saddr != 172.16.0.0/12 accept",
            "ip6 saddr != fd00:1:200::/40 accept",
        ),
        line(
            "filter",
            vec![interface.clone(), cmp(CmpOp::Eq, b"veth"), accept()],
            "iifname \"veth*\" accept",
            "iifname \"veth*\" accept",
        ),
        line(
            "filter",
            vec![interface, cmp(CmpOp::Neq, &exact), Expr::Verdict(Verdict::Drop)],
            "iifname != \"eth0\" drop",
            "iifname != \"eth0\" drop",
        ),
        line(
            "filter",
            with(bit(CtKey::State, 8, CmpOp::Neq), [Expr::Verdict(Verdict::Jump("other".into()))]),
            "ct state new jump other",
            "ct state new jump other",
        ),
        line(
            "filter",
            vec![daddr(family, 0), inverted, Expr::Verdict(Verdict::Goto("other".into()))],
            "ip daddr != @service-ips goto other",
            "ip6 daddr != @service-ips goto other",
        ),
    ]
}

/// Rules that refuse, count, remember and branch.
fn action_lines(family: Family) -> Vec<Line> {
    let w = words(family);
    let counter = Expr::Counter { packets: 3, bytes: 180 };
    let update = |update| Expr::Dynset {
        set: "affinity-x".into(),
        update,
        key: reg(0),
        data: Some(reg(w)),
        timeout: Some(10_000),
    };
    let remembered = vec![saddr(family, 0), daddr(family, w), dport(2 * w)];
    let branch = Expr::Lookup {
        set: "sticky-services".into(),
        src: reg(0),
        dst: None,
        verdict: true,
        inverted: false,
    };
    vec![
        line(
            "filter",
            vec![l4proto(0), cmp(CmpOp::Eq, &[6]), Expr::Reject(RejectKind::TcpReset)],
            // nft leaves out the protocol that a reset implies.
            "reject with tcp reset",
            "reject with tcp reset",
        ),
        line(
            "filter",
            vec![counter, Expr::Reject(RejectKind::PortUnreachable)],
            "counter packets 3 bytes 180 reject",
            "counter packets 3 bytes 180 reject",
        ),
        line(
            "other",
            with(remembered.clone(), [update(SetUpdate::Update)]),
            "update @affinity-x { ip saddr timeout 10s : ip daddr . th dport }",
            "update @affinity-x { ip6 saddr timeout 10s : ip6 daddr . th dport }",
        ),
        line(
            "other",
            with(remembered, [update(SetUpdate::Add)]),
            "add @affinity-x { ip saddr timeout 10s : ip daddr . th dport }",
            "add @affinity-x { ip6 saddr timeout 10s : ip6 daddr . th dport }",
        ),
        line(
            "filter",
            with(packet_frontend(family), [branch]),
            "ip daddr . meta l4proto . th dport vmap @sticky-services",
            "ip6 daddr . meta l4proto . th dport vmap @sticky-services",
        ),
        line(
            "filter",
            vec![saddr(family, 0), lookup("ranges"), Expr::Verdict(Verdict::Drop)],
            "ip saddr @ranges drop",
            "ip6 saddr @ranges drop",
        ),
    ]
}

/// Every shape of rule.
pub fn lines(family: Family) -> Vec<Line> {
    [dnat_lines(family), masquerade_lines(family), match_lines(family), action_lines(family)]
        .into_iter()
        .flatten()
        .collect()
}

/// Every shape of set.
pub fn sets(family: Family) -> Vec<Set> {
    let address = vec![Field::address(family)];
    let slots = [frontend_fields(family), vec![Field::Mark]].concat();
    vec![
        Set { comment: Some("cluster IPs".into()), ..Set::plain("service-ips", address.clone()) },
        Set::plain("masquerade-services", frontend_fields(family)),
        map("endpoints-1", frontend_fields(family), endpoint_fields(family)),
        map("endpoints-16", slots, endpoint_fields(family)),
        Set { interval: true, ..Set::plain("ranges", address.clone()) },
        Set { kind: SetKind::VerdictMap, ..Set::plain("sticky-services", frontend_fields(family)) },
        Set {
            dynamic: true,
            timeout: Some(10_000),
            size: Some(1000),
            ..map("affinity-x", address, endpoint_fields(family))
        },
        Set { counter: true, ..Set::plain("counted", frontend_fields(family)) },
        Set::plain("slots", vec![Field::Mark]),
    ]
}

/// Elements of those sets, without what only the kernel knows (times, counts).
pub fn elements(family: Family) -> Vec<(Name, Vec<Element>)> {
    let a = |last| Key::new().address(address(family, last));
    let endpoint = |last| a(last).port(8080);
    let range = |first, last| Element { last: Some(a(last)), ..Element::member(a(first)) };
    let highest = Key::from_bytes(&vec![0xff; family.address_len()]).unwrap();
    vec![
        ("service-ips".into(), vec![Element::member(a(1)), Element::member(a(2))]),
        (
            "masquerade-services".into(),
            vec![Element::member(frontend(family, 1)).with_comment("ns/web:http".into())],
        ),
        ("endpoints-1".into(), vec![Element::data(frontend(family, 1), endpoint(9))]),
        (
            "endpoints-16".into(),
            vec![
                Element::data(frontend(family, 2).slot(0), endpoint(10)),
                Element::data(frontend(family, 2).slot(1), endpoint(11))
                    .with_comment("ns/api".into()),
            ],
        ),
        (
            "ranges".into(),
            vec![
                range(0, 15),
                range(16, 16),
                range(64, 127),
                Element { last: Some(highest), ..Element::member(a(200)) },
            ],
        ),
        (
            "sticky-services".into(),
            vec![
                Element::verdict(frontend(family, 1), Verdict::Goto("other".into())),
                Element::verdict(frontend(family, 3), Verdict::Drop),
            ],
        ),
        ("counted".into(), vec![Element::member(frontend(family, 1))]),
        ("slots".into(), vec![Element::member(Key::new().slot(5))]),
    ]
}

/// A table with every shape of chain, set, element and rule.
pub fn everything(family: Family) -> Vec<Op> {
    let mut ops = vec![
        Op::AddTable(Table {
            comment: Some("rules for services; program 1".into()),
            owner: Ownership::Nobody,
            persist: false,
        }),
        base_chain("nat", ChainType::Nat, Hook::Prerouting, -100),
        base_chain("masquerade", ChainType::Nat, Hook::Postrouting, 100),
        base_chain("filter", ChainType::Filter, Hook::Input, -110),
        Op::AddChain(Chain { name: "other".into(), hooked: None, comment: Some("regular".into()) }),
    ];
    ops.push(Op::AddCounter("refused".into()));
    ops.extend(sets(family).into_iter().map(Op::AddSet));
    ops.extend(elements(family).into_iter().map(|(set, list)| Op::AddElements(set, list)));
    ops.extend(lines(family).into_iter().map(|line| {
        let rule = Rule { exprs: line.exprs, comment: None };
        Op::AddRule(line.chain.into(), rule)
    }));
    let commented =
        Rule { exprs: vec![Expr::Verdict(Verdict::Accept)], comment: Some("what is left".into()) };
    ops.push(Op::AddRule("filter".into(), commented));
    ops
}
