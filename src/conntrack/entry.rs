//! An entry of the conntrack table, as people look at it.

use std::net::IpAddr;

use super::{Flow, Tuple};
use crate::model::Protocol;

/// What the kernel knows of a flow.
///
/// What it tells only by configuration, or only in some messages, may be missing: a notification of a
/// change has neither times nor counts, nor the state of TCP unless that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// TCP, UDP or SCTP; others have no Service.
    pub protocol: Protocol,
    /// As the client sent it, before translation.
    pub original: Tuple,
    /// As answers are expected, before they are translated back: the source is the endpoint.
    pub reply: Tuple,
    /// Conntrack zone, if it is not the default one.
    pub zone: Option<u16>,
    /// A packet came back.
    pub replied: bool,
    /// Not pushed out of a full table.
    pub assured: bool,
    /// The state of a TCP connection, in the words of `conntrack -L`.
    pub tcp: Option<&'static str>,
    /// When it began, nanoseconds since 1970; with `nf_conntrack_timestamp`.
    pub started: Option<u64>,
    /// With `nf_conntrack_acct`.
    pub counts: Option<Counts>,
    /// The kernel's number of this very entry.
    pub id: Option<u32>,
}

impl Entry {
    /// Whether it is a TCP connection that somebody may still use.
    pub fn is_connection(&self) -> bool {
        self.protocol == Protocol::Tcp
            && self.replied
            && !matches!(self.tcp, Some("TIME_WAIT" | "CLOSE"))
    }

    /// What names it to the kernel.
    pub fn flow(&self) -> Flow {
        let Entry { protocol, replied, original, reply, zone, id, .. } = *self;
        Flow { protocol, replied, original, reply, zone, id }
    }
}

/// What passed so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets, from the client and back.
    pub packets: [u64; 2],
    /// Bytes, from the client and back, headers included.
    pub bytes: [u64; 2],
}

/// Which entries are asked for, by one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Within {
    /// All of a family.
    All,
    /// This client's.
    From(IpAddr),
    /// Those that were sent to this address.
    To(IpAddr),
    /// Those that this endpoint answers.
    AnsweredBy(IpAddr),
}

impl Within {
    /// Whether an entry is among them.
    pub fn contains(self, entry: &Entry) -> bool {
        match self {
            Within::All => true,
            Within::From(ip) => entry.original.source.ip() == ip,
            Within::To(ip) => entry.original.destination.ip() == ip,
            Within::AnsweredBy(ip) => entry.reply.source.ip() == ip,
        }
    }
}

/// What happened to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    New,
    /// Its state changed.
    Updated,
    /// It is gone.
    Ended,
}
