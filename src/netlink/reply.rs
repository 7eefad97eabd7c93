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
    /// The first error.
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
mod tests;
