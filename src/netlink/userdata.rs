//! User data: what nft keeps with an object for the next reader, here only comments and byte orders.
//!
//! A sequence of type (1 byte), length (1 byte), value. The kernel stores it unread. Source:
//! libnftnl's `udata.h`; stock nft prints the comments.

use super::attribute::text;

/// Longest user data the kernel keeps with an object (`NFT_USERDATA_MAXLEN`).
const MAX_LEN: usize = 256;

/// Type of the comment of a table, chain, rule or element.
pub(super) const COMMENT: u8 = 0;
/// Type of the byte order of a set's key.
pub(super) const SET_KEY_BYTE_ORDER: u8 = 0;
/// Type of the byte order of a map's data.
pub(super) const SET_DATA_BYTE_ORDER: u8 = 1;
/// Type of the comment of a set.
pub(super) const SET_COMMENT: u8 = 7;

/// Appends a comment with its NUL, cut at a character if it does not fit.
pub(super) fn put_comment(userdata: &mut Vec<u8>, kind: u8, comment: &str) {
    let room = (MAX_LEN - userdata.len() - 3).min(usize::from(u8::MAX) - 1);
    let end = (0..=room.min(comment.len())).rev().find(|&at| comment.is_char_boundary(at));
    let end = end.expect("every text has a boundary at 0");
    // Length of the text and its NUL: at most 255 because of the line above.
    userdata.extend_from_slice(&[kind, (end + 1) as u8]);
    userdata.extend_from_slice(&comment.as_bytes()[..end]);
    userdata.push(0);
}

/// Appends a number in host order.
pub(super) fn put_u32(userdata: &mut Vec<u8>, kind: u8, value: u32) {
    userdata.extend_from_slice(&[kind, 4]);
    userdata.extend_from_slice(&value.to_ne_bytes());
}

/// The comment in user data, if there is one.
pub(super) fn comment(mut userdata: &[u8], kind: u8) -> Option<&str> {
    while let [found, len, rest @ ..] = userdata {
        let value = rest.get(..usize::from(*len))?;
        if *found == kind {
            return text(value);
        }
        userdata = &rest[value.len()..];
    }
    None
}
