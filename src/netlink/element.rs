//! Elements of sets and maps: from [`Element`] to attributes and back.
//!
//! Place in the flow: [`super::batch`] encodes with it, [`mod@super::decode`] decodes. Most bytes of every
//! batch come from here, so elements are written straight into the batch and not through libnftnl's
//! objects. It knows nothing of messages.

use std::collections::HashSet;
use std::sync::Arc;

use super::attribute::{
    Attribute, Attributes, begin_nest, end_nest, put, put_str, put_u32, put_u64,
};
use super::uapi::*;
use super::userdata;
use crate::ruleset::{Element, Key, Lifetime, Name, Set, Value, Verdict};

/// Appends an element to the list. With `key_only`, as deletion wants it, nothing but what identifies
/// it. A range of addresses becomes two: its first address, and the one after its last flagged as an
/// end; a range up to the highest address has no end.
pub(super) fn put_element(buf: &mut Vec<u8>, element: &Element, key_only: bool) {
    let nest = begin_nest(buf, NFTA_LIST_ELEM);
    put_data_value(buf, NFTA_SET_ELEM_KEY, &element.key);
    if !key_only {
        put_value(buf, &element.value);
        if let Some(lifetime) = element.lifetime {
            put_u64(buf, NFTA_SET_ELEM_TIMEOUT, lifetime.timeout);
            put_u64(buf, NFTA_SET_ELEM_EXPIRATION, lifetime.expires);
        }
        if let Some(comment) = &element.comment {
            let mut data = Vec::with_capacity(comment.len() + 3);
            userdata::put_comment(&mut data, userdata::COMMENT, comment);
            put(buf, NFTA_SET_ELEM_USERDATA, &data);
        }
    }
    end_nest(buf, nest);
    if let Some(end) = element.last.as_ref().and_then(successor) {
        let nest = begin_nest(buf, NFTA_LIST_ELEM);
        put_data_value(buf, NFTA_SET_ELEM_KEY, &end);
        put_u32(buf, NFTA_SET_ELEM_FLAGS, NFT_SET_ELEM_INTERVAL_END);
        end_nest(buf, nest);
    }
}

fn put_value(buf: &mut Vec<u8>, value: &Value) {
    match value {
        Value::None => {}
        Value::Data(data) => put_data_value(buf, NFTA_SET_ELEM_DATA, data),
        Value::Verdict(verdict) => {
            let (code, chain) = verdict_code(verdict);
            let data = begin_nest(buf, NFTA_SET_ELEM_DATA);
            let nest = begin_nest(buf, NFTA_DATA_VERDICT);
            put(buf, NFTA_VERDICT_CODE, &code.to_be_bytes());
            if let Some(chain) = chain {
                put_str(buf, NFTA_VERDICT_CHAIN, chain.as_str());
            }
            end_nest(buf, nest);
            end_nest(buf, data);
        }
    }
}

fn put_data_value(buf: &mut Vec<u8>, kind: u16, value: &Key) {
    let nest = begin_nest(buf, kind);
    put(buf, NFTA_DATA_VALUE, value.as_bytes());
    end_nest(buf, nest);
}

/// Position among the listed elements of the one whose attribute starts at `offset`; `attributes`
/// yields the list. An interval end counts as the element it ends.
pub(super) fn index_at(list: &[u8], offset: usize) -> Option<usize> {
    let mut at = 0;
    let mut starts = 0_usize;
    for attribute in Attributes::new(list) {
        starts += usize::from(!is_interval_end(Attributes::new(attribute.payload)));
        if at == offset {
            return starts.checked_sub(1);
        }
        at += (attribute.payload.len() + 4).next_multiple_of(4);
    }
    None
}

fn is_interval_end(element: Attributes<'_>) -> bool {
    element.u32(NFTA_SET_ELEM_FLAGS).unwrap_or(0) & NFT_SET_ELEM_INTERVAL_END != 0
}

/// Elements as they come in a dump: ranges still in two parts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    element: Element,
    interval_end: bool,
}

/// Reads one element of a set. `None` for what we have no value for: catch-all elements, keys longer
/// than ours, elements of data types we never use.
pub(super) fn decode_part(
    attributes: Attributes<'_>,
    default_timeout: Option<u64>,
) -> Option<Part> {
    let flags = attributes.u32(NFTA_SET_ELEM_FLAGS).unwrap_or(0);
    if flags & NFT_SET_ELEM_CATCHALL != 0 {
        return None;
    }
    let key = Key::from_bytes(attributes.nest(NFTA_SET_ELEM_KEY).get(NFTA_DATA_VALUE)?)?;
    let value = match attributes.get(NFTA_SET_ELEM_DATA) {
        None => Value::None,
        Some(data) => decode_value(Attributes::new(data))?,
    };
    let comment = attributes
        .get(NFTA_SET_ELEM_USERDATA)
        .and_then(|data| userdata::comment(data, userdata::COMMENT))
        .map(Arc::from);
    let element = Element {
        key,
        last: None,
        value,
        comment,
        lifetime: lifetime(attributes, default_timeout),
        packets: packets(attributes.nest(NFTA_SET_ELEM_EXPR)),
    };
    Some(Part { element, interval_end: flags & NFT_SET_ELEM_INTERVAL_END != 0 })
}

