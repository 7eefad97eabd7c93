//! A kernel in memory: the second implementation of [`Kernel`].
//!
//! It checks references and duplicates as nf_tables does, and can be told to fail.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use crate::kernel::{CommitError, Committed, DumpError, Kernel, Op, Rejection, Transaction};
use crate::model::{Family, PerFamily};
use crate::ruleset::{Element, Name, Ownership, Ruleset, apply, describe};

/// How a commit is to go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Refused as a whole with an errno; nothing is applied.
    Refused(i32),
    /// Nothing is known of the outcome, and nothing was applied.
    LostBefore,
    /// Nothing is known of the outcome, and everything was applied.
    LostAfter,
    /// Not sent.
    Unsent,
}

/// Refuses operations that a test dislikes.
type Dislike = Box<dyn Fn(&Op) -> Option<i32> + Send>;

pub struct FakeKernel {
    tables: PerFamily<Ruleset>,
    committed: Vec<Transaction>,
    faults: VecDeque<Fault>,
    good_before_faults: usize,
    dump_failures: usize,
    dumps: usize,
    set_dumps: usize,
    dislike: Option<Dislike>,
    blames: bool,
    commits_left: Option<usize>,
}

impl Default for FakeKernel {
    fn default() -> Self {
        FakeKernel::new()
    }
}

impl FakeKernel {
    pub fn new() -> Self {
        FakeKernel {
            tables: PerFamily::from_fn(Ruleset::empty),
            committed: Vec::new(),
            faults: VecDeque::new(),
            good_before_faults: 0,
            dump_failures: 0,
            dumps: 0,
            set_dumps: 0,
            dislike: None,
            blames: true,
            commits_left: None,
        }
    }

    pub fn ruleset(&self, family: Family) -> &Ruleset {
        &self.tables[family]
    }

    /// A family's table, for interference from outside.
    pub fn ruleset_mut(&mut self, family: Family) -> &mut Ruleset {
        &mut self.tables[family]
    }

    /// How many transactions were applied.
    pub fn commits(&self) -> usize {
        self.committed.len()
    }

    /// The transactions that were applied, and forgets them.
    pub fn take_committed(&mut self) -> Vec<Transaction> {
        std::mem::take(&mut self.committed)
    }

    /// The next commits go wrong, one fault each.
    pub fn fail(&mut self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.extend(faults);
    }

    /// Commits go wrong after so many that do not, one fault each.
    pub fn fail_after(&mut self, commits: usize, faults: impl IntoIterator<Item = Fault>) {
        self.good_before_faults = commits;
        self.faults.extend(faults);
    }

    /// Nothing goes wrong any more that was to.
    pub fn heal(&mut self) {
        self.faults.clear();
        self.good_before_faults = 0;
    }

    /// The next dumps fail.
    pub fn fail_dumps(&mut self, times: usize) {
        self.dump_failures = times;
    }

    /// How often a table was read.
    pub fn dumps(&self) -> usize {
        self.dumps
    }

    /// How often a single set was read.
    pub fn set_dumps(&self) -> usize {
        self.set_dumps
    }

    /// Refuses every transaction with an operation for which this gives an errno.
    pub fn dislike(&mut self, dislike: impl Fn(&Op) -> Option<i32> + Send + 'static) {
        self.dislike = Some(Box::new(dislike));
    }

    /// Dislikes nothing any more.
    pub fn like_everything(&mut self) {
        self.dislike = None;
    }

    /// Only so many commits get through, then none: the process is killed. `None`: no limit.
    pub fn die_after(&mut self, commits: Option<usize>) {
        self.commits_left = commits;
    }

    /// Whether a refusal names the operation and the element, as the kernel usually does.
    pub fn blame(&mut self, blames: bool) {
        self.blames = blames;
    }

