//! nf_tables over netlink: transactions in, tables out.
//!
//! Place in the flow: the [`Kernel`] of the running program. Tables, chains, rules and set
//! declarations are encoded by libnftnl (`nftnl`, `nftnl-sys`), elements by code of our own straight
//! into the batch, and a batch leaves with one `sendmsg`. It knows nothing of services and decides
//! nothing: what is refused or unknown is told upwards.
//!
//! This is the only module of the crate with `unsafe` code: calls into libnftnl in `expr`, `set`
//! and `batch`, the descriptor and one option in `socket`, the two of iptables-legacy in [`xtables`], one call
//! for free memory in [`heap`].
//! Everything that reads netlink's bytes is safe code.

#![allow(unsafe_code)]

mod attribute;
mod batch;
pub mod conntrack;
mod decode;
mod dump;
mod element;
mod expr;
pub mod heap;
pub mod iptables;
pub mod ipvs;
mod monitor;
mod reply;
pub mod request;
mod set;
mod socket;
pub mod sockets;
mod uapi;
mod userdata;
pub mod xtables;

use std::io;
use std::time::{Duration, Instant};

use crate::kernel::{CommitError, Committed, DumpError, Kernel, Op, Transaction};
use crate::model::Family;
use crate::ruleset::{
    Chain, CtKey, Element, Expr, Name, Ownership, Register, Rule, Ruleset, Table,
};
use reply::Replies;
use socket::{RECEIVE_BUFFER, Socket};

pub use attribute::{Message, Messages, Truncated};
pub use batch::{Batch, Unencodable};
pub use decode::{Object, decode};
pub use dump::Counters;
pub use element::Counted;
pub use monitor::{Monitor, MonitorError, Notice};

/// How long to wait for the answer to a batch. The kernel has put it into the receive queue before
/// `sendmsg` returns; without one after this time there will be none.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Least size of the send buffer.
const SEND_ROOM: usize = 1 << 20;

/// Receive buffer per message of a batch, should each bring an error (an skb and its data).
const REPLY_ROOM: usize = 2 << 10;

