//! Requests and their answers: dumps, acknowledged requests, batches.
//!
//! Place in the flow: below everything that asks the kernel for more than one transaction, be it
//! nf_tables, conntrack, ipset or IPVS, which know what the messages mean. Blocking.

use std::io;
use std::time::Duration;

use super::attribute::{Message, Messages, begin_message, end_message, u32_at};
use super::reply::{Replies, error};
use super::socket::{RECEIVE_BUFFER, Socket};
use super::uapi::*;

/// Below the kernel's default `net.core.wmem_default` (212992), overhead included.
const BATCH_LIMIT: usize = 128 * 1024;

/// How long the kernel may take to begin an answer; it works on it inside the request, so this is
/// only ever reached when something is badly wrong.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Message type: for nfnetlink, subsystem << 8 | command.
    pub(super) kind: u16,
    /// Flags beyond `NLM_F_REQUEST`, `NLM_F_ACK` and `NLM_F_DUMP`.
    pub(super) flags: u16,
    /// The four bytes before the attributes: `nfgenmsg` or `genlmsghdr`.
    pub(super) fixed: [u8; 4],
    pub(super) attributes: Vec<u8>,
}

impl Request {
    /// A request to an nfnetlink subsystem about a protocol family.
    pub fn nfnetlink(subsystem: u16, command: u8, family: u8, attributes: Vec<u8>) -> Self {
        let kind = subsystem << 8 | u16::from(command);
        Request { kind, flags: 0, fixed: [family, 0, 0, 0], attributes }
    }

    fn write(&self, out: &mut Vec<u8>, flags: u16, seq: u32) {
        let flags = self.flags | flags | NLM_F_REQUEST;
        let start = begin_message(out, self.kind, flags, seq, self.fixed);
        out.extend_from_slice(&self.attributes);
        end_message(out, start);
    }
}

/// Whether a dump shows one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dump {
    /// Every object was delivered once.
    Complete,
    /// The kernel's objects changed meanwhile (`NLM_F_DUMP_INTR`); some may be missing or repeated.
    Interrupted,
}

/// A socket for one request after the other. Errors are the kernel's errno as [`io::Error`].
pub struct Requests {
    socket: Socket,
    buffer: Vec<u8>,
    seq: u32,
}

impl Requests {
    pub fn to_netfilter() -> io::Result<Self> {
        Socket::netfilter().map(Requests::through)
    }

    /// To generic netlink.
    pub(super) fn to_generic() -> io::Result<Self> {
        Socket::generic().map(Requests::through)
    }

    pub(super) fn through(socket: Socket) -> Self {
        Requests { socket, buffer: vec![0; RECEIVE_BUFFER], seq: 0 }
    }

    /// Asks for objects and hands each to `each`.
    pub(super) fn dump(
        &mut self,
        request: &Request,
        each: impl FnMut(&Message<'_>),
    ) -> io::Result<Dump> {
        self.ask(request, NLM_F_DUMP, each)
    }

    /// Sends one request and waits for its acknowledgement; answers in between are handed to `each`.
    pub fn execute(&mut self, request: &Request, each: impl FnMut(&Message<'_>)) -> io::Result<()> {
        self.ask(request, NLM_F_ACK, each).map(drop)
    }

    fn ask(
        &mut self,
        request: &Request,
        flags: u16,
        mut each: impl FnMut(&Message<'_>),
    ) -> io::Result<Dump> {
        self.seq = self.seq.wrapping_add(1);
        let mut bytes = Vec::new();
        request.write(&mut bytes, flags, self.seq);
        self.socket.send(&bytes)?;
        let mut dump = Dump::Complete;
        loop {
            let datagram = self.socket.receive(&mut self.buffer, TIMEOUT)?;
            for message in Messages::new(datagram) {
                let message = message.map_err(malformed)?;
                if message.seq != self.seq {
                    continue;
                }
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    dump = Dump::Interrupted;
                }
                match end(&message)? {
                    None => each(&message),
                    Some(0) => return Ok(dump),
                    Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
    }

    /// Sends requests to nf_tables in order, in as few transactions as fit a socket buffer. Each
    /// transaction applies whole or not at all; the first refused one ends it.
    pub(super) fn batches(&mut self, requests: &[Request]) -> io::Result<()> {
        let mut rest = requests;
        while !rest.is_empty() {
            let mut size = 0;
            let fitting = rest.iter().take_while(|request| {
                size += request.attributes.len() + 20;
                size <= BATCH_LIMIT
            });
            let (now, later) = rest.split_at(fitting.count().max(1));
            self.batch(now)?;
            rest = later;
        }
        Ok(())
    }

    fn batch(&mut self, requests: &[Request]) -> io::Result<()> {
        let first = self.seq.wrapping_add(1);
        let last = first.wrapping_add(requests.len() as u32);
        self.seq = last.wrapping_add(1);
        let mark =
            |kind| Request { kind, flags: 0, fixed: BATCH_OF_NFTABLES, attributes: Vec::new() };
        let mut bytes = Vec::new();
        mark(NFNL_MSG_BATCH_BEGIN).write(&mut bytes, 0, first);
        for (index, request) in requests.iter().enumerate() {
            // Refusals are always reported; one acknowledgement at the end is enough.
            let flags = if index + 1 == requests.len() { NLM_F_ACK } else { 0 };
            request.write(&mut bytes, flags, first.wrapping_add(index as u32 + 1));
        }
        mark(NFNL_MSG_BATCH_END).write(&mut bytes, 0, self.seq);
        self.socket.send(&bytes)?;
        let mut replies = Replies::default();
        while !replies.settled() {
            let datagram = self.socket.receive(&mut self.buffer, TIMEOUT)?;
            let ours = |seq: u32| seq.wrapping_sub(first) <= last.wrapping_sub(first);
            replies.add(datagram, last, ours).map_err(malformed)?;
        }
        match replies.refusal {
            Some(refusal) => Err(io::Error::from_raw_os_error(refusal.errno)),
            None => Ok(()),
        }
    }
}

/// The errno of a message that ends the answer, 0 for success; `None` if it is part of the answer.
fn end(message: &Message<'_>) -> io::Result<Option<i32>> {
    match message.kind {
        NLMSG_ERROR => match error(message) {
            Some((errno, _)) => Ok(Some(errno)),
            None => Err(io::ErrorKind::InvalidData.into()),
        },
        NLMSG_DONE => Ok(Some((u32_at(message.payload, 0).unwrap_or(0) as i32).saturating_neg())),
        _ => Ok(None),
    }
}

fn malformed(truncated: super::Truncated) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, truncated)
}
