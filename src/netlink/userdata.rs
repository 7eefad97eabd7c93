//! User data: what nft keeps with an object for the next reader, here only comments and byte orders.
//!
//! A sequence of type (1 byte), length (1 byte), value. The kernel stores it unread. Source:
//! libnftnl's `udata.h`; stock nft prints the comments.

use super::attribute::text;

/// Longest user data. Objects may have 256 bytes (`NFT_USERDATA_MAXLEN`), but with elements the
/// kernel counts them and one more in a byte, and silently drops what overflows it (6.18).
const MAX_LEN: usize = 254;

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
    let room = MAX_LEN - userdata.len() - 3;
    let end = (0..=room.min(comment.len())).rev().find(|&at| comment.is_char_boundary(at));
    let end = end.expect("every text has a boundary at 0");
    // Length of the text and its NUL: below MAX_LEN.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_come_back_cut_at_a_character() {
        let long = "x".repeat(250) + "\u{e9}";
        let cases = [("", ""), ("ns/web:http", "ns/web:http"), (&long, &long[..250])];
        for (written, read) in cases {
            let mut data = Vec::new();
            put_comment(&mut data, COMMENT, written);
            assert!(data.len() <= MAX_LEN, "{} bytes", data.len());
            assert_eq!(comment(&data, COMMENT), Some(read));
        }
    }

    #[test]
    fn a_comment_is_found_behind_other_values() {
        let mut data = Vec::new();
        put_u32(&mut data, SET_KEY_BYTE_ORDER, 1);
        put_comment(&mut data, SET_COMMENT, "text");
        assert_eq!(comment(&data, SET_COMMENT), Some("text"));
        assert_eq!(comment(&data, SET_DATA_BYTE_ORDER), None);
        for len in 0..data.len() {
            assert_eq!(comment(&data[..len], SET_COMMENT), None, "{len} bytes");
        }
    }
}
