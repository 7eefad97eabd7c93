use std::net::IpAddr;

use super::*;
use crate::model::{Family, Protocol};
use crate::program::rule::{Part, rule};
use crate::program::{Class, FrontendSpace, ListScope, SetId};
use crate::ruleset::{Expr, Lifetime, Register, RejectKind};

fn with_sets(family: Family) -> Ruleset {
    let four = Class::FOUR;
    let mut ruleset = Ruleset::empty(family);
    let ids = [
        SetId::Hairpin,
        SetId::Masquerade(FrontendSpace::Services),
        SetId::Masquerade(FrontendSpace::NodePorts),
        SetId::Endpoints(FrontendSpace::Services, ListScope::Cluster, four),
        SetId::Endpoints(FrontendSpace::NodePorts, ListScope::Local, four),
    ];
    for id in ids {
        ruleset.sets.insert(id.name(), (id.declaration(family), Default::default()));
    }
    let clients = Set {
        kind: SetKind::Map(vec![Field::address(family), Field::InetService]),
        dynamic: true,
        timeout: Some(10_800_000),
        ..Set::plain("clients", vec![Field::address(family)])
    };
    ruleset.sets.insert("clients".into(), (clients, Default::default()));
    ruleset
}

/// What nft 1.0.6 prints but does not read, or what depends on the time: the rest is held against
/// nft itself in tests/render.rs.
#[test]
fn rules() {
    const FE: [Part; 3] = [Part::Daddr, Part::L4Proto, Part::Dport];
    let dialled = [Part::OriginalDaddr, Part::L4Proto, Part::OriginalDport];
    let four = |space, scope| SetId::Endpoints(space, scope, Class::FOUR).name();
    let v4 = || rule(Family::V4);
    let cases = [
        (
            v4().dnat(
                &[FE[0], FE[1], FE[2], Part::Slot(4)],
                four(FrontendSpace::Services, ListScope::Cluster),
            ),
            "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 4 map @endpoints-4",
        ),
        (
            v4().dnat(
                &[FE[1], FE[2], Part::Slot(1)],
                four(FrontendSpace::NodePorts, ListScope::Local),
            ),
            "dnat ip to meta l4proto . th dport . numgen random mod 1 map @local-nodeport-endpoints-4",
        ),
        (
            v4().is_in(&dialled, SetId::Masquerade(FrontendSpace::Services).name()).masquerade(),
            "ct original ip daddr . meta l4proto . ct original proto-dst @masquerade-services \
             masquerade fully-random",
        ),
        (
            v4().is_not_in(&dialled[1..], SetId::Masquerade(FrontendSpace::NodePorts).name())
                .drops(),
            "meta l4proto . ct original proto-dst != @masquerade-nodeports drop",
        ),
        (
            v4().update("clients", &[Part::OriginalSaddr], &[Part::Daddr, Part::Dport], 1000),
            "update @clients { ct original ip saddr timeout 1s : ip daddr . th dport }",
        ),
        (v4().tcp().reject(RejectKind::TcpReset), "reject with tcp reset"),
        (
            v4().tcp().comment("why").reject(RejectKind::PortUnreachable),
            "meta l4proto tcp reject comment \"why\"",
        ),
    ];
    for (rule, text) in cases {
        assert_eq!(render_rule(&rule, &with_sets(Family::V4)), text);
    }
    let remember = rule(Family::V6).update(
        "clients",
        &[Part::OriginalSaddr],
        &[Part::Daddr, Part::Dport],
        1000,
    );
    assert_eq!(
        render_rule(&remember, &with_sets(Family::V6)),
        "update @clients { ct original ip6 saddr timeout 1s : ip6 daddr . th dport }"
    );
}

#[test]
fn constants_and_unknown_instructions() {
    let load = |data: Key, dst| Expr::Immediate { data, dst: Register(dst) };
    let dnat = |address: &str, port| {
        let address: IpAddr = address.parse().expect("an address");
        let exprs = vec![
            load(Key::new().address(address), 0),
            load(Key::new().port(80), port),
            Expr::Dnat { address: Register(0), port: Register(port) },
        ];
        render_rule(&Rule { exprs, comment: None }, &with_sets(Family::of(&address)))
    };
    assert_eq!(dnat("10.0.0.1", 1), "dnat to 10.0.0.1:80");
    assert_eq!(dnat("fd00::1", 4), "dnat to [fd00::1]:80");
    let unknown = Rule { exprs: vec![Expr::Unknown("log".into())], comment: None };
    assert_eq!(render_rule(&unknown, &with_sets(Family::V4)), "<log>");
}

#[test]
fn elements_that_live_or_count() {
    let ruleset = with_sets(Family::V4);
    let (clients, _) = &ruleset.sets["clients"];
    let address = |last| Key::new().address(IpAddr::from([10, 0, 0, last]));
    let lives = |timeout, expires| Element {
        lifetime: Some(Lifetime { timeout, expires }),
        ..Element::data(address(1), address(2).port(80))
    };
    assert_eq!(
        render_element(clients, &lives(10_800_000, 3_599_996)),
        "10.0.0.1 expires 59m59s996ms : 10.0.0.2 . 80"
    );
    assert_eq!(
        render_element(clients, &lives(60_000, 0).with_comment("x".into())),
        "10.0.0.1 timeout 1m expires 0s comment \"x\" : 10.0.0.2 . 80"
    );
    let connections = SetId::Connections(FrontendSpace::Services).declaration(Family::V4);
    let counted = Element {
        packets: Some(5),
        ..Element::member(address(1).protocol(Protocol::Udp).port(53))
    };
    assert_eq!(
        render_element(&connections, &counted),
        "10.0.0.1 . udp . 53 counter packets 5 bytes 0"
    );
}

#[test]
fn no_table_is_no_text() {
    assert_eq!(render(&Ruleset::empty(Family::V4)), "");
}
