//! Addresses and names as the API writes them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Longest DNS label, RFC 1123.
const MAX_LABEL: usize = 63;
/// Longest DNS subdomain that the API accepts as a name.
const MAX_SUBDOMAIN: usize = 253;

/// An address. IPv4 numbers may have leading zeros and are decimal all the same (B-087); IPv4 in
/// IPv6 notation is IPv4, as Go has it.
pub(super) fn parse_ip(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        let v6: Ipv6Addr = text.parse().ok()?;
        return Some(IpAddr::V6(v6).to_canonical());
    }
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        *octet = decimal(parts.next()?)?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets).into())
}

/// A CIDR, host bits cleared; leading zeros as in [`parse_ip`], in the prefix length too.
pub(super) fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    let net = IpNet::new(parse_ip(address)?, decimal(prefix)?).ok()?;
    Some(net.trunc())
}

/// Digits only: no sign, no white space, any number of leading zeros.
fn decimal(text: &str) -> Option<u8> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A DNS label as of RFC 1123: lower-case letters, digits, inner hyphens, at most 63.
pub(super) fn is_label(text: &str) -> bool {
    text.len() <= MAX_LABEL && has_label_charset(text)
}

/// Labels joined by dots, at most 253 characters. As in the API, a label's own length is not limited.
pub(super) fn is_subdomain(text: &str) -> bool {
    text.len() <= MAX_SUBDOMAIN && text.split('.').all(has_label_charset)
}

fn has_label_charset(text: &str) -> bool {
    let alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(alphanumeric)
        && bytes.last().is_some_and(alphanumeric)
        && bytes.iter().all(|byte| *byte == b'-' || alphanumeric(byte))
}