/// Opening a socket to nf_tables failed.
#[derive(Debug, thiserror::Error)]
#[error("opening a netlink socket to nf_tables")]
pub struct OpenError(#[source] io::Error);

/// Finding out what the kernel can do failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The attempt failed for another reason than a kernel that lacks the feature.
    #[error("trying whether the kernel gives tables an owner")]
    Commit(#[source] CommitError),
    #[error("trying whether the kernel tracks connections")]
    Conntrack(#[source] CommitError),
}

/// nf_tables of the network namespace it was opened in.
///
/// All transactions go through one socket for as long as it lives: tables it creates as owned are
/// the socket's, and become orphans when it is closed.
pub struct NetlinkKernel {
    socket: Socket,
    batch: Batch,
    buffer: Vec<u8>,
    next_seq: u32,
}

impl NetlinkKernel {
    /// Opens the socket. Needs no privilege; what is done with it later needs CAP_NET_ADMIN.
    ///
    /// Errors: the kernel has no netfilter netlink or descriptors are used up.
    pub fn open() -> Result<NetlinkKernel, OpenError> {
        NetlinkKernel::open_for(Table::NAME)
    }

    fn open_for(table: &str) -> Result<NetlinkKernel, OpenError> {
        Ok(NetlinkKernel {
            socket: Socket::netfilter().map_err(OpenError)?,
            batch: Batch::new(table),
            buffer: vec![0; RECEIVE_BUFFER],
            next_seq: 1,
        })
    }

    /// The port of the socket: what [`Monitor`] ignores, and what owns our tables.
    pub fn portid(&self) -> u32 {
        self.socket.portid()
    }

    /// The bytes of the last batch, as they were sent: for measuring what the kernel alone takes.
    pub fn last_batch(&self) -> &[u8] {
        self.batch.bytes()
    }

    /// The table of a family without its content, for a cheap look whether it is there and whose.
    ///
    /// Errors: as [`Kernel::dump`].
    pub fn table(&self, family: Family) -> Result<Option<Table>, DumpError> {
        dump::table(family, self.portid())
    }

    /// Sends no longer batches from now on, as in a user namespace.
    #[cfg(any(test, feature = "testing"))]
    pub fn confine(&mut self, largest_message: usize) {
        self.socket.confine(largest_message);
    }

    /// Commits what is too long for one batch one half after the other. What was committed before a
    /// refusal stays, so that only reading back tells where things stand.
    fn commit_halves(
        &mut self,
        transaction: &Transaction,
        bytes: usize,
    ) -> Result<Committed, CommitError> {
        let Some((first, second)) = transaction.halves() else {
            let source = io::Error::from_raw_os_error(libc::EMSGSIZE);
            return Err(CommitError::Unsent { bytes, source });
        };
        let first = self.commit(&first)?;
        let lost = |error| CommitError::Unknown(io::Error::other(error));
        let second = self.commit(&second).map_err(lost)?;
        Ok(Committed {
            messages: first.messages + second.messages,
            bytes: first.bytes + second.bytes,
            elapsed: first.elapsed + second.elapsed,
        })
    }

    fn exchange(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.discard_stale();
        self.socket.send(self.batch.bytes()).map_err(|source| match source.raw_os_error() {
            Some(libc::EINTR) => CommitError::Unknown(source),
            _ => CommitError::Unsent { bytes: self.batch.bytes().len(), source },
        })?;
        let mut replies = Replies::default();
        let heard = self.hear(&mut replies);
        if let Some(refusal) = replies.refusal {
            let errno = refusal.errno;
            if errno == libc::EINTR {
                return Err(CommitError::Unknown(io::Error::from_raw_os_error(errno)));
            }
            let (seq, offset) = (refusal.seq, refusal.offset);
            let rejection = self.batch.rejection(&transaction.ops, seq, offset, errno);
            return Err(CommitError::Rejected(rejection));
        }
        heard.map_err(CommitError::Unknown)
    }

    /// Tells the table of somebody else from other things that are not permitted.
    fn who_refuses(&self, family: Family, error: CommitError) -> CommitError {
        match &error {
            CommitError::Rejected(rejection) if rejection.errno == libc::EPERM => {}
            _ => return error,
        }
        match dump::table(family, self.portid()) {
            Ok(Some(Table { owner: Ownership::Other(portid), .. })) => {
                CommitError::Owned { family: family.nft(), portid }
            }
            _ => error,
        }
    }

    /// Answers to an earlier batch whose outcome was given up.
    fn discard_stale(&mut self) {
        loop {
            match self.socket.try_receive(&mut self.buffer) {
                Ok(Some(_)) => {}
                // Reading an overrun clears it.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Hears everything there is: a refusal may stand behind the ack.
    fn hear(&mut self, replies: &mut Replies) -> io::Result<()> {
        let batch = &self.batch;
        loop {
            let datagram = match self.socket.try_receive(&mut self.buffer)? {
                Some(datagram) => datagram,
                None if replies.settled() => return Ok(()),
                None => self.socket.receive(&mut self.buffer, REPLY_TIMEOUT)?,
            };
            replies
                .add(datagram, batch.acked_seq(), |seq| batch.has_seq(seq))
                .map_err(|truncated| io::Error::new(io::ErrorKind::InvalidData, truncated))?;
        }
    }
}

impl Kernel for NetlinkKernel {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        self.batch.encode(transaction, self.next_seq).map_err(|unencodable| {
            let source = io::Error::new(io::ErrorKind::InvalidInput, unencodable);
            CommitError::Unsent { bytes: 0, source }
        })?;
        self.next_seq = self.batch.end_seq();
        if self.batch.is_empty() {
            return Ok(Committed::default());
        }
        let (bytes, messages) = (self.batch.bytes().len(), self.batch.messages());
        self.socket
            .grow(bytes.max(SEND_ROOM), (messages * REPLY_ROOM).max(SEND_ROOM))
            .map_err(|source| CommitError::Unsent { bytes, source })?;
        if bytes > self.socket.largest_message() {
            return self.commit_halves(transaction, bytes);
        }
        let start = Instant::now();
        self.exchange(transaction).map_err(|error| self.who_refuses(transaction.family, error))?;
        Ok(Committed { messages, bytes, elapsed: start.elapsed() })
    }

    fn dump(&mut self, family: Family) -> Result<Ruleset, DumpError> {
        dump::ruleset(family, self.portid())
    }

    /// In the kernel's order, which is none; no key comes twice.
    fn dump_set(&mut self, family: Family, set: &Name) -> Result<Vec<Element>, DumpError> {
        dump::set(family, set)
    }
}

/// Whether the kernel can give tables an owner and let them outlive it (6.9).
///
/// Tried, never guessed: one batch adds such a table under a name of its own and deletes it again, so
/// nothing is ever seen of it.
///
/// Errors: trying is impossible, CAP_NET_ADMIN lacking above all.
pub fn probe_ownership() -> Result<bool, ProbeError> {
    let table = Table { comment: None, owner: Ownership::Ours, persist: true };
    match rehearse(Family::V4, table, Vec::new())? {
        Ok(()) => Ok(true),
        // Before 5.12 and 6.9 the unknown flags are refused with one of these.
        Err(CommitError::Rejected(rejection))
            if matches!(rejection.errno, libc::EINVAL | libc::EOPNOTSUPP) =>
        {
            Ok(false)
        }
        Err(error) => Err(ProbeError::Commit(error)),
    }
}

/// Has the kernel load what tracks connections, by a rule that asks for it and is never committed to
/// stay: its settings exist only then.
///
/// Errors: the rule is refused.
pub fn load_conntrack(family: Family) -> Result<(), ProbeError> {
    let table = Table { comment: None, owner: Ownership::Nobody, persist: false };
    let chain = Chain { name: "probe".into(), hooked: None, comment: None };
    let state = Expr::Ct { key: CtKey::State, direction: None, dst: Register(0) };
    let rule = Rule { exprs: vec![state], comment: None };
    let ops = vec![Op::AddChain(chain), Op::AddRule("probe".into(), rule)];
    rehearse(family, table, ops)?.map_err(ProbeError::Conntrack)
}

/// Tries operations in a table of its own name that is deleted in the same batch: the kernel checks
/// everything, and nothing is ever seen of it.
///
/// Errors: without a socket; within, what the kernel refuses.
pub fn rehearse(
    family: Family,
    table: Table,
    ops: Vec<Op>,
) -> Result<Result<(), CommitError>, OpenError> {
    let mut kernel = NetlinkKernel::open_for("kubeweir-probe")?;
    let ops = [vec![Op::AddTable(table)], ops, vec![Op::DeleteTable]].concat();
    Ok(kernel.commit(&Transaction { family, ops }).map(drop))
}
