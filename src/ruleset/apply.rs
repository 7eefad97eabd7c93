//! Applies operations to a [`Ruleset`] with the kernel's checks: what the fake kernel runs on.
//!
//! The checks are those that a wrong transaction of ours can run into: missing and existing objects,
//! references, lengths, sizes, overlapping intervals. Errors carry the kernel's errno.

use std::collections::BTreeMap;

use super::{Chain, Element, Expr, Key, Name, Rule, Ruleset, Set, SetKind, Table, Value, Verdict};
use crate::transaction::{Op, Rejection, Transaction};

/// Why a transaction cannot be applied: what the kernel would answer.
pub type ApplyError = Rejection;

/// Applies a transaction to a table, whole or not at all.
///
/// # Errors
/// The first operation that the kernel would refuse; the table is then as it was.
pub fn apply(ruleset: &mut Ruleset, transaction: &Transaction) -> Result<(), Rejection> {
    let mut undo = Undo::default();
    for (index, op) in transaction.ops.iter().enumerate() {
        if let Err(Refusal { errno, element }) = step(ruleset, op, &mut undo) {
            undo.roll_back(ruleset);
            let object = describe(op);
            return Err(Rejection { op: Some(index), element, object, errno });
        }
    }
    Ok(())
}

/// What an operation is about, for people.
pub fn describe(op: &Op) -> String {
    match op {
        Op::AddTable(_) => "add table".to_owned(),
        Op::DeleteTable => "delete table".to_owned(),
        Op::AddChain(chain) => format!("add chain {}", chain.name),
        Op::FlushChain(name) => format!("flush chain {name}"),
        Op::DeleteChain(name) => format!("delete chain {name}"),
        Op::AddRule(chain, _) => format!("add rule {chain}"),
        Op::AddSet(set) => format!("add set {}", set.name),
        Op::FlushSet(name) => format!("flush set {name}"),
        Op::DeleteSet(name) => format!("delete set {name}"),
        Op::AddElements(set, _) => format!("add element {set}"),
        Op::DeleteElements(set, _) => format!("delete element {set}"),
    }
}

struct Refusal {
    errno: i32,
    element: Option<usize>,
}

fn refuse(errno: i32) -> Refusal {
    Refusal { errno, element: None }
}

/// What was there before: whole objects once per transaction, elements one by one, so that a small
/// transaction on a large table stays small.
#[derive(Default)]
struct Undo {
    steps: Vec<UndoStep>,
}

enum UndoStep {
    Whole(Box<Ruleset>),
    Table(Option<Table>),
    Chain(Name, Option<(Chain, Vec<Rule>)>),
    Set(Name, Option<(Set, BTreeMap<Key, Element>)>),
    Element(Name, Key, Option<Element>),
}

impl Undo {
    fn push(&mut self, step: UndoStep) {
        self.steps.push(step);
    }

    fn roll_back(self, ruleset: &mut Ruleset) {
        for step in self.steps.into_iter().rev() {
            match step {
                UndoStep::Whole(before) => *ruleset = *before,
                UndoStep::Table(before) => ruleset.table = before,
                UndoStep::Chain(name, before) => restore(&mut ruleset.chains, name, before),
                UndoStep::Set(name, before) => restore(&mut ruleset.sets, name, before),
                UndoStep::Element(set, key, before) => {
                    if let Some((_, elements)) = ruleset.sets.get_mut(&set) {
                        restore(elements, key, before);
                    }
                }
            }
        }
    }
}

