//! nft text of a table, in the shape stock `nft list table` gives it.
//!
//! Place in the flow: `kubeweir render` and `explain`, golden files, error messages. The measure is
//! nft 1.0.6. One difference is wanted: nft lists sets and chains in the order they were created,
//! this text has them by name, for the same state must always give the same text. A comparison
//! with nft's output has to sort the blocks. Knows nothing of services and of the wire format.

mod operand;
mod rule;
pub(super) mod value;

use std::fmt::Write;

use super::{
    Chain, Counter, Element, Field, Hook, Hooked, Key, Name, Ownership, Rule, Ruleset, Set,
    SetKind, Table, Value,
};
pub use rule::render_rule;

/// The table as `nft list table` prints it: counters by name first, then sets by name, then chains by name; empty if there
/// is no table.
pub fn render(ruleset: &Ruleset) -> String {
    render_part(ruleset, ruleset)
}

/// Part of a table. Rules are written as in the whole, whose sets tell how wide a key is.
pub fn render_part(ruleset: &Ruleset, whole: &Ruleset) -> String {
    let Some(table) = &ruleset.table else { return String::new() };
    let counters = ruleset.counters.iter().map(|(name, counter)| counter_block(name, *counter));
    let sets = ruleset.sets.values().map(|(set, elements)| {
        let elements: Vec<&Element> = elements.values().collect();
        set_block(set, &elements)
    });
    let chains = ruleset.chains.values().map(|(chain, rules)| chain_block(chain, rules, whole));
    let blocks: Vec<String> = counters.chain(sets).chain(chains).collect();
    format!(
        "table {} {} {{\n{}{}}}\n",
        ruleset.family.nft(),
        Table::NAME,
        table_lines(table),
        blocks.join("\n")
    )
}

fn table_lines(table: &Table) -> String {
    let mut lines = String::new();
    let flags: Vec<&str> =
        [(table.owner != Ownership::Nobody, "owner"), (table.persist, "persist")]
            .into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect();
    if !flags.is_empty() {
        lines += &format!("\tflags {}\n", flags.join(","));
    }
    if let Some(comment) = &table.comment {
        lines += &format!("\tcomment \"{comment}\"\n");
    }
    lines
}

fn counter_block(name: &Name, Counter { packets, bytes }: Counter) -> String {
    format!("\tcounter {name} {{\n\t\tpackets {packets} bytes {bytes}\n\t}}\n")
}

fn set_block(set: &Set, elements: &[&Element]) -> String {
    let keyword = if set.kind == SetKind::Set { "set" } else { "map" };
    let mut text = format!("\t{keyword} {} {{\n", set.name);
    for line in set_lines(set) {
        text += &format!("\t\t{line}\n");
    }
    if !elements.is_empty() {
        text += &format!("\t\telements = {{ {} }}\n", element_list(set, elements));
    }
    text + "\t}\n"
}

fn set_lines(set: &Set) -> Vec<String> {
    let mut lines = vec![match &set.kind {
        SetKind::Set => format!("type {}", field_names(&set.key)),
        SetKind::Map(data) => format!("type {} : {}", field_names(&set.key), field_names(data)),
        SetKind::VerdictMap => format!("type {} : verdict", field_names(&set.key)),
    }];
    lines.extend(set.size.map(|size| format!("size {size}")));
    // The flag `timeout` says nothing beside a default timeout, so alone nft leaves it out.
    if set.dynamic || set.interval {
        let flags: Vec<&str> = [
            (set.dynamic, "dynamic"),
            (set.interval, "interval"),
            (set.timeout.is_some(), "timeout"),
        ]
        .into_iter()
        .filter_map(|(set, name)| set.then_some(name))
        .collect();
        lines.push(format!("flags {}", flags.join(",")));
    }
    if set.counter {
        lines.push("counter".into());
    }
    // Zero: elements without a timeout of their own stay for ever.
    let timeout = set.timeout.filter(|millis| *millis > 0);
    lines.extend(timeout.map(|millis| format!("timeout {}", value::duration(millis))));
    lines.extend(set.comment.iter().map(|comment| format!("comment \"{comment}\"")));
    lines
}

fn field_names(fields: &[Field]) -> String {
    let names: Vec<&str> = fields.iter().map(|field| field.nft()).collect();
    names.join(" . ")
}

