//! What the kernel does with a transaction: checks and changes of a table.
//!
//! Place in the flow: the fake kernel applies transactions with it, `kubeweir render` builds the
//! table it prints. Every check is one that nf_tables makes, with the errno it answers; checks that
//! no transaction of ours can fail are left out. Knows no I/O and nothing of services.

mod check;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::{
    Chain, Counter, Element, Name, Op, Ownership, Rejection, Rule, Ruleset, Set, Table,
    Transaction, Value,
};
use crate::ruleset::Key;

/// Why an operation is refused: the kernel's errno, and the index of the element within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refusal {
    errno: i32,
    element: Option<usize>,
}

impl From<i32> for Refusal {
    fn from(errno: i32) -> Self {
        Refusal { errno, element: None }
    }
}

/// Applies a transaction to a table, whole or not at all; the work is that of the transaction, not
/// of the table (but jumps, as in the kernel, have the whole table checked).
///
/// Errors: the first operation the kernel would refuse. The table is then as it was.
pub fn apply(ruleset: &mut Ruleset, transaction: &Transaction) -> Result<(), Rejection> {
    let mut journal = Journal::default();
    let mut jumps = false;
    for (index, op) in transaction.ops.iter().enumerate() {
        jumps |= check::adds_jump(op);
        if let Err(refusal) = apply_op(ruleset, &mut journal, op) {
            journal.revert(ruleset);
            return Err(Rejection {
                op: Some(index),
                element: refusal.element,
                object: describe(op),
                errno: refusal.errno,
            });
        }
    }
    // The kernel follows jumps once, at the end of the batch.
    if jumps && let Some(chain) = check::jump_loop(ruleset).cloned() {
        journal.revert(ruleset);
        let object = format!("chain {chain}");
        return Err(Rejection { op: None, element: None, object, errno: libc::ELOOP });
    }
    Ok(())
}

/// What an operation is about, for people: `add element endpoints-4`.
pub fn describe(op: &Op) -> String {
    match op {
        Op::AddTable(_) => format!("add table {}", Table::NAME),
        Op::DeleteTable => format!("delete table {}", Table::NAME),
        Op::AddChain(chain) => format!("add chain {}", chain.name),
        Op::FlushChain(name) => format!("flush chain {name}"),
        Op::DeleteChain(name) => format!("delete chain {name}"),
        Op::AddRule(chain, _) => format!("add rule {chain}"),
        Op::AddCounter(name) => format!("add counter {name}"),
        Op::AddSet(set) => format!("add set {}", set.name),
        Op::FlushSet(name) => format!("flush set {name}"),
        Op::DeleteSet(name) => format!("delete set {name}"),
        Op::AddElements(set, _) => format!("add element {set}"),
        Op::DeleteElements(set, _) => format!("delete element {set}"),
    }
}

fn apply_op(ruleset: &mut Ruleset, journal: &mut Journal, op: &Op) -> Result<(), Refusal> {
    if ruleset.table.is_none() && !matches!(op, Op::AddTable(_)) {
        return Err(libc::ENOENT.into());
    }
    match op {
        Op::AddTable(table) => add_table(ruleset, journal, table)?,
        Op::DeleteTable => {
            let before = std::mem::replace(ruleset, Ruleset::empty(ruleset.family));
            journal.push(Undo::Table(Box::new(before)));
        }
        Op::AddChain(chain) => add_chain(ruleset, journal, chain)?,
        Op::FlushChain(name) => {
            let (_, rules) = ruleset.chains.get_mut(name).ok_or(libc::ENOENT)?;
            journal.push(Undo::Rules(name.clone(), std::mem::take(rules)));
        }
        Op::DeleteChain(name) => delete_chain(ruleset, journal, name)?,
        Op::AddRule(chain, rule) => add_rule(ruleset, journal, chain, rule)?,
        Op::AddCounter(name) => add_counter(ruleset, journal, name),
        Op::AddSet(set) => add_set(ruleset, journal, set)?,
        Op::FlushSet(name) => {
            let (_, elements) = ruleset.sets.get_mut(name).ok_or(libc::ENOENT)?;
            journal.push(Undo::Elements(name.clone(), std::mem::take(elements)));
        }
        Op::DeleteSet(name) => delete_set(ruleset, journal, name)?,
        Op::AddElements(set, elements) => {
            each_element(elements, |element| add_element(ruleset, journal, set, element))?;
        }
        Op::DeleteElements(set, elements) => {
            each_element(elements, |element| delete_element(ruleset, journal, set, element))?;
        }
    }
    Ok(())
}

