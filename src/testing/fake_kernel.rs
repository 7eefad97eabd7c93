//! A kernel in memory: nf_tables' checks, and every way in which the real one can fail.
//!
//! Place in the flow: stands for [`crate::netlink`] in tests of the engine. A [`FakeKernel`] is a
//! handle; clones share the tables, so that a test can look while a worker owns one.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::model::{Family, PerFamily};
use crate::ruleset::{Element, Key, Name, Ruleset, apply};
use crate::transaction::{CommitError, Committed, DumpError, Kernel, Op, Rejection, Transaction};

/// How a commit fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommitFailure {
    /// Refused as a whole with an errno; nothing is applied.
    Rejected(i32),
    /// The outcome is not known, and nothing was applied.
    UnknownBefore,
    /// The outcome is not known, and all of it was applied.
    UnknownAfter,
    /// Not sent.
    Unsent,
}

/// How a dump fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DumpFailure {
    /// The table kept changing.
    Interrupted,
    /// A system call failed with an errno.
    Io(i32),
    /// Succeeds, but the second half of every set's elements is missing.
    Short,
}

/// What the kernel refuses for as long as the test says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Culprit {
    /// Adding or deleting an element with this key in this set.
    Key(Name, Key),
    /// An element, rule, chain or set whose comment is this.
    Comment(String),
    /// An operation on the chain or set of this name.
    Object(Name),
}

impl Culprit {
    /// The index of the element within an operation that is at fault, if it is one of an element.
    fn is_in(&self, op: &Op) -> Option<Option<usize>> {
        if let Op::AddElements(set, elements) | Op::DeleteElements(set, elements) = op {
            let found = elements.iter().position(|e| match self {
                Culprit::Key(name, key) => name == set && e.key == *key,
                Culprit::Comment(text) => e.comment.as_deref() == Some(text),
                Culprit::Object(name) => name == set,
            });
            return found.map(Some);
        }
        let (name, comment) = match op {
            Op::AddChain(chain) => (Some(&chain.name), chain.comment.as_ref()),
            Op::AddSet(set) => (Some(&set.name), set.comment.as_ref()),
            Op::AddRule(chain, rule) => (Some(chain), rule.comment.as_ref()),
            Op::FlushChain(name)
            | Op::DeleteChain(name)
            | Op::FlushSet(name)
            | Op::DeleteSet(name) => (Some(name), None),
            _ => (None, None),
        };
        let found = match self {
            Culprit::Key(..) => false,
            Culprit::Comment(text) => comment == Some(text),
            Culprit::Object(object) => name == Some(object),
        };
        found.then_some(None)
    }
}

type Interference = Box<dyn FnOnce(&mut Ruleset) + Send>;

struct State {
    tables: PerFamily<Ruleset>,
    committed: Vec<Transaction>,
    refused: Vec<(Transaction, Rejection)>,
    /// Commits asked for so far.
    commits: usize,
    /// Dumps asked for so far, of tables and of sets.
    dumps: usize,
    commit_failures: Vec<(usize, CommitFailure)>,
    dump_failures: Vec<DumpFailure>,
    culprits: Vec<(Culprit, i32)>,
    interferences: Vec<(usize, Family, Interference)>,
}

/// A kernel in memory. Clones share the same tables.
#[derive(Clone)]
pub struct FakeKernel(Arc<Mutex<State>>);

impl Default for FakeKernel {
    fn default() -> Self {
        FakeKernel::new()
    }
}

impl FakeKernel {
    /// No tables, no failures.
    pub fn new() -> Self {
        FakeKernel(Arc::new(Mutex::new(State {
            tables: PerFamily::from_fn(Ruleset::empty),
            committed: Vec::new(),
            refused: Vec::new(),
            commits: 0,
            dumps: 0,
            commit_failures: Vec::new(),
            dump_failures: Vec::new(),
            culprits: Vec::new(),
            interferences: Vec::new(),
        })))
    }

    /// A test that panicked elsewhere must not hide its reason behind a poisoned lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The table of a family as it is now.
    pub fn table(&self, family: Family) -> Ruleset {
        self.state().tables[family].clone()
    }

    /// The transactions that took effect, in order, also those of unknown outcome.
    pub fn committed(&self) -> Vec<Transaction> {
        self.state().committed.clone()
    }

    /// The transactions that were refused, each with the reason.
    pub fn refused(&self) -> Vec<(Transaction, Rejection)> {
        self.state().refused.clone()
    }

    /// Commits asked for so far, whatever became of them; empty transactions do not count.
    pub fn commits(&self) -> usize {
        self.state().commits
    }

    /// Dumps asked for so far, of tables and of sets.
    pub fn dumps(&self) -> usize {
        self.state().dumps
    }

    /// Forgets the recorded transactions.
    pub fn forget(&self) {
        let mut state = self.state();
        state.committed.clear();
        state.refused.clear();
    }

    /// Lets the nth commit from now fail; 0 is the next.
    pub fn fail_commit(&self, nth: usize, failure: CommitFailure) -> &Self {
        let mut state = self.state();
        let at = state.commits + nth;
        state.commit_failures.push((at, failure));
        drop(state);
        self
    }

    /// Refuses every transaction that touches the culprit, until [`FakeKernel::forgive`].
    pub fn refuse(&self, culprit: Culprit, errno: i32) -> &Self {
        self.state().culprits.push((culprit, errno));
        self
    }

