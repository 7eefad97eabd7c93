//! Requests to nfnetlink and its like: attributes, dumps, acknowledged requests, batches.
//!
//! Place in the flow: below [`crate::conntrack::kernel`] and [`crate::cleanup`], which know what the
//! messages mean. This module knows only how netlink frames them; it must not know conntrack,
//! nf_tables or Services. The program's own table goes another way ([`crate::netlink`]).

use std::io;

use netlink_packet_core::{
    NLA_F_NESTED, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NlaBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr};

/// Bytes of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// Bytes of `struct nfgenmsg` and of `struct genlmsghdr`.
const FIXED_LEN: usize = 4;
/// `NFNL_MSG_BATCH_BEGIN` of linux/netfilter/nfnetlink.h.
const BATCH_BEGIN: u16 = 16;
/// `NFNL_MSG_BATCH_END`.
const BATCH_END: u16 = 17;
/// Below the kernel's default `net.core.wmem_default` (212992), overhead included.
const BATCH_LIMIT: usize = 128 * 1024;

/// Netlink attributes being written, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// Appends an attribute. Numbers are given as bytes, because their byte order differs by protocol.
    pub fn put(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(value.len() + 4).expect("attributes written here are short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Appends a NUL-terminated string.
    pub fn put_str(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// As they are sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends attributes within an attribute.
    pub fn nest(self, kind: u16, inner: Attributes) -> Self {
        self.put(kind | NLA_F_NESTED, &inner.0)
    }
}

/// The value of the first attribute of a kind; `None` if there is none or the bytes are cut short.
pub fn attribute(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    each_attribute(attributes).find(|(k, _)| *k == kind).map(|(_, value)| value)
}

/// All attributes in order as kind and value; ends at the first malformed one.
pub fn each_attribute(attributes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(attributes).map_while(Result::ok).map(|nla: NlaBuffer<&[u8]>| {
        let (kind, length) = (nla.kind(), usize::from(nla.length()));
        (kind, &nla.into_inner()[4..length])
    })
}

/// A string attribute without its NUL; `None` if it is absent or not UTF-8.
pub fn text(attributes: &[u8], kind: u16) -> Option<&str> {
    let bytes = attribute(attributes, kind)?;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).ok()
}

/// One request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Message type: for nfnetlink, subsystem << 8 | command.
    pub kind: u16,
    /// Flags beyond `NLM_F_REQUEST`, `NLM_F_ACK` and `NLM_F_DUMP`.
    pub flags: u16,
    /// The four bytes before the attributes: `nfgenmsg` (family, version, resource) or `genlmsghdr`.
    pub fixed: [u8; FIXED_LEN],
    /// The attributes.
    pub attributes: Attributes,
}

impl Request {
    /// A request to an nfnetlink subsystem; `family` is `AF_INET`, `AF_INET6` or `AF_UNSPEC`.
    pub fn nfnetlink(subsystem: u8, command: u8, family: u8, attributes: Attributes) -> Self {
        let kind = u16::from(subsystem) << 8 | u16::from(command);
        Request { kind, flags: 0, fixed: [family, 0, 0, 0], attributes }
    }