    /// The process that owned the tables ends: persistent ones become orphans.
    pub fn close_socket(&mut self) {
        for family in Family::BOTH {
            let tables = &mut self.tables[family];
            match &mut tables.table {
                Some(table) if table.owner != Ownership::Nobody && !table.persist => {
                    *tables = Ruleset::empty(family);
                }
                Some(table) => table.owner = Ownership::Nobody,
                None => {}
            }
        }
    }

    /// A table's owner from now on, for tables that another process takes or leaves.
    pub fn own(&mut self, family: Family, owner: Ownership) {
        if let Some(table) = &mut self.tables[family].table {
            table.owner = owner;
        }
    }

    fn refusal(&self, transaction: &Transaction) -> Option<Rejection> {
        let dislike = self.dislike.as_ref()?;
        transaction.ops.iter().enumerate().find_map(|(index, op)| {
            let errno = dislike(op)?;
            let element = || match op {
                Op::AddElements(set, elements) => disliked(dislike, elements, |element| {
                    Op::AddElements(set.clone(), vec![element])
                }),
                Op::DeleteElements(set, elements) => disliked(dislike, elements, |element| {
                    Op::DeleteElements(set.clone(), vec![element])
                }),
                _ => None,
            };
            let (op_index, element) = match self.blames {
                true => (Some(index), element()),
                false => (None, None),
            };
            Some(Rejection { op: op_index, element, object: describe(op), errno })
        })
    }
}

/// The first element that is disliked by itself.
fn disliked(
    dislike: &Dislike,
    elements: &[Element],
    alone: impl Fn(Element) -> Op,
) -> Option<usize> {
    elements.iter().position(|element| dislike(&alone(element.clone())).is_some())
}

impl Kernel for FakeKernel {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        if transaction.is_empty() {
            return Ok(Committed::default());
        }
        let lost = || io::Error::from_raw_os_error(libc::ENOBUFS);
        let fault = match &mut self.commits_left {
            Some(0) => Some(Fault::Unsent),
            Some(left) => {
                *left -= 1;
                None
            }
            None if self.good_before_faults > 0 => {
                self.good_before_faults -= 1;
                None
            }
            None => self.faults.pop_front(),
        };
        match fault {
            Some(Fault::Refused(errno)) => {
                let object = "batch".to_owned();
                let rejection = Rejection { op: None, element: None, object, errno };
                return Err(CommitError::Rejected(rejection));
            }
            Some(Fault::LostBefore) => return Err(CommitError::Unknown(lost())),
            Some(Fault::Unsent) => {
                let source = io::Error::from_raw_os_error(libc::EMSGSIZE);
                return Err(CommitError::Unsent { bytes: 0, source });
            }
            Some(Fault::LostAfter) | None => {}
        }
        let family = transaction.family;
        if let Some(Ownership::Other(portid)) = self.tables[family].table.as_ref().map(|t| t.owner)
        {
            return Err(CommitError::Owned { family: family.nft(), portid });
        }
        if let Some(rejection) = self.refusal(transaction) {
            return Err(CommitError::Rejected(rejection));
        }
        apply(&mut self.tables[transaction.family], transaction).map_err(CommitError::Rejected)?;
        self.committed.push(transaction.clone());
        match fault {
            Some(_) => Err(CommitError::Unknown(lost())),
            None => {
                let messages = transaction.ops.len() + 2;
                Ok(Committed { messages, bytes: 0, elapsed: Duration::ZERO })
            }
        }
    }

    fn dump(&mut self, family: Family) -> Result<Ruleset, DumpError> {
        self.dumps += 1;
        if self.dump_failures > 0 {
            self.dump_failures -= 1;
            return Err(DumpError::Interrupted(family.nft()));
        }
        Ok(self.tables[family].clone())
    }

    fn dump_set(&mut self, family: Family, set: &Name) -> Result<Vec<Element>, DumpError> {
        self.set_dumps += 1;
        let found = self.tables[family].sets.get(set);
        Ok(found.map(|(_, elements)| elements.values().cloned().collect()).unwrap_or_default())
    }
}
