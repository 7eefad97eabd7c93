//! Lookups, and the draws that decide them.

use std::collections::BTreeMap;

use super::machine::{Machine, Place, Progress};
use super::{Effect, LookedUp, Registers};
use crate::ruleset::render::{render_value, value};
use crate::ruleset::{Element, Expr, Field, Key, Name, Register, Set, SetKind, Value};

type Elements = BTreeMap<Key, Element>;

impl Machine<'_> {
    /// Evaluates a lookup: what goes on with the rule has no effect yet.
    pub(super) fn lookup(
        &self,
        expr: &Expr,
        place: Place<'_>,
        progress: Progress,
    ) -> Vec<(Progress, Option<Effect>)> {
        let not_followed = |progress| vec![(progress, Some(Effect::NotFollowed))];
        let Expr::Lookup { set: name, src, .. } = expr else { return not_followed(progress) };
        let Some((set, elements)) = self.ruleset.sets.get(name) else {
            return not_followed(progress);
        };
        let Some(key) = progress.registers.read(*src, set.key_len()).and_then(Key::from_bytes)
        else {
            return not_followed(progress);
        };
        let first = usize::from(src.0) * 4;
        let draw = progress.registers.draw.and_then(|(at, modulus)| {
            (first..first + set.key_len()).contains(&at).then(|| (at - first, modulus))
        });
        let text = key_text(set, &key, draw);
        chances(set, elements, &key, draw, place.repeats)
            .into_iter()
            .map(|(probability, found)| {
                let mut progress = progress.clone();
                progress.state.probability *= probability;
                progress.lookups.push(LookedUp {
                    set: name.clone(),
                    key: text.clone(),
                    found: found
                        .map(|e| render_value(set, &e.value).unwrap_or_else(|| "member".into())),
                    comment: found.and_then(|e| e.comment.clone()),
                });
                let effect = go_on(expr, found, &mut progress);
                (progress, effect)
            })
            .collect()
    }

    /// The element a dynset instruction would write.
    pub(super) fn element_text(
        &self,
        registers: &Registers,
        set: &Name,
        key: Register,
        data: Option<Register>,
    ) -> String {
        let Some((set, _)) = self.ruleset.sets.get(set) else { return String::new() };
        let text = |fields: &[Field], register: Register| {
            let len = fields.iter().map(|field| field.padded_len()).sum();
            let bytes = registers.read(register, len).and_then(Key::from_bytes);
            bytes.map(|bytes| value::key(fields, &bytes)).unwrap_or_default()
        };
        match (data, &set.kind) {
            (Some(data), SetKind::Map(fields)) => {
                format!("{} : {}", text(&set.key, key), text(fields, data))
            }
            _ => text(&set.key, key),
        }
    }
}

/// What a lookup leads to; `None` if the rule goes on.
fn go_on(expr: &Expr, found: Option<&Element>, progress: &mut Progress) -> Option<Effect> {
    let Expr::Lookup { dst, verdict, inverted, .. } = expr else { return None };
    if found.is_some() == *inverted {
        return Some(Effect::NoMatch);
    }
    let found = found?;
    match (&found.value, dst) {
        (Value::Data(data), Some(dst)) => {
            let loaded = progress.registers.load(*dst, data.as_bytes());
            if loaded.is_none() { Some(Effect::NotFollowed) } else { None }
        }
        (Value::Verdict(v), _) if *verdict => Some(Effect::Verdict(v.clone())),
        _ => None,
    }
}

fn key_text(set: &Set, key: &Key, draw: Option<(usize, u32)>) -> String {
    let mut offset = 0;
    let texts: Vec<String> = value::split(&set.key, key)
        .map(|(field, bytes)| {
            let at = offset;
            offset += field.padded_len();
            match draw {
                Some((drawn, modulus)) if drawn == at => format!("random mod {modulus}"),
                _ => value::field(field, bytes),
            }
        })
        .collect();
    texts.join(" . ")
}

/// What is found, with which probability. Without a draw one answer; with draws every different
/// value once, and a miss if all of them can miss.
fn chances<'a>(
    set: &Set,
    elements: &'a Elements,
    key: &Key,
    draw: Option<(usize, u32)>,
    repeats: usize,
) -> Vec<(f64, Option<&'a Element>)> {
    let Some((offset, modulus)) = draw.filter(|(_, modulus)| *modulus > 0) else {
        return vec![(1.0, find(set, elements, key))];
    };
    let mut hits: Vec<(u32, &Element)> = Vec::new();
    let mut by_value: BTreeMap<&Value, usize> = BTreeMap::new();
    for slot in 0..modulus {
        let drawn = with_slot(key, offset, slot);
        if let Some(element) = drawn.and_then(|key| find(set, elements, &key)) {
            let at = *by_value.entry(&element.value).or_insert(hits.len());
            match hits.get_mut(at) {
                Some((count, _)) => *count += 1,
                None => hits.push((1, element)),
            }
        }
    }
    let filled: u32 = hits.iter().map(|(count, _)| count).sum();
    // Draws are independent: the nth happens if all before it missed, a geometric series.
    let miss = f64::from(modulus - filled) / f64::from(modulus);
    let all_miss = miss.powi(repeats as i32);
    let any_hit = 1.0 - all_miss;
    let mut chances: Vec<(f64, Option<&Element>)> = hits
        .into_iter()
        .map(|(count, e)| (any_hit * f64::from(count) / f64::from(filled), Some(e)))
        .collect();
    if all_miss > 0.0 {
        chances.push((all_miss, None));
    }
    chances
}

fn with_slot(key: &Key, offset: usize, slot: u32) -> Option<Key> {
    let mut bytes = key.as_bytes().to_vec();
    bytes.get_mut(offset..offset + 4)?.copy_from_slice(&slot.to_ne_bytes());
    Key::from_bytes(&bytes)
}

/// A lone field may be kept without its padding.
fn find<'a>(set: &Set, elements: &'a Elements, key: &Key) -> Option<&'a Element> {
    if set.interval {
        let (_, element) = elements.range(..=*key).next_back()?;
        return (element.last.unwrap_or(element.key) >= *key).then_some(element);
    }
    let found = elements.get(key);
    match set.key[..] {
        [field] if found.is_none() => {
            elements.get(&Key::from_bytes(key.as_bytes().get(..field.byte_len())?)?)
        }
        _ => found,
    }
}