fn element_list(set: &Set, elements: &[&Element]) -> String {
    let mut sorted = elements.to_vec();
    sorted.sort_by_cached_key(|element| sort_key(&set.key, &element.key));
    let per_line = match set.key[..] {
        [Field::InetProto | Field::InetService | Field::Mark] => 5,
        [Field::Ipv4Addr] => 2,
        _ => 1,
    };
    let lines: Vec<String> = sorted
        .chunks(per_line)
        .map(|line| {
            let texts: Vec<String> = line.iter().map(|e| render_element(set, e)).collect();
            texts.join(", ")
        })
        .collect();
    lines.join(",\n\t\t\t     ")
}

/// nft sorts keys of one field by value, and concatenations as if their bytes, without padding,
/// were one little-endian number.
fn sort_key(fields: &[Field], key: &Key) -> Vec<u8> {
    let mut bytes: Vec<u8> = value::split(fields, key).flat_map(|(_, b)| b.to_vec()).collect();
    let single_in_network_order = matches!(fields, [field] if *field != Field::Mark);
    if !(single_in_network_order || fields == [Field::Mark] && cfg!(target_endian = "big")) {
        bytes.reverse();
    }
    bytes
}

/// An element's key as it stands in a listing; a network if the set has ranges.
pub fn render_key(set: &Set, element: &Element) -> String {
    match &element.last {
        Some(last) => value::range(&set.key, &element.key, last),
        None => value::key(&set.key, &element.key),
    }
}

/// One element as it stands in a listing.
pub(super) fn render_element(set: &Set, element: &Element) -> String {
    let mut text = render_key(set, element);
    if set.counter {
        // The dump keeps packets only.
        let packets = element.packets.unwrap_or(0);
        let _ = write!(text, " counter packets {packets} bytes 0");
    }
    if let Some(lifetime) = element.lifetime {
        if Some(lifetime.timeout) != set.timeout {
            let _ = write!(text, " timeout {}", value::duration(lifetime.timeout));
        }
        let _ = write!(text, " expires {}", value::duration(lifetime.expires));
    }
    if let Some(comment) = &element.comment {
        let _ = write!(text, " comment \"{comment}\"");
    }
    match render_value(set, &element.value) {
        Some(value) => text + " : " + &value,
        None => text,
    }
}

/// What an element of a set leads to; `None` for members of plain sets.
pub(super) fn render_value(set: &Set, value: &Value) -> Option<String> {
    match (value, &set.kind) {
        (Value::Data(data), SetKind::Map(fields)) => Some(value::key(fields, data)),
        (Value::Data(data), _) => Some(format!("{data:?}")),
        (Value::Verdict(verdict), _) => Some(value::verdict(verdict)),
        (Value::None, _) => None,
    }
}

fn chain_block(chain: &Chain, rules: &[Rule], ruleset: &Ruleset) -> String {
    let mut text = format!("\tchain {} {{\n", chain.name);
    if let Some(comment) = &chain.comment {
        text += &format!("\t\tcomment \"{comment}\"\n");
    }
    if let Some(hooked) = &chain.hooked {
        text += &format!(
            "\t\ttype {} hook {} priority {}; policy accept;\n",
            hooked.kind.nft(),
            hooked.hook.nft(),
            priority(hooked)
        );
    }
    for rule in rules {
        text += &format!("\t\t{}\n", render_rule(rule, ruleset));
    }
    text + "\t}\n"
}

/// nft has names for well-known priorities, and writes those up to 10 away from one relative to it.
fn priority(hooked: &Hooked) -> String {
    let mut named = vec![(-300, "raw"), (-150, "mangle"), (0, "filter"), (50, "security")];
    match hooked.hook {
        Hook::Prerouting => named.push((-100, "dstnat")),
        Hook::Postrouting => named.push((100, "srcnat")),
        Hook::Input | Hook::Forward | Hook::Output => {}
    }
    let number = hooked.priority;
    match named.into_iter().find(|(at, _)| number.abs_diff(*at) <= 10) {
        Some((at, name)) if number == at => name.to_owned(),
        Some((at, name)) if number > at => format!("{name} + {}", number - at),
        Some((at, name)) => format!("{name} - {}", at - number),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
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
                v4().is_in(&dialled, SetId::Masquerade(FrontendSpace::Services).name())
                    .masquerade(),
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
}