    /// Ends every [`FakeKernel::refuse`].
    pub fn forgive(&self) -> &Self {
        self.state().culprits.clear();
        self
    }

    /// Lets the next `times` dumps fail, after those that already will.
    pub fn fail_dumps(&self, times: usize, failure: DumpFailure) -> &Self {
        self.state().dump_failures.extend(std::iter::repeat_n(failure, times));
        self
    }

    /// Somebody else changes a table now.
    pub fn interfere(&self, family: Family, change: impl FnOnce(&mut Ruleset)) -> &Self {
        change(&mut self.state().tables[family]);
        self
    }

    /// Somebody else changes a table just before the nth commit from now; 0 is the next.
    pub fn interfere_before(
        &self,
        nth: usize,
        family: Family,
        change: impl FnOnce(&mut Ruleset) + Send + 'static,
    ) -> &Self {
        let mut state = self.state();
        let at = state.commits + nth;
        state.interferences.push((at, family, Box::new(change)));
        drop(state);
        self
    }
}

impl State {
    fn interfere(&mut self, at: usize) {
        let (due, later) =
            std::mem::take(&mut self.interferences).into_iter().partition(|(when, ..)| *when == at);
        self.interferences = later;
        let due: Vec<_> = due;
        for (_, family, change) in due {
            change(&mut self.tables[family]);
        }
    }

    fn planned_failure(&mut self, at: usize) -> Option<CommitFailure> {
        let index = self.commit_failures.iter().position(|(when, _)| *when == at)?;
        Some(self.commit_failures.remove(index).1)
    }

    fn culprit(&self, transaction: &Transaction) -> Option<Rejection> {
        transaction.ops.iter().enumerate().find_map(|(index, op)| {
            let (element, errno) = self
                .culprits
                .iter()
                .find_map(|(culprit, errno)| Some((culprit.is_in(op)?, *errno)))?;
            let object = format!("operation {index}");
            Some(Rejection { op: Some(index), element, object, errno })
        })
    }

    fn refuse(&mut self, transaction: &Transaction, rejection: Rejection) -> CommitError {
        self.refused.push((transaction.clone(), rejection.clone()));
        CommitError::Rejected(rejection)
    }

    fn apply(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        if let Some(rejection) = self.culprit(transaction) {
            return Err(self.refuse(transaction, rejection));
        }
        if let Err(rejection) = apply(&mut self.tables[transaction.family], transaction) {
            return Err(self.refuse(transaction, rejection));
        }
        self.committed.push(transaction.clone());
        let messages = transaction.ops.len() + 2;
        Ok(Committed { messages, bytes: 0, elapsed: Duration::ZERO })
    }

    fn dump_failure(&mut self) -> Option<DumpFailure> {
        self.dumps += 1;
        (!self.dump_failures.is_empty()).then(|| self.dump_failures.remove(0))
    }
}

fn unknown() -> CommitError {
    CommitError::Unknown(io::Error::from_raw_os_error(libc::ENOBUFS))
}

fn dump_error(failure: DumpFailure, family: Family, what: &'static str) -> Option<DumpError> {
    match failure {
        DumpFailure::Interrupted => Some(DumpError::Interrupted(family.nft())),
        DumpFailure::Io(errno) => Some(DumpError::Io {
            what,
            family: family.nft(),
            source: io::Error::from_raw_os_error(errno),
        }),
        DumpFailure::Short => None,
    }
}

impl Kernel for FakeKernel {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        if transaction.is_empty() {
            return Ok(Committed::default());
        }
        let mut state = self.state();
        let at = state.commits;
        state.commits += 1;
        state.interfere(at);
        match state.planned_failure(at) {
            None => state.apply(transaction),
            Some(CommitFailure::UnknownBefore) => Err(unknown()),
            Some(CommitFailure::UnknownAfter) => {
                state.apply(transaction)?;
                Err(unknown())
            }
            Some(CommitFailure::Unsent) => Err(CommitError::Unsent {
                bytes: 0,
                source: io::Error::from_raw_os_error(libc::EMSGSIZE),
            }),
            Some(CommitFailure::Rejected(errno)) => {
                let object = "batch".to_owned();
                let rejection = Rejection { op: None, element: None, object, errno };
                Err(state.refuse(transaction, rejection))
            }
        }
    }

    fn dump(&mut self, family: Family) -> Result<Ruleset, DumpError> {
        let mut state = self.state();
        let failure = state.dump_failure();
        if let Some(error) = failure.and_then(|f| dump_error(f, family, "rules")) {
            return Err(error);
        }
        let mut table = state.tables[family].clone();
        if failure == Some(DumpFailure::Short) {
            for (_, elements) in table.sets.values_mut() {
                let keep = elements.len() / 2;
                if let Some(key) = elements.keys().nth(keep).copied() {
                    elements.split_off(&key);
                }
            }
        }
        Ok(table)
    }

    fn dump_set(&mut self, family: Family, set: &Name) -> Result<Vec<Element>, DumpError> {
        let mut state = self.state();
        let failure = state.dump_failure();
        if let Some(error) = failure.and_then(|f| dump_error(f, family, "elements")) {
            return Err(error);
        }
        let found = state.tables[family].sets.get(set);
        let mut elements: Vec<Element> =
            found.map(|(_, elements)| elements.values().cloned().collect()).unwrap_or_default();
        if failure == Some(DumpFailure::Short) {
            elements.truncate(elements.len() / 2);
        }
        Ok(elements)
    }
}

#[cfg(test)]
mod tests;
