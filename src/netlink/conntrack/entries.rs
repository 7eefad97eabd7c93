//! Entries with all that the kernel tells of them: listed, and heard of as they change.
//!
//! Whoever watches joins the multicast groups, and the kernel makes messages only while somebody is
//! in them.

use std::io;
use std::time::Duration;

use super::{
    Conntrack, ConntrackError, ip_kinds, nested, put_address, read_tuple, u16_of, uninterrupted,
};
use crate::conntrack::{Change, Counts, Entry, Within};
use crate::model::{Family, Protocol};
use crate::netlink::attribute::{Attributes, Message, Messages, put};
use crate::netlink::request::{Dump, Request};
use crate::netlink::socket::{RECEIVE_BUFFER, Socket};
use crate::netlink::uapi::*;

/// Room for notifications that arrive while nobody reads.
const RECEIVE_ROOM: usize = 4 << 20;

/// `enum tcp_conntrack`, in the words of `conntrack -L`.
const TCP_STATES: [&str; 10] = [
    "NONE",
    "SYN_SENT",
    "SYN_RECV",
    "ESTABLISHED",
    "FIN_WAIT",
    "CLOSE_WAIT",
    "LAST_ACK",
    "TIME_WAIT",
    "CLOSE",
    "SYN_SENT2",
];

impl Conntrack {
    /// The entries of a family that are asked for and that `keep` wants. Whether the list is complete
    /// is told beside it.
    ///
    /// Errors: the kernel refuses: without CAP_NET_ADMIN.
    pub fn entries(
        &mut self,
        family: Family,
        within: Within,
        keep: impl Fn(&Entry) -> bool,
    ) -> Result<(Vec<Entry>, Dump), ConntrackError> {
        let wanted = |entry: &Entry| within.contains(entry) && keep(entry);
        let requests = &mut self.requests;
        let (subsystem, command) = (NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET);
        let get = Request::nfnetlink(subsystem, command, nfproto(family), filter(within));
        uninterrupted(|entries| {
            requests.dump(&get, |message| {
                entries.extend(read_entry(message.attributes(), family).filter(wanted));
            })
        })
        .map_err(|source| ConntrackError::List { family, source })
    }
}

/// Lets the kernel leave out what was not asked for; everything is compared again.
///
/// IPv4 only: of IPv6 addresses the kernel leaves out those that are equal, 6.18 too
/// (`ctnetlink_filter_match_tuple` takes `ipv6_addr_cmp` for a test of equality).
fn filter(within: Within) -> Vec<u8> {
    let (tuple, flags, flag, ip) = match within {
        Within::All => return Vec::new(),
        Within::From(ip) | Within::To(ip) | Within::AnsweredBy(ip) if ip.is_ipv6() => {
            return Vec::new();
        }
        Within::From(ip) => (CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS, CTA_FILTER_F_CTA_IP_SRC, ip),
        Within::To(ip) => (CTA_TUPLE_ORIG, CTA_FILTER_ORIG_FLAGS, CTA_FILTER_F_CTA_IP_DST, ip),
        Within::AnsweredBy(ip) => {
            (CTA_TUPLE_REPLY, CTA_FILTER_REPLY_FLAGS, CTA_FILTER_F_CTA_IP_SRC, ip)
        }
    };
    let [source, destination] = ip_kinds(Family::of(&ip));
    let kind = if flag == CTA_FILTER_F_CTA_IP_DST { destination } else { source };
    let mut attributes = Vec::new();
    nested(&mut attributes, tuple, |tuple| {
        nested(tuple, CTA_TUPLE_IP, |nest| put_address(nest, kind, ip));
    });
    // Flags are in host order.
    nested(&mut attributes, CTA_FILTER, |filter| put(filter, flags, &flag.to_ne_bytes()));
    attributes
}

