//! The seam to nf_tables: the trait [`Kernel`], and how it fails.
//!
//! Place in the flow: the engine lists operations; a [`Kernel`] commits them as one atomic batch.
//! Two kernels exist: [`crate::netlink`] and the fake in `testing`.

use std::io;
use std::time::Duration;

use crate::model::Family;
pub use crate::ruleset::{Counts, Op, Rejection, Transaction};
use crate::ruleset::{Element, Name, Ruleset};

/// The only way to nf_tables: commit a transaction, read a table back.
pub trait Kernel {
    /// Applies a transaction whole or not at all. An empty one is a no-op without a system call.
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError>;

    /// Reads one family's table, consistently (one generation).
    fn dump(&mut self, family: Family) -> Result<Ruleset, DumpError>;

    /// Reads the elements of one set; empty if the set does not exist.
    fn dump_set(&mut self, family: Family, set: &Name) -> Result<Vec<Element>, DumpError>;
}

/// Figures of a successful commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Committed {
    /// Netlink messages in the batch, begin and end included.
    pub messages: usize,
    /// Bytes of the batch.
    pub bytes: usize,
    /// Time in the system calls: sending, applying, the answer.
    pub elapsed: Duration,
}

/// Why a commit did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The kernel refused; nothing was applied.
    #[error("transaction refused at {}: {}", .0.object, io::Error::from_raw_os_error(.0.errno))]
    Rejected(Rejection),
    /// Another process owns the table; nothing was applied.
    #[error("another process (netlink port {portid}{}) owns table {family} kube-proxy", process(*.portid))]
    Owned {
        /// nft's name of the family.
        family: &'static str,
        /// The port of the socket that owns it.
        portid: u32,
    },
    /// Nothing can be said about the outcome; only reading back settles it.
    #[error("outcome of the transaction unknown")]
    Unknown(#[source] io::Error),
    /// The batch could not be sent; nothing was applied.
    #[error("sending the transaction ({bytes} bytes)")]
    Unsent {
        /// Size of the batch.
        bytes: usize,
        #[source]
        source: io::Error,
    },
}

/// The kernel numbers a process's first socket like the process, and its further ones from the top down.
fn process(portid: u32) -> &'static str {
    if i32::try_from(portid).is_ok() { ", usually its process id" } else { "" }
}

/// Why a table could not be read.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The table changed while it was read, every time it was tried.
    #[error("table {0} kube-proxy kept changing while it was read")]
    Interrupted(&'static str),
    #[error("table {family} kube-proxy: reading {what}")]
    Io {
        what: &'static str,
        /// nft's name of the family.
        family: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("table {family} kube-proxy: reading {what}: malformed answer: {reason}")]
    Malformed {
        what: &'static str,
        /// nft's name of the family.
        family: &'static str,
        /// In which way.
        reason: String,
    },
}
