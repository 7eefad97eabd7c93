//! What was changed so far, to take it back when a later operation is refused.

use std::collections::BTreeMap;

use crate::ruleset::{Chain, Element, Key, Name, Ownership, Rule, Ruleset, Set};

/// How to take one change back.
pub(super) enum Undo {
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
pub(super) struct Journal(Vec<Undo>);

impl Journal {
    /// Notes a change.
    pub(super) fn push(&mut self, undo: Undo) {
        self.0.push(undo);
    }

    /// Takes everything back, newest first.
    pub(super) fn revert(self, ruleset: &mut Ruleset) {
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
