//! Operations on a table, and the transaction that groups them.

use super::{Chain, Element, Name, Rule, Set, Table, Value};
use crate::model::Family;

/// One change of the table. Operations apply in order; each may rely on the ones before it.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// Create the table, or adopt it if it is an orphan of ours.
    AddTable(Table),
    DeleteTable,
    /// Create a chain; an existing equal one is left as it is.
    AddChain(Chain),
    FlushChain(Name),
    /// Delete a chain together with its rules; nothing may refer to it.
    DeleteChain(Name),
    AddRule(Name, Rule),
    /// Create a named counter, at 0; an existing one is left as it is.
    AddCounter(Name),
    AddSet(Set),
    FlushSet(Name),
    /// Delete a set; nothing may refer to it.
    DeleteSet(Name),
    /// Add elements that are not there yet (`NLM_F_EXCL` is not set: an equal element is left as it
    /// is, one with other data is an error).
    AddElements(Name, Vec<Element>),
    /// Delete elements by key; a missing one fails the transaction.
    DeleteElements(Name, Vec<Element>),
}

/// Operations of one family's table that take effect together or not at all.
#[derive(Debug, Clone, PartialEq)]
pub struct Transaction {
    pub family: Family,
    /// What to do, in order.
    pub ops: Vec<Op>,
}

/// Which part of a transaction the kernel refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Index of the operation in the transaction; `None` if the batch as a whole was refused.
    pub op: Option<usize>,
    /// Index of the element within the operation, if the kernel told.
    pub element: Option<usize>,
    /// What the operation was about, for people: `add element endpoints-4`.
    pub object: String,
    pub errno: i32,
}

impl Rejection {
    /// What was refused, and why, in words.
    pub fn reason(&self) -> String {
        format!("{}: {}", self.object, std::io::Error::from_raw_os_error(self.errno))
    }
}

/// How much a transaction asks of the kernel; exact, so tests may assert it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    pub elements_added: usize,
    pub elements_deleted: usize,
    /// Elements that carry a verdict: each makes the kernel validate the table.
    pub verdict_elements: usize,
    /// Operations on chains.
    pub chains: usize,
    /// Rules added.
    pub rules: usize,
    /// Operations on sets as a whole.
    pub sets: usize,
}

impl Transaction {
    /// Nothing to do yet.
    pub fn new(family: Family) -> Self {
        Transaction { family, ops: Vec::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// Two transactions that together do the same, one after the other; `None` if it cannot be
    /// divided. What is first stays first: each prefix of a transaction is one.
    pub fn halves(&self) -> Option<(Transaction, Transaction)> {
        let part = |ops: Vec<Op>| Transaction { family: self.family, ops };
        let (first, second) = match &self.ops[..] {
            [Op::AddElements(set, elements)] if elements.len() > 1 => {
                let (first, second) = elements.split_at(elements.len() / 2);
                let add = |elements: &[Element]| Op::AddElements(set.clone(), elements.to_vec());
                (vec![add(first)], vec![add(second)])
            }
            [Op::DeleteElements(set, elements)] if elements.len() > 1 => {
                let (first, second) = elements.split_at(elements.len() / 2);
                let take =
                    |elements: &[Element]| Op::DeleteElements(set.clone(), elements.to_vec());
                (vec![take(first)], vec![take(second)])
            }
            ops if ops.len() > 1 => {
                let (first, second) = ops.split_at(ops.len() / 2);
                (first.to_vec(), second.to_vec())
            }
            _ => return None,
        };
        Some((part(first), part(second)))
    }

    /// What it asks of the kernel.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for op in &self.ops {
            match op {
                Op::AddElements(_, elements) => {
                    counts.elements_added += elements.len();
                    counts.verdict_elements += verdicts(elements);
                }
                Op::DeleteElements(_, elements) => {
                    counts.elements_deleted += elements.len();
                    counts.verdict_elements += verdicts(elements);
                }
                Op::AddChain(_) | Op::FlushChain(_) | Op::DeleteChain(_) => counts.chains += 1,
                Op::AddRule(..) => counts.rules += 1,
                Op::AddSet(_) | Op::FlushSet(_) | Op::DeleteSet(_) => counts.sets += 1,
                Op::AddTable(_) | Op::DeleteTable | Op::AddCounter(_) => {}
            }
        }
        counts
    }
}

fn verdicts(elements: &[Element]) -> usize {
    elements.iter().filter(|e| matches!(e.value, Value::Verdict(_))).count()
}
