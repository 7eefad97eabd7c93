//! Verdicts and the names of chains in them, for elements and rules alike.

use super::attribute::Attributes;
use super::uapi::*;
use crate::ruleset::{Name, Verdict};

/// The kernel's number of a verdict, and the chain it leads to.
pub(super) fn verdict_code(verdict: &Verdict) -> (i32, Option<&Name>) {
    match verdict {
        Verdict::Accept => (NF_ACCEPT, None),
        Verdict::Drop => (NF_DROP, None),
        Verdict::Return => (NFT_RETURN, None),
        Verdict::Jump(chain) => (NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (NFT_GOTO, Some(chain)),
    }
}

/// Reads a verdict; `None` for those we never use.
pub(super) fn decode_verdict(attributes: Attributes<'_>) -> Option<Verdict> {
    let chain = || attributes.str(NFTA_VERDICT_CHAIN).and_then(name);
    // The code is a signed number in network order.
    match attributes.u32(NFTA_VERDICT_CODE)? as i32 {
        NF_ACCEPT => Some(Verdict::Accept),
        NF_DROP => Some(Verdict::Drop),
        NFT_RETURN => Some(Verdict::Return),
        NFT_JUMP => Some(Verdict::Jump(chain()?)),
        NFT_GOTO => Some(Verdict::Goto(chain()?)),
        _ => None,
    }
}

/// A name, unless it is one that [`Name`] would refuse.
pub(super) fn name(text: &str) -> Option<Name> {
    (text.len() <= Name::MAX_LEN && !text.contains('\0')).then(|| Name::from(text))
}