fn each_element(
    elements: &[Element],
    mut apply: impl FnMut(&Element) -> Result<(), i32>,
) -> Result<(), Refusal> {
    for (index, element) in elements.iter().enumerate() {
        apply(element).map_err(|errno| Refusal { errno, element: Some(index) })?;
    }
    Ok(())
}

/// A table has its flags for life, but for the orphan of an owner that is gone: that one can be
/// owned again. The comment of an existing table stays.
fn add_table(ruleset: &mut Ruleset, journal: &mut Journal, table: &Table) -> Result<(), i32> {
    let Some(existing) = &mut ruleset.table else {
        journal.push(Undo::NewTable);
        ruleset.table = Some(table.clone());
        return Ok(());
    };
    if (existing.owner, existing.persist) == (table.owner, table.persist) {
        return Ok(());
    }
    let orphan = existing.persist && existing.owner == Ownership::Nobody;
    if !(orphan && table.owner == Ownership::Ours && table.persist) {
        return Err(libc::EOPNOTSUPP);
    }
    journal.push(Undo::Orphan);
    existing.owner = Ownership::Ours;
    Ok(())
}

fn add_chain(ruleset: &mut Ruleset, journal: &mut Journal, chain: &Chain) -> Result<(), i32> {
    if let Some((existing, _)) = ruleset.chains.get(&chain.name) {
        return if existing.hooked == chain.hooked { Ok(()) } else { Err(libc::EEXIST) };
    }
    journal.push(Undo::NewChain(chain.name.clone()));
    ruleset.chains.insert(chain.name.clone(), (chain.clone(), Vec::new()));
    Ok(())
}

fn delete_chain(ruleset: &mut Ruleset, journal: &mut Journal, name: &Name) -> Result<(), i32> {
    let chain = ruleset.chains.remove(name).ok_or(libc::ENOENT)?;
    let busy = check::chain_is_used(ruleset, name);
    journal.push(Undo::Chain(name.clone(), Box::new(chain)));
    if busy { Err(libc::EBUSY) } else { Ok(()) }
}

fn add_rule(
    ruleset: &mut Ruleset,
    journal: &mut Journal,
    chain: &Name,
    rule: &Rule,
) -> Result<(), i32> {
    if !ruleset.chains.contains_key(chain) {
        return Err(libc::ENOENT);
    }
    check::rule(ruleset, rule)?;
    if let Some((_, rules)) = ruleset.chains.get_mut(chain) {
        journal.push(Undo::NewRule(chain.clone()));
        rules.push(rule.clone());
    }
    Ok(())
}

fn add_counter(ruleset: &mut Ruleset, journal: &mut Journal, name: &Name) {
    if !ruleset.counters.contains_key(name) {
        journal.push(Undo::NewCounter(name.clone()));
        ruleset.counters.insert(name.clone(), Counter::default());
    }
}

fn add_set(ruleset: &mut Ruleset, journal: &mut Journal, set: &Set) -> Result<(), i32> {
    if let Some((existing, _)) = ruleset.sets.get(&set.name) {
        // User data is not compared.
        let same = Set { comment: existing.comment.clone(), ..set.clone() } == *existing;
        return if same { Ok(()) } else { Err(libc::EEXIST) };
    }
    journal.push(Undo::NewSet(set.name.clone()));
    ruleset.sets.insert(set.name.clone(), (set.clone(), Default::default()));
    Ok(())
}

fn delete_set(ruleset: &mut Ruleset, journal: &mut Journal, name: &Name) -> Result<(), i32> {
    if check::set_is_used(ruleset, name) {
        return Err(libc::EBUSY);
    }
    let set = ruleset.sets.remove(name).ok_or(libc::ENOENT)?;
    journal.push(Undo::Set(name.clone(), Box::new(set)));
    Ok(())
}