/// `None` if it is of another protocol than Services have, or of another family.
fn read_entry(attributes: Attributes<'_>, family: Family) -> Option<Entry> {
    let proto = attributes.nest(CTA_TUPLE_ORIG).nest(CTA_TUPLE_PROTO);
    let &[number] = proto.get(CTA_PROTO_NUM)? else { return None };
    let status = attributes.u32(CTA_STATUS).unwrap_or(0);
    let tcp = attributes.nest(CTA_PROTOINFO).nest(CTA_PROTOINFO_TCP).get(CTA_PROTOINFO_TCP_STATE);
    let state = tcp.and_then(|state| TCP_STATES.get(usize::from(*state.first()?)).copied());
    Some(Entry {
        protocol: Protocol::from_number(number)?,
        original: read_tuple(attributes.nest(CTA_TUPLE_ORIG), family)?,
        reply: read_tuple(attributes.nest(CTA_TUPLE_REPLY), family)?,
        zone: u16_of(attributes, CTA_ZONE),
        replied: status & IPS_SEEN_REPLY != 0,
        assured: status & IPS_ASSURED != 0,
        tcp: state,
        started: attributes.nest(CTA_TIMESTAMP).u64(CTA_TIMESTAMP_START),
        counts: read_counts(attributes),
        id: attributes.u32(CTA_ID),
    })
}

fn read_counts(attributes: Attributes<'_>) -> Option<Counts> {
    let [there, back] = [CTA_COUNTERS_ORIG, CTA_COUNTERS_REPLY].map(|kind| attributes.nest(kind));
    let both = |kind| -> Option<[u64; 2]> { Some([there.u64(kind)?, back.u64(kind)?]) };
    Some(Counts { packets: both(CTA_COUNTERS_PACKETS)?, bytes: both(CTA_COUNTERS_BYTES)? })
}

/// What a [`Watch`] hears.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// What changed, in order.
    pub changes: Vec<(Change, Entry)>,
    /// More happened than was read: some of it is lost.
    pub lost: bool,
}

/// Hears of every change of the conntrack table, in the network namespace it was opened in.
pub struct Watch {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Watch {
    /// Joins the groups.
    ///
    /// Errors: without CAP_NET_ADMIN.
    pub fn open() -> Result<Watch, ConntrackError> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::netfilter()?;
            socket.grow_receive(RECEIVE_ROOM)?;
            for group in
                [NFNLGRP_CONNTRACK_NEW, NFNLGRP_CONNTRACK_UPDATE, NFNLGRP_CONNTRACK_DESTROY]
            {
                socket.join(group)?;
            }
            Ok(socket)
        };
        let socket = open().map_err(ConntrackError::Watch)?;
        Ok(Watch { socket, buffer: vec![0; RECEIVE_BUFFER] })
    }

    /// What happened next, in order; nothing if nothing does within `timeout`.
    ///
    /// Errors: reading fails for another reason than lost messages, which are told.
    pub fn next(&mut self, timeout: Duration) -> Result<Heard, ConntrackError> {
        let mut heard = Heard::default();
        match self.socket.receive(&mut self.buffer, timeout) {
            Ok(datagram) => {
                for message in Messages::new(datagram) {
                    match message {
                        Ok(message) => heard.changes.extend(read_change(message)),
                        Err(_) => heard.lost = true,
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard.lost = true,
            Err(error) => return Err(ConntrackError::Watch(error)),
        }
        Ok(heard)
    }
}

fn read_change(message: Message<'_>) -> Option<(Change, Entry)> {
    let family = Family::BOTH.into_iter().find(|f| message.family() == Some(nfproto(*f)))?;
    let [command, _] = message.kind.to_le_bytes();
    let change = match command {
        IPCTNL_MSG_CT_NEW if message.flags & NLM_F_CREATE != 0 => Change::New,
        IPCTNL_MSG_CT_NEW => Change::Updated,
        IPCTNL_MSG_CT_DELETE => Change::Ended,
        _ => return None,
    };
    Some((change, read_entry(message.attributes(), family)?))
}
