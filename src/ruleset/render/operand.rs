//! What a register holds, in nft's words.

use super::value;
use crate::model::Family;
use crate::ruleset::{CmpOp, CtDirection, CtKey, FibResult, Key, MetaKey, PayloadBase};

/// What was loaded into a register.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Operand {
    /// An address of the packet or of its flow: the text, and how many bytes were loaded.
    Address(String, usize),
    Protocol(String),
    /// The transport protocol of the packet, the one later matches depend on.
    L4Proto,
    /// A port of the packet: `sport` or `dport`.
    Port(&'static str),
    /// The port of a conntrack tuple.
    CtPort(String),
    IifName,
    Iif,
    AddressType(&'static str),
    /// Conntrack state or status with the names of its bits.
    Bits(&'static str, &'static [(u32, &'static str)]),
    Random(u32),
    Constant(Key),
    /// What a map had for a key.
    Mapped(String),
    /// The operand with bits cut off.
    Masked(Box<Operand>, Key),
    Raw(String),
}

/// `enum ip_conntrack_info` as bits (`NF_CT_STATE_BIT`).
const STATES: &[(u32, &str)] =
    &[(1, "invalid"), (2, "established"), (4, "related"), (8, "new"), (64, "untracked")];
/// `enum ip_conntrack_status`, those that nft names.
const STATUSES: &[(u32, &str)] = &[
    (1, "expected"),
    (2, "seen-reply"),
    (4, "assured"),
    (8, "confirmed"),
    (16, "snat"),
    (32, "dnat"),
    (512, "dying"),
];

impl Operand {
    /// Packet bytes.
    pub(super) fn payload(family: Family, base: PayloadBase, offset: u32, len: u32) -> Operand {
        // Offsets in struct iphdr and struct ipv6hdr.
        let (saddr, daddr, protocol, protocol_name) = match family {
            Family::V4 => (12, 16, 9, "protocol"),
            Family::V6 => (8, 24, 6, "nexthdr"),
        };
        let address = |name| Operand::Address(format!("{} {name}", family.nft()), len as usize);
        let fits = len as usize <= family.address_len();
        match base {
            PayloadBase::Network if offset == saddr && fits => address("saddr"),
            PayloadBase::Network if offset == daddr && fits => address("daddr"),
            PayloadBase::Network if (offset, len) == (protocol, 1) => {
                Operand::Protocol(format!("{} {protocol_name}", family.nft()))
            }
            PayloadBase::Transport if (offset, len) == (0, 2) => Operand::Port("sport"),
            PayloadBase::Transport if (offset, len) == (2, 2) => Operand::Port("dport"),
            PayloadBase::Network => Operand::Raw(format!("@nh,{},{}", offset * 8, len * 8)),
            PayloadBase::Transport => Operand::Raw(format!("@th,{},{}", offset * 8, len * 8)),
        }
    }

    /// A property of the packet.
    pub(super) fn meta(key: MetaKey) -> Operand {
        match key {
            MetaKey::L4Proto => Operand::L4Proto,
            MetaKey::IifName => Operand::IifName,
            MetaKey::Iif => Operand::Iif,
        }
    }

    /// A property of its flow.
    pub(super) fn ct(key: CtKey, direction: Option<CtDirection>) -> Operand {
        let direction = match direction {
            Some(CtDirection::Original) => "original ",
            Some(CtDirection::Reply) => "reply ",
            None => "",
        };
        match key {
            CtKey::State => Operand::Bits("ct state", STATES),
            CtKey::Status => Operand::Bits("ct status", STATUSES),
            CtKey::SrcIp => Operand::Address(format!("ct {direction}ip saddr"), 4),
            CtKey::DstIp => Operand::Address(format!("ct {direction}ip daddr"), 4),
            CtKey::SrcIp6 => Operand::Address(format!("ct {direction}ip6 saddr"), 16),
            CtKey::DstIp6 => Operand::Address(format!("ct {direction}ip6 daddr"), 16),
            CtKey::Protocol => Operand::Protocol(format!("ct {direction}protocol")),
            CtKey::ProtoDst => Operand::CtPort(format!("ct {direction}proto-dst")),
        }
    }

    /// The type of an address.
    pub(super) fn fib(result: FibResult) -> Operand {
        Operand::AddressType(match result {
            FibResult::SourceType => "fib saddr type",
            FibResult::DestinationType => "fib daddr type",
        })
    }

    /// Whether it says which transport header follows.
    pub(super) fn is_protocol_of_packet(&self) -> bool {
        match self {
            Operand::L4Proto => true,
            Operand::Protocol(text) => !text.starts_with("ct "),
            _ => false,
        }
    }

    /// The operand by itself; ports are named after the protocol if the rule has fixed it.
    pub(super) fn text(&self, protocol: Option<&str>) -> String {
        match self {
            Operand::Address(text, _)
            | Operand::Protocol(text)
            | Operand::CtPort(text)
            | Operand::Mapped(text)
            | Operand::Raw(text) => text.clone(),
            Operand::L4Proto => "meta l4proto".into(),
            Operand::Port(name) => format!("{} {name}", protocol.unwrap_or("th")),
            Operand::IifName => "iifname".into(),
            Operand::Iif => "iif".into(),
            Operand::AddressType(text) | Operand::Bits(text, _) => (*text).into(),
            Operand::Random(modulus) => format!("numgen random mod {modulus}"),
            Operand::Constant(data) => value::hex(data.as_bytes()),
            Operand::Masked(operand, mask) => {
                format!("{} & {}", operand.text(protocol), value::hex(mask.as_bytes()))
            }
        }
    }

    /// The operand compared with data.
    pub(super) fn compare(&self, op: CmpOp, data: &Key, protocol: Option<&str>) -> String {
        let not = match (op, self) {
            (CmpOp::Neq, _) => "!= ",
            // Without it a flag means: this one and maybe others.
            (CmpOp::Eq, Operand::Bits(..)) => "== ",
            (CmpOp::Eq, _) => "",
        };
        let bytes = data.as_bytes();
        if let Operand::Masked(operand, mask) = self
            && let Some(text) = operand.compare_masked(op, mask, data)
        {
            return text;
        }
        let right = match self {
            Operand::Address(_, len) => address(bytes, *len),
            Operand::Protocol(_) | Operand::L4Proto => {
                value::protocol(bytes.first().copied().unwrap_or(0))
            }
            Operand::Port(_) | Operand::CtPort(_) if bytes.len() >= 2 => {
                u16::from_be_bytes([bytes[0], bytes[1]]).to_string()
            }
            Operand::IifName => interface(bytes),
            Operand::Iif => data.slot_at(0).unwrap_or(0).to_string(),
            Operand::AddressType(_) => address_type(data.slot_at(0).unwrap_or(0)),
            Operand::Bits(_, names) => value::bits(names, data.slot_at(0).unwrap_or(0)),
            _ => value::hex(bytes),
        };
        format!("{} {not}{right}", self.text(protocol))
    }

    /// Networks, and flags of conntrack.
    fn compare_masked(&self, op: CmpOp, mask: &Key, data: &Key) -> Option<String> {
        match self {
            Operand::Address(text, _) => {
                let len = value::mask_length(mask.as_bytes())?;
                let not = if op == CmpOp::Neq { "!= " } else { "" };
                Some(format!("{text} {not}{}/{len}", value::address(data.as_bytes())?))
            }
            Operand::Bits(text, names) if data.slot_at(0) == Some(0) => {
                let none_of = if op == CmpOp::Eq { "! " } else { "" };
                Some(format!("{text} {none_of}{}", value::bits(names, mask.slot_at(0)?)))
            }
            _ => None,
        }
    }
}

/// nft loads only the first bytes of an address to match a network that ends at a byte.
fn address(bytes: &[u8], loaded: usize) -> String {
    match bytes.len() {
        4 | 16 if bytes.len() == loaded => value::address(bytes).unwrap_or_default(),
        short => {
            let whole = if loaded <= 4 && short <= 4 { 4 } else { 16 };
            let mut padded = bytes.to_vec();
            padded.resize(whole, 0);
            format!("{}/{}", value::address(&padded).unwrap_or_default(), short * 8)
        }
    }
}

/// A whole name is padded with zeros, the start of one is not.
fn interface(bytes: &[u8]) -> String {
    let name: Vec<u8> = bytes.iter().copied().take_while(|&byte| byte != 0).collect();
    let any = if name.len() == bytes.len() { "*" } else { "" };
    format!("\"{}{any}\"", String::from_utf8_lossy(&name))
}

/// `enum` of route types in `linux/rtnetlink.h`.
fn address_type(number: u32) -> String {
    match number {
        1 => "unicast".into(),
        2 => "local".into(),
        3 => "broadcast".into(),
        5 => "multicast".into(),
        _ => number.to_string(),
    }
}