/// What an element counted; all of it that a scrape needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counted<'a> {
    pub key: Key,
    /// Empty without one.
    pub comment: &'a str,
    /// 0 in a set without counters.
    pub packets: u64,
}

/// Reads that of one element. `None` for catch-all elements and keys longer than ours.
pub(super) fn decode_counted(attributes: Attributes<'_>) -> Option<Counted<'_>> {
    let mut counted = Counted { key: Key::new(), comment: "", packets: 0 };
    let mut keyed = false;
    for Attribute { kind, payload } in attributes {
        match kind {
            NFTA_SET_ELEM_KEY => {
                counted.key = Key::from_bytes(Attributes::new(payload).get(NFTA_DATA_VALUE)?)?;
                keyed = true;
            }
            NFTA_SET_ELEM_USERDATA => {
                counted.comment = userdata::comment(payload, userdata::COMMENT).unwrap_or_default();
            }
            NFTA_SET_ELEM_EXPR => {
                counted.packets = packets(Attributes::new(payload)).unwrap_or(0);
            }
            _ => {}
        }
    }
    keyed.then_some(counted)
}

/// Since kernel 6.12 the timeout is left out where it is the set's own.
fn lifetime(attributes: Attributes<'_>, default_timeout: Option<u64>) -> Option<Lifetime> {
    let expires = attributes.u64(NFTA_SET_ELEM_EXPIRATION)?;
    let timeout = attributes.u64(NFTA_SET_ELEM_TIMEOUT).or(default_timeout)?;
    Some(Lifetime { timeout, expires })
}

fn packets(expr: Attributes<'_>) -> Option<u64> {
    use super::expr::counter::PACKETS;
    (expr.str(NFTA_EXPR_NAME)? == "counter").then_some(())?;
    expr.nest(NFTA_EXPR_DATA).u64(PACKETS)
}

fn decode_value(data: Attributes<'_>) -> Option<Value> {
    if let Some(bytes) = data.get(NFTA_DATA_VALUE) {
        return Some(Value::Data(Key::from_bytes(bytes)?));
    }
    Some(Value::Verdict(decode_verdict(data.nest(NFTA_DATA_VERDICT))?))
}

/// Whether a key comes twice. Each part of a range counts as a key of its own.
pub(super) fn repeats(parts: &[Part]) -> bool {
    let mut seen = HashSet::with_capacity(parts.len());
    !parts.iter().all(|part| seen.insert((part.element.key, part.interval_end)))
}

/// Puts ranges together. Without ranges the parts are the elements, in the kernel's order.
///
/// Where two ranges touch, the end of the first and the start of the second have the same key; a
/// start without an end before the next start or the end of the set reaches up to there.
pub(super) fn assemble(set: &Set, mut parts: Vec<Part>) -> Vec<Element> {
    if !set.interval {
        return parts.into_iter().map(|part| part.element).collect();
    }
    parts.sort_by_key(|part| (part.element.key, !part.interval_end));
    let mut elements: Vec<Element> = Vec::with_capacity(parts.len() / 2);
    let mut open = false;
    for Part { element, interval_end } in parts {
        if let (true, Some(range)) = (open, elements.last_mut()) {
            range.last = predecessor(&element.key);
        }
        open = !interval_end;
        if open {
            elements.push(element);
        }
    }
    if let (true, Some(range)) = (open, elements.last_mut()) {
        range.last = Key::from_bytes(&vec![0xff; range.key.as_bytes().len()]);
    }
    elements
}

/// The next key in network order; `None` after the highest.
fn successor(key: &Key) -> Option<Key> {
    let mut bytes = key.as_bytes().to_vec();
    let at = bytes.iter().rposition(|&b| b != u8::MAX)?;
    bytes[at] += 1;
    bytes[at + 1..].fill(0);
    Key::from_bytes(&bytes)
}

/// The previous key in network order; `None` before the lowest.
fn predecessor(key: &Key) -> Option<Key> {
    let mut bytes = key.as_bytes().to_vec();
    let at = bytes.iter().rposition(|&b| b != 0)?;
    bytes[at] -= 1;
    bytes[at + 1..].fill(u8::MAX);
    Key::from_bytes(&bytes)
}

// Verdicts and the names of chains in them, for elements and rules alike.

/// The kernel's number of a verdict, and the chain it leads to.
pub(super) fn verdict_code(verdict: &Verdict) -> (i32, Option<&Name>) {
    match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    }
}

