//! What the kernel answers to a batch.
//!
//! Pure: datagrams in, verdict out. A rejected batch may bring an error for each of several messages
//! and the requested ack besides: any error beats the ack, and the first counts, since later ones
//! often only follow from it. Replies to other sequence numbers are left from earlier and ignored.

use super::attribute::{
    ATTRIBUTE_HEADER, Attributes, MESSAGE_HEADER, Message, Messages, Truncated, u32_at,
};
use super::uapi::*;

/// An error the kernel reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    /// Sequence number of the message it is about.
    pub seq: u32,
    /// Where in that message the offending attribute starts.
    pub offset: Option<u32>,
    /// Positive errno.
    pub errno: i32,
}

/// What has been heard so far.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Replies {
    pub refusal: Option<Refusal>,
    /// Whether the requested ack came.
    pub acked: bool,
}

impl Replies {
    /// Takes in a datagram. `ours` tells the sequence numbers of the batch.
    pub fn add(
        &mut self,
        datagram: &[u8],
        acked_seq: u32,
        ours: impl Fn(u32) -> bool,
    ) -> Result<(), Truncated> {
        for message in Messages::new(datagram) {
            let message = message?;
            if message.kind != NLMSG_ERROR || !ours(message.seq) {
                continue;
            }
            let (errno, offset) = error(&message).ok_or(Truncated)?;
            if errno != 0 {
                self.refusal.get_or_insert(Refusal { seq: message.seq, offset, errno });
            } else if message.seq == acked_seq {
                self.acked = true;
            }
        }
        Ok(())
    }

    /// Whether the outcome is settled.
    pub fn settled(&self) -> bool {
        self.acked || self.refusal.is_some()
    }
}

/// The positive errno of an error message (0: an ack) and, from its extended ack, the offset of the
/// offending attribute. Shape: `struct nlmsgerr`, which quotes the request or only its header, then
/// attributes.
pub(super) fn error(message: &Message<'_>) -> Option<(i32, Option<u32>)> {
    let errno = (u32_at(message.payload, 0)? as i32).checked_neg()?;
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return Some((errno, None));
    }
    let quoted = if message.flags & NLM_F_CAPPED != 0 {
        MESSAGE_HEADER
    } else {
        (u32_at(message.payload, 4)? as usize).checked_next_multiple_of(4)?
    };
    let attributes = message.payload.get(quoted.checked_add(ATTRIBUTE_HEADER)?..)?;
    // Netlink's own numbers are in host order, unlike nf_tables'.
    let offset = Attributes::new(attributes).get(NLMSGERR_ATTR_OFFS).and_then(|b| u32_at(b, 0));
    Some((errno, offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::attribute::{begin_message, end_message, put};

    /// An error message as the kernel sends it: the quoted header, and the offset if there is one.
    fn reply(seq: u32, errno: i32, offset: Option<u32>) -> Vec<u8> {
        let mut buf = Vec::new();
        let tlvs = if offset.is_some() { NLM_F_ACK_TLVS } else { 0 };
        let start = begin_message(&mut buf, NLMSG_ERROR, NLM_F_CAPPED | tlvs, seq, [0; 4]);
        // begin_message wrote four bytes for nfgenmsg, where an error has its errno.
        buf.truncate(start + MESSAGE_HEADER);
        buf.extend_from_slice(&(-errno).to_ne_bytes());
        buf.extend_from_slice(&[0; MESSAGE_HEADER]);
        if let Some(offset) = offset {
            put(&mut buf, NLMSGERR_ATTR_OFFS, &offset.to_ne_bytes());
        }
        end_message(&mut buf, start);
        buf
    }

    fn heard(datagrams: &[Vec<u8>]) -> Replies {
        let mut replies = Replies::default();
        for datagram in datagrams {
            replies.add(datagram, 9, |seq| (5..=10).contains(&seq)).unwrap();
        }
        replies
    }

    #[test]
    fn outcomes() {
        let refusal = |seq, errno, offset| Some(Refusal { seq, errno, offset });
        let cases = [
            ("nothing", vec![], None, false),
            ("ack", vec![reply(9, 0, None)], None, true),
            ("ack of another message", vec![reply(6, 0, None)], None, false),
            ("stale replies", vec![reply(4, 17, None), reply(11, 0, None)], None, false),
            ("error", vec![reply(6, 17, Some(64))], refusal(6, 17, Some(64)), false),
            (
                "error, then ack",
                vec![reply(6, 2, None), reply(9, 0, None)],
                refusal(6, 2, None),
                true,
            ),
            (
                "ack, then error",
                vec![reply(9, 0, None), reply(6, 2, None)],
                refusal(6, 2, None),
                true,
            ),
            ("two errors", vec![reply(6, 2, None), reply(7, 17, None)], refusal(6, 2, None), false),
        ];
        for (name, datagrams, refusal, acked) in cases {
            assert_eq!(heard(&datagrams), Replies { refusal, acked }, "{name}");
            assert_eq!(heard(&[datagrams.concat()]), Replies { refusal, acked }, "{name}, joined");
        }
    }

    #[test]
    fn every_truncation_is_told() {
        let whole = reply(6, 17, Some(64));
        for len in 1..whole.len() {
            let mut replies = Replies::default();
            assert_eq!(replies.add(&whole[..len], 9, |_| true), Err(Truncated), "{len} bytes");
        }
    }

    #[test]
    fn an_errno_that_cannot_be_negated_is_malformed() {
        let mut datagram = reply(6, 17, None);
        datagram[16..20].copy_from_slice(&i32::MIN.to_ne_bytes());
        assert_eq!(Replies::default().add(&datagram, 9, |_| true), Err(Truncated));
    }
}
