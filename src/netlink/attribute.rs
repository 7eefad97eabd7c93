//! Netlink's framing: messages and attributes, written and read.
//!
//! Place in the flow: below everything else in [`super`]. Safe code throughout. The writer appends to
//! a byte vector; the reader borrows from one and checks every length, so no bytes make it panic.
//! It knows nothing of nf_tables beyond the fixed headers. Source: `include/uapi/linux/netlink.h`.

use super::uapi::*;

/// Bytes of `struct nlmsghdr`.
pub(super) const MESSAGE_HEADER: usize = 16;
/// Bytes of `struct nlattr`.
pub(super) const ATTRIBUTE_HEADER: usize = 4;

/// Type of an nf_tables message: subsystem and message.
pub(super) const fn nft_type(message: u8) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message as u16
}

/// Starts a message with the four bytes of `nfgenmsg` or `genlmsghdr` and returns its position for [`end_message`].
pub(super) fn begin_message(
    buf: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    seq: u32,
    fixed: [u8; 4],
) -> usize {
    let start = buf.len();
    buf.extend_from_slice(&0u32.to_ne_bytes());
    buf.extend_from_slice(&kind.to_ne_bytes());
    buf.extend_from_slice(&flags.to_ne_bytes());
    buf.extend_from_slice(&seq.to_ne_bytes());
    buf.extend_from_slice(&0u32.to_ne_bytes());
    buf.extend_from_slice(&fixed);
    start
}

/// Fills in the length of the message that starts at `start` and ends the buffer.
pub(super) fn end_message(buf: &mut [u8], start: usize) {
    let len = u32::try_from(buf.len() - start).expect("a message holds at most a few 64 KiB nests");
    buf[start..start + 4].copy_from_slice(&len.to_ne_bytes());
}

/// Appends an attribute, padded to 4 bytes.
///
/// # Panics
/// If the payload exceeds what an attribute can hold; callers pass names, keys and short texts.
pub(super) fn put(buf: &mut Vec<u8>, kind: u16, payload: &[u8]) {
    let len = u16::try_from(ATTRIBUTE_HEADER + payload.len()).expect("short payload");
    buf.extend_from_slice(&len.to_ne_bytes());
    buf.extend_from_slice(&kind.to_ne_bytes());
    buf.extend_from_slice(payload);
    buf.resize(buf.len().next_multiple_of(4), 0);
}

/// Appends a 32-bit number in network order, as nf_tables wants all of them.
pub(super) fn put_u32(buf: &mut Vec<u8>, kind: u16, value: u32) {
    put(buf, kind, &value.to_be_bytes());
}

/// Appends a 64-bit number in network order.
pub(super) fn put_u64(buf: &mut Vec<u8>, kind: u16, value: u64) {
    put(buf, kind, &value.to_be_bytes());
}

/// Appends a text with its NUL.
pub(super) fn put_str(buf: &mut Vec<u8>, kind: u16, text: &str) {
    let mut payload = Vec::with_capacity(text.len() + 1);
    payload.extend_from_slice(text.as_bytes());
    payload.push(0);
    put(buf, kind, &payload);
}

/// Starts a nest and returns its position for [`end_nest`].
pub(super) fn begin_nest(buf: &mut Vec<u8>, kind: u16) -> usize {
    let start = buf.len();
    buf.extend_from_slice(&0u16.to_ne_bytes());
    buf.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
    start
}

/// Fills in the length of the nest that starts at `start` and ends the buffer.
pub(super) fn end_nest(buf: &mut [u8], start: usize) {
    let len = u16::try_from(buf.len() - start).expect("callers split nests at 64 KiB");
    buf[start..start + 2].copy_from_slice(&len.to_ne_bytes());
}

/// The bytes are no sequence of whole netlink messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("truncated netlink message")]
pub struct Truncated;

/// One netlink message, borrowed from what was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: of the request this answers.
    pub seq: u32,
    /// `nlmsg_pid`: port of the socket that asked for it or, in notifications, caused it.
    pub portid: u32,
    /// What follows the header.
    pub payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// The nf_tables message number, if it is one of nf_tables' messages.
    pub(super) fn nft(&self) -> Option<u8> {
        let [message, subsystem] = self.kind.to_le_bytes();
        (u16::from(subsystem) == NFNL_SUBSYS_NFTABLES).then_some(message)
    }

    /// The protocol family of `struct nfgenmsg`.
    pub(super) fn family(&self) -> Option<u8> {
        self.payload.first().copied()
    }

    /// The attributes behind `struct nfgenmsg`.
    pub(super) fn attributes(&self) -> Attributes<'a> {
        Attributes::new(self.payload.get(4..).unwrap_or_default())
    }
}

/// The messages of a datagram. Ends after the first that does not fit.
#[derive(Debug, Clone)]
pub struct Messages<'a>(&'a [u8]);

impl<'a> Messages<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Messages(bytes)
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Truncated>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let message = split_message(self.0);
        self.0 = message.map_or(&[], |(_, rest)| rest);
        Some(message.map(|(message, _)| message).ok_or(Truncated))
    }
}

