//! nft text of a table, in the shape stock `nft list table` gives it.
//!
//! Place in the flow: `kubeweir render` and `explain`, golden files, error messages. The measure is
//! nft 1.0.6. One difference is wanted: nft lists sets and chains in the order they were created,
//! this text has them by name, for the same state must always give the same text. A comparison
//! with nft's output has to sort the blocks. Knows nothing of services and of the wire format.

mod operand;
mod rule;
#[cfg(test)]
mod tests;
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
