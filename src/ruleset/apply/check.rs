//! The kernel's checks, each with the errno it answers.

use std::collections::{BTreeMap, BTreeSet};

use crate::ruleset::{
    Element, Expr, Field, Key, Name, Op, Rule, Ruleset, Set, SetKind, Value, Verdict,
};

/// The chain a verdict leads to.
fn target(verdict: &Verdict) -> Option<&Name> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}

fn element_target(element: &Element) -> Option<&Name> {
    match &element.value {
        Value::Verdict(verdict) => target(verdict),
        Value::None | Value::Data(_) => None,
    }
}

/// Whether an operation can close a circle of jumps.
pub(super) fn adds_jump(op: &Op) -> bool {
    match op {
        Op::AddRule(_, rule) => rule.exprs.iter().any(|expr| match expr {
            Expr::Verdict(verdict) => target(verdict).is_some(),
            Expr::Lookup { verdict, .. } => *verdict,
            _ => false,
        }),
        Op::AddElements(_, elements) => elements.iter().any(|e| element_target(e).is_some()),
        _ => false,
    }
}

/// What a rule refers to must exist and fit.
pub(super) fn rule(ruleset: &Ruleset, rule: &Rule) -> Result<(), i32> {
    let find = |name: &Name| ruleset.sets.get(name).map(|(set, _)| set).ok_or(libc::ENOENT);
    for expr in &rule.exprs {
        match expr {
            Expr::Lookup { set, dst, verdict: vmap, inverted, .. } => {
                let set = find(set)?;
                let fits = match &set.kind {
                    SetKind::Set => dst.is_none() && !vmap,
                    SetKind::Map(_) => !vmap,
                    SetKind::VerdictMap => dst.is_none(),
                };
                if !fits || *inverted && (*vmap || dst.is_some()) {
                    return Err(libc::EINVAL);
                }
            }
            Expr::Dynset { set, data, timeout, .. } => {
                let set = find(set)?;
                if data.is_some() != matches!(set.kind, SetKind::Map(_)) {
                    return Err(libc::EINVAL);
                }
                if !set.dynamic || timeout.is_some() && set.timeout.is_none() {
                    return Err(libc::EOPNOTSUPP);
                }
            }
            Expr::Count(name) if !ruleset.counters.contains_key(name) => {
                return Err(libc::ENOENT);
            }
            Expr::Verdict(v) => verdict(ruleset, v)?,
            _ => {}
        }
    }
    Ok(())
}

/// A verdict leads to an existing chain that is not a base chain.
pub(super) fn verdict(ruleset: &Ruleset, verdict: &Verdict) -> Result<(), i32> {
    let Some(chain) = target(verdict) else { return Ok(()) };
    let (chain, _) = ruleset.chains.get(chain).ok_or(libc::ENOENT)?;
    if chain.hooked.is_some() { Err(libc::EOPNOTSUPP) } else { Ok(()) }
}

/// An element has the shape its set declares.
pub(super) fn element(set: &Set, element: &Element) -> Result<(), i32> {
    let value_fits = match (&set.kind, &element.value) {
        (SetKind::Set, Value::None) | (SetKind::VerdictMap, Value::Verdict(_)) => true,
        (SetKind::Map(fields), Value::Data(data)) => length_fits(fields, data),
        _ => false,
    };
    let key_fits = length_fits(&set.key, &element.key);
    let last_fits = element
        .last
        .is_none_or(|last| set.interval && length_fits(&set.key, &last) && last >= element.key);
    let lifetime_fits = element.lifetime.is_none() || set.timeout.is_some();
    let fits = value_fits && key_fits && last_fits && lifetime_fits;
    if fits { Ok(()) } else { Err(libc::EINVAL) }
}

/// A lone field may come without its padding.
fn length_fits(fields: &[Field], key: &Key) -> bool {
    let len = key.as_bytes().len();
    let padded: usize = fields.iter().map(|field| field.padded_len()).sum();
    len == padded || matches!(fields, [field] if len == field.byte_len())
}

/// Whether a range has a key in common with one that is there.
pub(super) fn overlaps(elements: &BTreeMap<Key, Element>, element: &Element) -> bool {
    let end = super::end(element);
    // Ranges that are there do not overlap, so only the last one that starts before the end counts.
    elements.range(..=end).next_back().is_some_and(|(_, before)| super::end(before) >= element.key)
}

/// Whether a rule or an element leads to a chain.
pub(super) fn chain_is_used(ruleset: &Ruleset, name: &Name) -> bool {
    let mut rules = ruleset.chains.values().flat_map(|(_, rules)| rules);
    let by_rule = rules.any(|rule| {
        rule.exprs.iter().any(|e| matches!(e, Expr::Verdict(v) if target(v) == Some(name)))
    });
    by_rule
        || verdict_maps(ruleset)
            .any(|elements| elements.values().any(|e| element_target(e) == Some(name)))
}

/// Whether a rule refers to a set.
pub(super) fn set_is_used(ruleset: &Ruleset, name: &Name) -> bool {
    let mut exprs = ruleset.chains.values().flat_map(|(_, rules)| rules).flat_map(|r| &r.exprs);
    exprs.any(|expr| match expr {
        Expr::Lookup { set, .. } | Expr::Dynset { set, .. } => set == name,
        _ => false,
    })
}

fn verdict_maps(ruleset: &Ruleset) -> impl Iterator<Item = &BTreeMap<Key, Element>> {
    ruleset
        .sets
        .values()
        .filter(|(set, _)| set.kind == SetKind::VerdictMap)
        .map(|(_, elements)| elements)
}

/// A chain from which jumps lead back to itself, if there is one.
pub(super) fn jump_loop(ruleset: &Ruleset) -> Option<&Name> {
    let mut finished = BTreeSet::new();
    ruleset.chains.keys().find(|chain| !leads_out(ruleset, chain, &mut Vec::new(), &mut finished))
}

/// Whether every path from a chain ends.
fn leads_out<'a>(
    ruleset: &'a Ruleset,
    chain: &'a Name,
    path: &mut Vec<&'a Name>,
    finished: &mut BTreeSet<&'a Name>,
) -> bool {
    if finished.contains(chain) {
        return true;
    }
    if path.contains(&chain) {
        return false;
    }
    path.push(chain);
    let ends = targets(ruleset, chain).into_iter().all(|t| leads_out(ruleset, t, path, finished));
    path.pop();
    finished.insert(chain);
    ends
}

/// The chains that a chain's rules lead to, also through verdict maps.
fn targets<'a>(ruleset: &'a Ruleset, chain: &Name) -> BTreeSet<&'a Name> {
    let rules = ruleset.chains.get(chain).map_or(&[][..], |(_, rules)| rules);
    let mut found = BTreeSet::new();
    for expr in rules.iter().flat_map(|rule| &rule.exprs) {
        match expr {
            Expr::Verdict(verdict) => found.extend(target(verdict)),
            Expr::Lookup { set, verdict: true, .. } => {
                let elements = ruleset.sets.get(set).into_iter().flat_map(|(_, e)| e.values());
                found.extend(elements.filter_map(element_target));
            }
            _ => {}
        }
    }
    found
}