fn split_message(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let len = u32_at(bytes, 0)? as usize;
    let message = Message {
        kind: u16_at(bytes, 4)?,
        flags: u16_at(bytes, 6)?,
        seq: u32_at(bytes, 8)?,
        portid: u32_at(bytes, 12)?,
        payload: bytes.get(MESSAGE_HEADER..len)?,
    };
    Some((message, bytes.get(len.next_multiple_of(4)..).unwrap_or_default()))
}

/// Reads 16 bits in host order.
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// Reads 32 bits in host order.
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attribute<'a> {
    /// Its type without flags.
    pub kind: u16,
    /// Its payload without padding.
    pub payload: &'a [u8],
}

/// A sequence of attributes. Ends silently at the first that does not fit: what came before counts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Attributes(bytes)
    }

    /// The payload of the last attribute of a type; the kernel's parser lets the last one win too.
    pub fn get(self, kind: u16) -> Option<&'a [u8]> {
        self.filter(|a| a.kind == kind).last().map(|a| a.payload)
    }

    /// A nest; an absent one is empty.
    pub fn nest(self, kind: u16) -> Attributes<'a> {
        Attributes::new(self.get(kind).unwrap_or_default())
    }

    /// A 32-bit number in network order.
    pub fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A 64-bit number in network order.
    pub fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.get(kind)?.try_into().ok()?))
    }

    /// A text; its NUL and what follows are left out.
    pub fn str(self, kind: u16) -> Option<&'a str> {
        text(self.get(kind)?)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let len = usize::from(u16_at(self.0, 0)?);
        let kind = u16_at(self.0, 2)? & NLA_TYPE_MASK;
        let payload = self.0.get(ATTRIBUTE_HEADER..len)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind, payload })
    }
}

/// Text up to the first NUL, if it is UTF-8.
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|&b| b == 0).next()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_written() {
        let mut buf = Vec::new();
        put_u32(&mut buf, 1, 0x01020304);
        put_str(&mut buf, 2, "abcd");
        let nest = begin_nest(&mut buf, 3);
        put_u64(&mut buf, 4, 5);
        end_nest(&mut buf, nest);
        assert_eq!(buf[..8], [8, 0, 1, 0, 1, 2, 3, 4], "numbers are in network order");
        assert_eq!(buf[8..20], [9, 0, 2, 0, b'a', b'b', b'c', b'd', 0, 0, 0, 0], "padded");
        let attributes = Attributes::new(&buf);
        assert_eq!(attributes.u32(1), Some(0x01020304));
        assert_eq!(attributes.str(2), Some("abcd"));
        assert_eq!(attributes.nest(3).u64(4), Some(5));
        assert_eq!(attributes.u32(9), None);
        assert_eq!(attributes.u64(1), None, "a number of another width is none");
    }

    #[test]
    fn the_last_of_two_equal_attributes_counts() {
        let mut buf = Vec::new();
        put_u32(&mut buf, 1, 1);
        put_u32(&mut buf, 1, 2);
        assert_eq!(Attributes::new(&buf).u32(1), Some(2));
    }

    #[test]
    fn malformed_attributes_end_the_sequence() {
        let cases: [(&str, &[u8]); 5] = [
            ("empty", &[]),
            ("half a header", &[8, 0, 1]),
            ("shorter than its header", &[3, 0, 1, 0]),
            ("length zero", &[0, 0, 1, 0, 0, 0, 0, 0]),
            ("longer than the buffer", &[9, 0, 1, 0, 1, 2, 3, 4]),
        ];
        for (name, bytes) in cases {
            assert_eq!(Attributes::new(bytes).count(), 0, "{name}");
        }
    }

    #[test]
    fn messages_come_back_as_written() {
        let mut buf = Vec::new();
        for seq in [7, 8] {
            let start =
                begin_message(&mut buf, nft_type(NFT_MSG_NEWSET), NLM_F_ACK, seq, [2, 0, 0, 0]);
            put_str(&mut buf, NFTA_SET_NAME, "x");
            end_message(&mut buf, start);
        }
        let messages: Vec<_> = Messages::new(&buf).collect::<Result<_, _>>().unwrap();
        assert_eq!(messages.iter().map(|m| m.seq).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(messages[0].nft(), Some(NFT_MSG_NEWSET));
        assert_eq!(messages[0].family(), Some(2));
        assert_eq!(messages[0].flags, NLM_F_ACK);
        assert_eq!(messages[0].attributes().str(NFTA_SET_NAME), Some("x"));
    }

    #[test]
    fn every_truncation_of_a_message_is_told() {
        let mut buf = Vec::new();
        let start = begin_message(&mut buf, nft_type(NFT_MSG_NEWSET), 0, 1, [2, 0, 0, 0]);
        put_u32(&mut buf, NFTA_SET_FLAGS, 1);
        end_message(&mut buf, start);
        for len in 1..buf.len() {
            let last = Messages::new(&buf[..len]).last();
            assert_eq!(last, Some(Err(Truncated)), "{len} bytes");
        }
        let lying = [0xff; 32];
        assert_eq!(Messages::new(&lying).collect::<Vec<_>>(), [Err(Truncated)]);
        let zero = [0; 32];
        assert_eq!(Messages::new(&zero).collect::<Vec<_>>(), [Err(Truncated)], "no endless loop");
    }
}
