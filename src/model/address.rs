//! IP addresses, `IP:port` pairs and CIDRs in the spellings that upstream takes.
//!
//! Place in the flow: used by flags, validation, resolution and what people dial alike, so that one
//! spelling means one thing. "Sloppy" (section 1.3): octets of IPv4 may have leading zeros and are
//! decimal.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;

use super::Protocol;

/// An IP address; `None` if it is none. No brackets, no zone. One of IPv4 that is mapped into IPv6,
/// `::ffff:10.0.0.1`, is the IPv4 address, as Go has it.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    parse_unmapped(text).map(|ip| ip.to_canonical())
}

fn parse_unmapped(text: &str) -> Option<IpAddr> {
    if !text.contains(':') {
        return parse_sloppy_ipv4(text).map(IpAddr::V4);
    }
    if let Some((head, tail)) = text.rsplit_once(':').filter(|(_, tail)| tail.contains('.')) {
        let embedded = parse_sloppy_ipv4(tail)?;
        return format!("{head}:{embedded}").parse().ok();
    }
    text.parse().ok()
}

fn parse_sloppy_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        let digits_only = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let significant = part.trim_start_matches('0');
        *octet = match (digits_only, significant) {
            (false, _) => return None,
            (true, "") => 0,
            (true, digits) => digits.parse().ok()?,
        };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// Length of the prefix before an IPv4 address that is mapped into IPv6.
const MAPPED: u8 = 96;

/// A CIDR, host bits kept as written; `None` if it is none.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let plain_number = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    if !plain_number {
        return None;
    }
    let (written, length) = (parse_unmapped(address)?, length.parse::<u8>().ok()?);
    let mapped = |ip: &IpAddr| ip.is_ipv6() && ip.to_canonical().is_ipv4() && length >= MAPPED;
    match written {
        ip if mapped(&ip) => IpNet::new(ip.to_canonical(), length - MAPPED).ok(),
        ip => IpNet::new(ip, length).ok(),
    }
}

/// `IP:port` or `[IP]:port`; the port may be 0. `None` for host names and missing ports.
pub fn parse_ip_port(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let address = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(inner) => parse_ip(inner)?,
        None if host.contains(':') => return None,
        None => parse_ip(host)?,
    };
    let plain_number = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    plain_number.then(|| port.parse().ok()).flatten().map(|port| SocketAddr::new(address, port))
}

/// The protocol behind the last slash, if it is one, and what stands before it.
pub fn split_protocol(text: &str) -> (&str, Option<Protocol>) {
    let split = text.rsplit_once('/');
    let known = split.and_then(|(rest, name)| {
        Protocol::from_api(&name.to_uppercase()).map(|protocol| (rest, Some(protocol)))
    });
    known.unwrap_or((text, None))
}

/// `ADDRESS:PORT[/PROTOCOL]`; TCP without a protocol.
pub fn parse_destination(text: &str) -> Option<(SocketAddr, Protocol)> {
    let (rest, protocol) = split_protocol(text);
    parse_ip_port(rest).map(|address| (address, protocol.unwrap_or(Protocol::Tcp)))
}

/// Appends a port to a bare IP, in brackets if it is IPv6; everything else stays as it is, for
/// validation to judge (B-009, B-010).
pub fn append_port(text: &str, port: i32) -> String {
    match parse_ip(text) {
        Some(_) if text.contains(':') => format!("[{text}]:{port}"),
        Some(_) => format!("{text}:{port}"),
        None => text.to_owned(),
    }
}

/// Whether a text is an IPv4 address; upstream asks this of `bindAddress`.
pub fn is_ipv4(text: &str) -> bool {
    matches!(parse_ip(text), Some(IpAddr::V4(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let cases = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.01", Some("10.0.0.1")),
            ("::", Some("::")),
            ("fd00::1", Some("fd00::1")),
            ("::ffff:010.0.0.1", Some("10.0.0.1")),
            ("::ffff:a00:1", Some("10.0.0.1")),
            ("::10.0.0.1", Some("::a00:1")),
            ("[::]", None),
            ("256.0.0.1", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.+1", None),
            ("localhost", None),
            ("fe80::1%eth0", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_ip(text).map(|ip| ip.to_string()).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn cidrs_and_ports() {
        let cidrs = [
            ("10.0.0.0/8", true),
            ("fd00::/64", true),
            ("10.0.0.1/8", true),
            ("10.0.0.0/33", false),
            ("10.0.0.0", false),
            (" 10.0.0.0/8", false),
            ("10.0.0.0/+8", false),
            ("::ffff:10.0.0.0/104", true),
            ("::ffff:10.0.0.0/129", false),
            ("", false),
        ];
        for (text, valid) in cidrs {
            assert_eq!(parse_cidr(text).is_some(), valid, "{text:?}");
        }
        let shown = |text| parse_cidr(text).map(|net| net.to_string()).unwrap_or_default();
        assert_eq!(shown("::ffff:10.0.0.0/104"), "10.0.0.0/8");
        assert_eq!(shown("::ffff:10.0.0.0/80"), "::ffff:10.0.0.0/80");
        let pairs = [
            ("1.2.3.4:80", true),
            ("[::1]:80", true),
            ("1.2.3.4:0", true),
            ("::1:80", false),
            ("1.2.3.4", false),
            ("host:80", false),
            ("1.2.3.4:70000", false),
            ("[1::", false),
        ];
        for (text, valid) in pairs {
            assert_eq!(parse_ip_port(text).is_some(), valid, "{text:?}");
        }
    }

    // B-010: IPv6 gets brackets.
    #[test]
    fn ports_are_appended_to_bare_addresses_only() {
        let cases = [
            ("1.2.3.4", "1.2.3.4:10256"),
            ("fd00::1", "[fd00::1]:10256"),
            ("1.2.3.4:1", "1.2.3.4:1"),
            ("[fd00::1]:1", "[fd00::1]:1"),
            ("host", "host"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(append_port(text, 10256), expected, "{text:?}");
        }
    }
}