    fn write(&self, out: &mut Vec<u8>, flags: u16, sequence: u32) {
        let length = HEADER_LEN + FIXED_LEN + self.attributes.0.len();
        let length = u32::try_from(length).expect("requests written here are short");
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(self.flags | flags | NLM_F_REQUEST).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&self.fixed);
        out.extend_from_slice(&self.attributes.0);
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

/// A blocking netlink socket. Errors are the kernel's errno as [`io::Error`].
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket of a protocol (`NETLINK_NETFILTER`, `NETLINK_GENERIC`).
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// Asks for objects and hands the attributes of each to `each`.
    pub fn dump(&mut self, request: &Request, mut each: impl FnMut(&[u8])) -> io::Result<Dump> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        request.write(&mut bytes, NLM_F_DUMP, sequence);
        self.socket.send(&bytes, 0)?;
        let mut dump = Dump::Complete;
        loop {
            let datagram = self.receive()?;
            for message in messages(&datagram) {
                let message = message?;
                if message.sequence_number() != sequence {
                    continue;
                }
                if message.flags() & NLM_F_DUMP_INTR != 0 {
                    dump = Dump::Interrupted;
                }
                match message.message_type() {
                    NLMSG_ERROR | NLMSG_DONE => return outcome(message.payload()).map(|()| dump),
                    _ => each(message.payload().get(FIXED_LEN..).unwrap_or_default()),
                }
            }
        }
    }

    /// Sends one request and waits for its acknowledgement; answers in between are handed to `each`.
    pub fn execute(&mut self, request: &Request, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::new();
        request.write(&mut bytes, NLM_F_ACK, sequence);
        self.socket.send(&bytes, 0)?;
        loop {
            let datagram = self.receive()?;
            for message in messages(&datagram) {
                let message = message?;
                if message.sequence_number() != sequence {
                    continue;
                }
                match message.message_type() {
                    NLMSG_ERROR => return outcome(message.payload()),
                    _ => each(message.payload().get(FIXED_LEN..).unwrap_or_default()),
                }
            }
        }
    }

    /// Sends requests of one subsystem in order, in as few transactions as fit a socket buffer. Each
    /// transaction applies whole or not at all; the first refused one ends it.
    pub fn batches(&mut self, subsystem: u8, requests: &[Request]) -> io::Result<()> {
        let mut rest = requests;
        while !rest.is_empty() {
            let mut size = 0;
            let fitting = rest.iter().take_while(|request| {
                size += HEADER_LEN + FIXED_LEN + request.attributes.0.len();
                size <= BATCH_LIMIT
            });
            let (now, later) = rest.split_at(fitting.count().max(1));
            self.batch(subsystem, now)?;
            rest = later;
        }
        Ok(())
    }

    fn batch(&mut self, subsystem: u8, requests: &[Request]) -> io::Result<()> {
        let [_, _, high, low] = u32::from(subsystem).to_be_bytes();
        let mark = |kind| Request {
            kind,
            flags: 0,
            fixed: [0, 0, high, low],
            attributes: Attributes::default(),
        };
        let first = self.next_sequence();
        let mut bytes = Vec::new();
        mark(BATCH_BEGIN).write(&mut bytes, 0, first);
        let mut last = first;
        for (index, request) in requests.iter().enumerate() {
            last = self.next_sequence();
            // Refusals are always reported; one acknowledgement at the end is enough.
            let flags = if index + 1 == requests.len() { NLM_F_ACK } else { 0 };
            request.write(&mut bytes, flags, last);
        }
        mark(BATCH_END).write(&mut bytes, 0, self.next_sequence());
        self.socket.send(&bytes, 0)?;
        self.batch_outcome(first, last)
    }

    /// Waits for the answer to the last request. A batch that is refused as a whole is answered
    /// under the number of its beginning.
    fn batch_outcome(&mut self, first: u32, last: u32) -> io::Result<()> {
        let mut result = Ok(());
        loop {
            let datagram = self.receive()?;
            for message in messages(&datagram) {
                let message = message?;
                let sequence = message.sequence_number();
                if !(first..=last).contains(&sequence) || message.message_type() != NLMSG_ERROR {
                    continue;
                }
                result = result.and(outcome(message.payload()));
                if sequence == first || sequence == last {
                    return result;
                }
            }
        }
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        loop {
            match self.socket.recv_from_full() {
                Ok((datagram, _)) => return Ok(datagram),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The messages of a datagram.
fn messages(mut datagram: &[u8]) -> impl Iterator<Item = io::Result<NetlinkBuffer<&[u8]>>> {
    std::iter::from_fn(move || {
        if datagram.is_empty() {
            return None;
        }
        let Ok(message) = NetlinkBuffer::new_checked(datagram) else {
            datagram = &[];
            return Some(Err(io::Error::from(io::ErrorKind::InvalidData)));
        };
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX).next_multiple_of(4);
        datagram = datagram.get(length..).unwrap_or_default();
        Some(Ok(message))
    })
}

/// The errno at the start of an `NLMSG_ERROR` or `NLMSG_DONE`, negative or 0.
fn outcome(payload: &[u8]) -> io::Result<()> {
    let errno = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if errno == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-errno)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_read_back_as_written() {
        let written = Attributes::default()
            .put(1, &[7])
            .put_str(2, "nat")
            .nest(3, Attributes::default().put(1, &[1, 2, 3, 4]));
        let bytes = &written.0;
        assert_eq!(attribute(bytes, 1), Some(&[7u8][..]));
        assert_eq!(text(bytes, 2), Some("nat"));
        assert_eq!(
            attribute(attribute(bytes, 3).unwrap_or_default(), 1),
            Some(&[1u8, 2, 3, 4][..])
        );
        assert_eq!(attribute(bytes, 4), None);
    }

    #[test]
    fn bytes_cut_short_end_the_attributes_and_never_panic() {
        let written = Attributes::default().put_str(1, "filter").nest(2, Attributes::default());
        for length in 0..written.0.len() {
            let _ = each_attribute(&written.0[..length]).count();
            assert_eq!(text(&written.0[..length.min(9)], 1), None);
            let _ = messages(&written.0[..length]).count();
        }
    }

    #[test]
    fn an_errno_becomes_an_error() {
        assert!(outcome(&0i32.to_ne_bytes()).is_ok());
        assert!(outcome(&[]).is_ok(), "NLMSG_DONE of old kernels carries nothing");
        let error = outcome(&(-2i32).to_ne_bytes()).err().and_then(|e| e.raw_os_error());
        assert_eq!(error, Some(2));
    }
}