/// Reads a verdict; `None` for those we never use.
pub(super) fn decode_verdict(attributes: Attributes<'_>) -> Option<Verdict> {
    let chain = || attributes.str(NFTA_VERDICT_CHAIN).and_then(name);
    // The code is a signed number in network order.
    match attributes.u32(NFTA_VERDICT_CODE)? as i32 {
        NF_ACCEPT => Some(Verdict::Accept),
        NF_DROP => Some(Verdict::Drop),
        NFT_RETURN => Some(Verdict::Return),
        NFT_JUMP => Some(Verdict::Jump(chain()?)),
        NFT_GOTO => Some(Verdict::Goto(chain()?)),
        _ => None,
    }
}

/// A name, unless it is one that [`Name`] would refuse.
pub(super) fn name(text: &str) -> Option<Name> {
    (text.len() <= Name::MAX_LEN && !text.contains('\0')).then(|| Name::from(text))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::ruleset::{Field, Verdict};

    fn address(last: [u8; 4]) -> Key {
        Key::new().address(Ipv4Addr::from(last).into())
    }

    fn range(first: [u8; 4], last: [u8; 4]) -> Element {
        Element { last: Some(address(last)), ..Element::member(address(first)) }
    }

    fn parts_of(elements: &[Element]) -> Vec<Part> {
        let mut buf = Vec::new();
        for element in elements {
            put_element(&mut buf, element, false);
        }
        Attributes::new(&buf)
            .map(|a| decode_part(Attributes::new(a.payload), Some(10_000)).unwrap())
            .collect()
    }

    fn set(interval: bool) -> Set {
        Set { interval, ..Set::plain("s", vec![Field::Ipv4Addr]) }
    }

    #[test]
    fn elements_come_back_as_written() {
        let key = address([10, 0, 0, 1]);
        let lifetime = Some(Lifetime { timeout: 5000, expires: 4000 });
        let cases = [
            Element::member(key),
            Element::data(key, address([10, 0, 0, 2]).port(80)),
            Element::verdict(key, Verdict::Goto("chain".into()))
                .with_comment("ns/name:port".into()),
            Element::verdict(key, Verdict::Drop),
            Element { lifetime, ..Element::member(key) },
        ];
        for element in cases {
            assert_eq!(assemble(&set(false), parts_of(std::slice::from_ref(&element))), [element]);
        }
    }

    #[test]
    fn ranges_come_back_as_written_in_any_order() {
        let elements = [
            range([0, 0, 0, 0], [0, 0, 0, 0]),
            range([10, 0, 0, 0], [10, 0, 0, 255]),
            range([10, 0, 1, 0], [10, 0, 1, 255]),
            range([255, 0, 0, 0], [255, 255, 255, 255]),
        ];
        let mut parts = parts_of(&elements);
        assert_eq!(parts.len(), 7, "the last range has no end");
        parts.reverse();
        assert_eq!(assemble(&set(true), parts), elements);
    }

    #[test]
    fn an_end_without_a_start_is_passed_over() {
        let mut parts = parts_of(&[range([10, 0, 0, 0], [10, 0, 0, 255])]);
        parts.remove(0);
        assert_eq!(assemble(&set(true), parts), []);
    }

    #[test]
    fn a_missing_timeout_is_the_sets() {
        let mut buf = Vec::new();
        put_data_value(&mut buf, NFTA_SET_ELEM_KEY, &address([1, 2, 3, 4]));
        put_u64(&mut buf, NFTA_SET_ELEM_EXPIRATION, 7);
        let part = decode_part(Attributes::new(&buf), Some(10_000)).unwrap();
        assert_eq!(part.element.lifetime, Some(Lifetime { timeout: 10_000, expires: 7 }));
    }

    #[test]
    fn offsets_lead_to_elements() {
        let mut list = Vec::new();
        let mut starts = Vec::new();
        for element in [range([1, 0, 0, 0], [1, 0, 0, 9]), range([2, 0, 0, 0], [2, 0, 0, 9])] {
            starts.push(list.len());
            put_element(&mut list, &element, false);
        }
        let second = Attributes::new(&list).next().unwrap().payload.len() + 4;
        assert_eq!(index_at(&list, starts[0]), Some(0));
        assert_eq!(index_at(&list, second), Some(0), "the end of the first range");
        assert_eq!(index_at(&list, starts[1]), Some(1));
        assert_eq!(index_at(&list, 3), None, "not where an element starts");
        assert_eq!(index_at(&list, list.len()), None);
    }
}
