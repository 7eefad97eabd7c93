//! Values as nft prints them.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::ruleset::{Field, Key, Verdict};

/// The fields of a concatenation, each with its bytes without padding; ends where the key does.
pub(crate) fn split<'a>(
    fields: &'a [Field],
    key: &'a Key,
) -> impl Iterator<Item = (Field, &'a [u8])> {
    fields.iter().scan(0, |offset, &field| {
        let bytes = key.as_bytes().get(*offset..*offset + field.byte_len())?;
        *offset += field.padded_len();
        Some((field, bytes))
    })
}

/// A key or data: `10.96.0.1 . tcp . 80`.
pub(crate) fn key(fields: &[Field], key: &Key) -> String {
    let texts: Vec<String> = split(fields, key).map(|(f, bytes)| field(f, bytes)).collect();
    texts.join(" . ")
}

/// One field. Bytes beyond the field's length are padding.
pub(crate) fn field(field: Field, bytes: &[u8]) -> String {
    let Some(bytes) = bytes.get(..field.byte_len()) else { return hex(bytes) };
    match (field, bytes) {
        (Field::InetProto, &[number]) => protocol(number),
        (Field::InetService, &[high, low]) => u16::from_be_bytes([high, low]).to_string(),
        (Field::Mark, &[a, b, c, d]) => format!("0x{:08x}", u32::from_ne_bytes([a, b, c, d])),
        _ => address(bytes).unwrap_or_else(|| hex(bytes)),
    }
}

/// An address of either family, told by its length.
pub(crate) fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Some(Ipv4Addr::from(octets).to_string());
    }
    <[u8; 16]>::try_from(bytes).ok().map(|octets| Ipv6Addr::from(octets).to_string())
}

/// A protocol by its name in `/etc/protocols`, which nft reads; of the names there only those that
/// may appear in our rules.
pub(crate) fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "ipv6-icmp".into(),
        132 => "sctp".into(),
        _ => number.to_string(),
    }
}

/// Bytes nobody told the type of.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

/// A range of addresses: a CIDR if it is one, one address if it is one, else both ends.
pub(crate) fn range(fields: &[Field], first: &Key, last: &Key) -> String {
    match prefix_length(first.as_bytes(), last.as_bytes()) {
        Some(len) if len == first.as_bytes().len() * 8 => key(fields, first),
        Some(len) => format!("{}/{len}", key(fields, first)),
        None => format!("{}-{}", key(fields, first), key(fields, last)),
    }
}

/// The length of the prefix whose first and last address these are.
fn prefix_length(first: &[u8], last: &[u8]) -> Option<usize> {
    let mask: Vec<u8> = first.iter().zip(last).map(|(a, b)| !(a ^ b)).collect();
    let aligned = first.iter().zip(&mask).all(|(byte, mask)| byte & !mask == 0);
    if aligned { mask_length(&mask) } else { None }
}

/// The number of leading ones of a mask that has no others.
pub(crate) fn mask_length(mask: &[u8]) -> Option<usize> {
    let ones = mask.iter().map(|byte| byte.count_ones() as usize).sum::<usize>();
    let leading = mask
        .iter()
        .flat_map(|byte| (0..8).map(move |bit| byte << bit & 0x80))
        .take_while(|&b| b > 0);
    (leading.count() == ones).then_some(ones)
}

/// A duration in milliseconds: `1d2h3m4s5ms`, parts that are zero left out.
pub(crate) fn duration(millis: u64) -> String {
    if millis == 0 {
        return "0s".into();
    }
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
    let mut rest = millis;
    let mut text = String::new();
    for (unit, name) in units {
        if rest >= unit {
            text += &format!("{}{name}", rest / unit);
            rest %= unit;
        }
    }
    text
}

pub(crate) fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Return => "return".into(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
    }
}

/// The names of the bits of a conntrack mask, lowest first.
pub(crate) fn bits(names: &[(u32, &str)], mask: u32) -> String {
    let mut rest = mask;
    let mut texts: Vec<String> = Vec::new();
    for (bit, name) in names {
        if rest & bit != 0 {
            rest &= !bit;
            texts.push((*name).to_owned());
        }
    }
    if rest != 0 || texts.is_empty() {
        texts.push(format!("0x{rest:x}"));
    }
    texts.join(",")
}