fn add_element(
    ruleset: &mut Ruleset,
    journal: &mut Journal,
    name: &Name,
    element: &Element,
) -> Result<(), i32> {
    let (set, elements) = ruleset.sets.get(name).ok_or(libc::ENOENT)?;
    check::element(set, element)?;
    if let Value::Verdict(verdict) = &element.value {
        check::verdict(ruleset, verdict)?;
    }
    if let Some(existing) = elements.get(&element.key) {
        let same = existing.value == element.value && end(existing) == end(element);
        return if same { Ok(()) } else { Err(libc::EEXIST) };
    }
    if set.interval && check::overlaps(elements, element) {
        return Err(libc::EEXIST);
    }
    if set.size.is_some_and(|size| elements.len() >= size as usize) {
        return Err(libc::ENFILE);
    }
    if let Some((_, elements)) = ruleset.sets.get_mut(name) {
        journal.push(Undo::NewElement(name.clone(), element.key));
        elements.insert(element.key, element.clone());
    }
    Ok(())
}

fn delete_element(
    ruleset: &mut Ruleset,
    journal: &mut Journal,
    name: &Name,
    element: &Element,
) -> Result<(), i32> {
    let (_, elements) = ruleset.sets.get_mut(name).ok_or(libc::ENOENT)?;
    let existing = elements.get(&element.key).ok_or(libc::ENOENT)?;
    if end(existing) != end(element) {
        return Err(libc::ENOENT);
    }
    let existing = elements.remove(&element.key).ok_or(libc::ENOENT)?;
    journal.push(Undo::Element(name.clone(), Box::new(existing)));
    Ok(())
}

/// The last key an element covers.
fn end(element: &Element) -> super::Key {
    element.last.unwrap_or(element.key)
}

// What was changed so far, to take it back when a later operation is refused.

/// How to take one change back.
enum Undo {
    /// The table was not there.
    NewTable,
    /// The table had no owner.
    Orphan,
    /// All of it was there.
    Table(Box<Ruleset>),
    /// The chain was not there.
    NewChain(Name),
    /// The chain was there.
    Chain(Name, Box<(Chain, Vec<Rule>)>),
    /// The chain had these rules.
    Rules(Name, Vec<Rule>),
    /// The chain had one rule less.
    NewRule(Name),
    /// The counter was not there.
    NewCounter(Name),
    /// The set was not there.
    NewSet(Name),
    /// The set was there.
    Set(Name, Box<(Set, BTreeMap<Key, Element>)>),
    /// The set had these elements.
    Elements(Name, BTreeMap<Key, Element>),
    /// The element was not there.
    NewElement(Name, Key),
    /// The element was there.
    Element(Name, Box<Element>),
}

/// The changes of one transaction, oldest first.
#[derive(Default)]
struct Journal(Vec<Undo>);

impl Journal {
    /// Notes a change.
    fn push(&mut self, undo: Undo) {
        self.0.push(undo);
    }

    /// Takes everything back, newest first.
    fn revert(self, ruleset: &mut Ruleset) {
        for undo in self.0.into_iter().rev() {
            revert(ruleset, undo);
        }
    }
}

fn revert(ruleset: &mut Ruleset, undo: Undo) {
    match undo {
        Undo::NewTable => ruleset.table = None,
        Undo::Orphan => {
            if let Some(table) = &mut ruleset.table {
                table.owner = Ownership::Nobody;
            }
        }
        Undo::Table(before) => *ruleset = *before,
        Undo::NewChain(name) => drop(ruleset.chains.remove(&name)),
        Undo::Chain(name, chain) => drop(ruleset.chains.insert(name, *chain)),
        Undo::Rules(name, before) => {
            if let Some((_, rules)) = ruleset.chains.get_mut(&name) {
                *rules = before;
            }
        }
        Undo::NewRule(name) => {
            if let Some((_, rules)) = ruleset.chains.get_mut(&name) {
                rules.pop();
            }
        }
        Undo::NewCounter(name) => drop(ruleset.counters.remove(&name)),
        Undo::NewSet(name) => drop(ruleset.sets.remove(&name)),
        Undo::Set(name, set) => drop(ruleset.sets.insert(name, *set)),
        Undo::Elements(name, before) => {
            if let Some((_, elements)) = ruleset.sets.get_mut(&name) {
                *elements = before;
            }
        }
        Undo::NewElement(name, key) => {
            if let Some((_, elements)) = ruleset.sets.get_mut(&name) {
                elements.remove(&key);
            }
        }
        Undo::Element(name, element) => {
            if let Some((_, elements)) = ruleset.sets.get_mut(&name) {
                elements.insert(element.key, *element);
            }
        }
    }
}