fn restore<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, before: Option<V>) {
    match before {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn step(ruleset: &mut Ruleset, op: &Op, undo: &mut Undo) -> Result<(), Refusal> {
    if ruleset.table.is_none() && !matches!(op, Op::AddTable(_)) {
        return Err(refuse(libc::ENOENT));
    }
    match op {
        Op::AddTable(table) => add_table(ruleset, table, undo),
        Op::DeleteTable => {
            let before = std::mem::replace(ruleset, Ruleset::empty(ruleset.family));
            undo.push(UndoStep::Whole(Box::new(before)));
            Ok(())
        }
        Op::AddChain(chain) => add_chain(ruleset, chain, undo),
        Op::FlushChain(name) => flush_chain(ruleset, name, undo),
        Op::DeleteChain(name) => delete_chain(ruleset, name, undo),
        Op::AddRule(chain, rule) => add_rule(ruleset, chain, rule, undo),
        Op::AddSet(set) => add_set(ruleset, set, undo),
        Op::FlushSet(name) => {
            let (_, elements) = ruleset.sets.get_mut(name).ok_or(refuse(libc::ENOENT))?;
            for (key, element) in std::mem::take(elements) {
                undo.push(UndoStep::Element(name.clone(), key, Some(element)));
            }
            Ok(())
        }
        Op::DeleteSet(name) => delete_set(ruleset, name, undo),
        Op::AddElements(set, elements) => each(elements, |e| add_element(ruleset, set, e, undo)),
        Op::DeleteElements(set, elements) => {
            each(elements, |e| delete_element(ruleset, set, e, undo))
        }
    }
}

fn each(
    elements: &[Element],
    mut one: impl FnMut(&Element) -> Result<(), i32>,
) -> Result<(), Refusal> {
    for (index, element) in elements.iter().enumerate() {
        one(element).map_err(|errno| Refusal { errno, element: Some(index) })?;
    }
    Ok(())
}

fn add_table(ruleset: &mut Ruleset, table: &Table, undo: &mut Undo) -> Result<(), Refusal> {
    let adopted = match &ruleset.table {
        None => table.clone(),
        // An orphan: persistent, and its owner is gone. A plain table cannot become owned.
        Some(found) if table.owner && !found.owner && !found.persist => {
            return Err(refuse(libc::EOPNOTSUPP));
        }
        Some(found) => Table { owner: table.owner, ..found.clone() },
    };
    undo.push(UndoStep::Table(ruleset.table.replace(adopted)));
    Ok(())
}

fn add_chain(ruleset: &mut Ruleset, chain: &Chain, undo: &mut Undo) -> Result<(), Refusal> {
    match ruleset.chains.get(&chain.name) {
        Some((found, _)) if found.hooked == chain.hooked => Ok(()),
        Some(_) => Err(refuse(libc::EEXIST)),
        None => {
            undo.push(UndoStep::Chain(chain.name.clone(), None));
            ruleset.chains.insert(chain.name.clone(), (chain.clone(), Vec::new()));
            Ok(())
        }
    }
}

fn flush_chain(ruleset: &mut Ruleset, name: &Name, undo: &mut Undo) -> Result<(), Refusal> {
    let (chain, rules) = ruleset.chains.get_mut(name).ok_or(refuse(libc::ENOENT))?;
    let before = (chain.clone(), std::mem::take(rules));
    undo.push(UndoStep::Chain(name.clone(), Some(before)));
    Ok(())
}

fn delete_chain(ruleset: &mut Ruleset, name: &Name, undo: &mut Undo) -> Result<(), Refusal> {
    if !ruleset.chains.contains_key(name) {
        return Err(refuse(libc::ENOENT));
    }
    let jumps_here = |rule: &Rule| rule.exprs.iter().any(|expr| target(expr) == Some(name));
    let by_rule = ruleset
        .chains
        .iter()
        .any(|(other, (_, rules))| other != name && rules.iter().any(jumps_here));
    let by_element = ruleset
        .sets
        .values()
        .filter(|(set, _)| set.kind == SetKind::VerdictMap)
        .any(|(_, elements)| elements.values().any(|e| verdict_target(&e.value) == Some(name)));
    if by_rule || by_element {
        return Err(refuse(libc::EBUSY));
    }
    undo.push(UndoStep::Chain(name.clone(), ruleset.chains.remove(name)));
    Ok(())
}

fn add_rule(
    ruleset: &mut Ruleset,
    chain: &Name,
    rule: &Rule,
    undo: &mut Undo,
) -> Result<(), Refusal> {
    for expr in &rule.exprs {
        let missing_set = set_of(expr).is_some_and(|set| !ruleset.sets.contains_key(set));
        let missing_chain = target(expr).is_some_and(|to| !ruleset.chains.contains_key(to));
        if missing_set || missing_chain {
            return Err(refuse(libc::ENOENT));
        }
        if target(expr) == Some(chain) {
            return Err(refuse(libc::ELOOP));
        }
    }
    let (declared, rules) = ruleset.chains.get_mut(chain).ok_or(refuse(libc::ENOENT))?;
    undo.push(UndoStep::Chain(chain.clone(), Some((declared.clone(), rules.clone()))));
    rules.push(rule.clone());
    Ok(())
}

fn add_set(ruleset: &mut Ruleset, set: &Set, undo: &mut Undo) -> Result<(), Refusal> {
    match ruleset.sets.get(&set.name) {
        Some((found, _)) if found.key == set.key && found.kind == set.kind => Ok(()),
        Some(_) => Err(refuse(libc::EEXIST)),
        None => {
            undo.push(UndoStep::Set(set.name.clone(), None));
            ruleset.sets.insert(set.name.clone(), (set.clone(), BTreeMap::new()));
            Ok(())
        }
    }
}

fn delete_set(ruleset: &mut Ruleset, name: &Name, undo: &mut Undo) -> Result<(), Refusal> {
    let mut rules = ruleset.chains.values().flat_map(|(_, rules)| rules);
    if rules.any(|rule| rule.exprs.iter().any(|expr| set_of(expr) == Some(name))) {
        return Err(refuse(libc::EBUSY));
    }
    let before = ruleset.sets.remove(name).ok_or(refuse(libc::ENOENT))?;
    undo.push(UndoStep::Set(name.clone(), Some(before)));
    Ok(())
}

fn add_element(
    ruleset: &mut Ruleset,
    set: &Name,
    element: &Element,
    undo: &mut Undo,
) -> Result<(), i32> {
    if let Some(to) = verdict_target(&element.value)
        && !ruleset.chains.contains_key(to)
    {
        return Err(libc::ENOENT);
    }
    let (declared, elements) = ruleset.sets.get_mut(set).ok_or(libc::ENOENT)?;
    if !fits(declared, element) {
        return Err(libc::EINVAL);
    }
    if let Some(found) = elements.get(&element.key) {
        let same = found.value == element.value && found.last == element.last;
        return if same { Ok(()) } else { Err(libc::EEXIST) };
    }
    if declared.interval && overlaps(elements, element) {
        return Err(libc::EEXIST);
    }
    if declared.size.is_some_and(|size| elements.len() >= size as usize) {
        return Err(libc::ENFILE);
    }
    undo.push(UndoStep::Element(set.clone(), element.key, None));
    elements.insert(element.key, element.clone());
    Ok(())
}

fn delete_element(
    ruleset: &mut Ruleset,
    set: &Name,
    element: &Element,
    undo: &mut Undo,
) -> Result<(), i32> {
    let (_, elements) = ruleset.sets.get_mut(set).ok_or(libc::ENOENT)?;
    if elements.get(&element.key).is_none_or(|found| found.last != element.last) {
        return Err(libc::ENOENT);
    }
    let before = elements.remove(&element.key);
    undo.push(UndoStep::Element(set.clone(), element.key, before));
    Ok(())
}

fn fits(set: &Set, element: &Element) -> bool {
    // A lone field keeps its own length; keys built here are padded, which the encoder undoes.
    let key_fits = element.key.as_bytes().len() == set.key_len();
    let value_fits = match (&set.kind, &element.value) {
        (SetKind::Set, Value::None) => true,
        (SetKind::Map(_), Value::Data(data)) => data.as_bytes().len() == set.data_len(),
        (SetKind::VerdictMap, Value::Verdict(_)) => true,
        _ => false,
    };
    key_fits && value_fits && element.last.is_some() == set.interval
}

fn overlaps(elements: &BTreeMap<Key, Element>, element: &Element) -> bool {
    let last = element.last.unwrap_or(element.key);
    let before = elements.range(..=last).next_back();
    before.is_some_and(|(key, found)| found.last.unwrap_or(*key) >= element.key)
}

fn set_of(expr: &Expr) -> Option<&Name> {
    match expr {
        Expr::Lookup { set, .. } | Expr::Dynset { set, .. } => Some(set),
        _ => None,
    }
}

fn target(expr: &Expr) -> Option<&Name> {
    match expr {
        Expr::Verdict(verdict) => chain_of(verdict),
        _ => None,
    }
}

fn verdict_target(value: &Value) -> Option<&Name> {
    match value {
        Value::Verdict(verdict) => chain_of(verdict),
        Value::None | Value::Data(_) => None,
    }
}

fn chain_of(verdict: &Verdict) -> Option<&Name> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain),
        Verdict::Accept | Verdict::Drop | Verdict::Return => None,
    }
}
