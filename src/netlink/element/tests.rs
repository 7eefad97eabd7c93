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
        Element::verdict(key, Verdict::Goto("chain".into())).with_comment("ns/name:port".into()),
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
