//! Expressions of a dumped rule.
//!
//! Strict: an expression becomes a value of ours only if it does exactly what that value says.
//! Anything else, down to a flag we never set, stays [`Expr::Unknown`], so that a rule somebody
//! changed never looks like the one we wrote. Attribute numbers are those of the kernel's
//! `enum nft_*_attributes`.

use crate::netlink::attribute::Attributes;

use crate::netlink::element::{decode_verdict, name};
use crate::netlink::expr::counter;
use crate::netlink::uapi::*;
use crate::ruleset::{
    CmpOp, CtDirection, CtKey, Expr, FibResult, Key, MetaKey, PayloadBase, Register, RejectKind,
    SetUpdate,
};

pub(super) fn expr(attributes: Attributes<'_>) -> Expr {
    let name = attributes.str(NFTA_EXPR_NAME).unwrap_or_default();
    let data = attributes.nest(NFTA_EXPR_DATA);
    let known = match name {
        "payload" => payload(data),
        "meta" => meta(data),
        "ct" => ct(data),
        "fib" => fib(data),
        "numgen" => numgen(data),
        "bitwise" => bitwise(data),
        "cmp" => cmp(data),
        "immediate" => immediate(data),
        "lookup" => lookup(data),
        "dynset" => dynset(data),
        "nat" => nat(data),
        "masq" => masq(data),
        "reject" => reject(data),
        "counter" => counter(data),
        "objref" => count(data),
        _ => None,
    };
    known.unwrap_or_else(|| Expr::Unknown(name.to_owned()))
}

/// The inverse of `register_number`; the kernel writes registers as nft does.
fn register(data: Attributes<'_>, attribute: u16) -> Option<Register> {
    let word = match data.u32(attribute)? {
        number @ NFT_REG_1..=NFT_REG_4 => (number - NFT_REG_1) * 4,
        number @ NFT_REG32_00..=NFT_REG32_15 => number - NFT_REG32_00,
        _ => return None,
    };
    u8::try_from(word).ok().map(Register)
}

/// A register that may be missing, but must make sense if it is there.
fn maybe_register(data: Attributes<'_>, attribute: u16) -> Option<Option<Register>> {
    match data.get(attribute) {
        None => Some(None),
        Some(_) => register(data, attribute).map(Some),
    }
}

fn value(data: Attributes<'_>, attribute: u16) -> Option<Key> {
    Key::from_bytes(data.nest(attribute).get(NFTA_DATA_VALUE)?)
}

/// Succeeds if a flags attribute has none of these bits set.
fn without(data: Attributes<'_>, attribute: u16, bits: u32) -> Option<()> {
    (data.u32(attribute).unwrap_or(0) & bits == 0).then_some(())
}

fn payload(data: Attributes<'_>) -> Option<Expr> {
    const DREG: u16 = 1;
    const BASE: u16 = 2;
    const OFFSET: u16 = 3;
    const LEN: u16 = 4;
    Some(Expr::Payload {
        base: match data.u32(BASE)? {
            NFT_PAYLOAD_NETWORK_HEADER => PayloadBase::Network,
            NFT_PAYLOAD_TRANSPORT_HEADER => PayloadBase::Transport,
            _ => return None,
        },
        offset: data.u32(OFFSET)?,
        len: data.u32(LEN)?,
        dst: register(data, DREG)?,
    })
}

fn meta(data: Attributes<'_>) -> Option<Expr> {
    const DREG: u16 = 1;
    const KEY: u16 = 2;
    let key = match data.u32(KEY)? {
        NFT_META_L4PROTO => MetaKey::L4Proto,
        NFT_META_IIFNAME => MetaKey::IifName,
        NFT_META_IIF => MetaKey::Iif,
        _ => return None,
    };
    Some(Expr::Meta { key, dst: register(data, DREG)? })
}

fn ct(data: Attributes<'_>) -> Option<Expr> {
    const DREG: u16 = 1;
    const KEY: u16 = 2;
    const DIRECTION: u16 = 3;
    let key = match data.u32(KEY)? {
        NFT_CT_STATE => CtKey::State,
        NFT_CT_STATUS => CtKey::Status,
        NFT_CT_SRC_IP => CtKey::SrcIp,
        NFT_CT_DST_IP => CtKey::DstIp,
        NFT_CT_SRC_IP6 => CtKey::SrcIp6,
        NFT_CT_DST_IP6 => CtKey::DstIp6,
        NFT_CT_PROTOCOL => CtKey::Protocol,
        NFT_CT_PROTO_DST => CtKey::ProtoDst,
        _ => return None,
    };
    let direction = match data.get(DIRECTION) {
        None => None,
        Some([0]) => Some(CtDirection::Original),
        Some([1]) => Some(CtDirection::Reply),
        Some(_) => return None,
    };
    Some(Expr::Ct { key, direction, dst: register(data, DREG)? })
}

fn fib(data: Attributes<'_>) -> Option<Expr> {
    const DREG: u16 = 1;
    const RESULT: u16 = 2;
    const FLAGS: u16 = 3;
    (data.u32(RESULT)? == NFT_FIB_RESULT_ADDRTYPE).then_some(())?;
    let result = match data.u32(FLAGS)? {
        NFTA_FIB_F_SADDR => FibResult::SourceType,
        NFTA_FIB_F_DADDR => FibResult::DestinationType,
        _ => return None,
    };
    Some(Expr::Fib { result, dst: register(data, DREG)? })
}

fn numgen(data: Attributes<'_>) -> Option<Expr> {
    const DREG: u16 = 1;
    const MODULUS: u16 = 2;
    const TYPE: u16 = 3;
    const OFFSET: u16 = 4;
    (data.u32(TYPE)? == NFT_NG_RANDOM).then_some(())?;
    without(data, OFFSET, u32::MAX)?;
    Some(Expr::Random { modulus: data.u32(MODULUS)?, dst: register(data, DREG)? })
}

fn bitwise(data: Attributes<'_>) -> Option<Expr> {
    const SREG: u16 = 1;
    const DREG: u16 = 2;
    const MASK: u16 = 4;
    const XOR: u16 = 5;
    const OP: u16 = 6;
    without(data, OP, u32::MAX)?;
    Some(Expr::Bitwise {
        src: register(data, SREG)?,
        dst: register(data, DREG)?,
        mask: value(data, MASK)?,
        xor: value(data, XOR)?,
    })
}

fn cmp(data: Attributes<'_>) -> Option<Expr> {
    const SREG: u16 = 1;
    const OP: u16 = 2;
    const DATA: u16 = 3;
    let op = match data.u32(OP)? {
        NFT_CMP_EQ => CmpOp::Eq,
        NFT_CMP_NEQ => CmpOp::Neq,
        _ => return None,
    };
    Some(Expr::Cmp { op, src: register(data, SREG)?, data: value(data, DATA)? })
}

fn immediate(data: Attributes<'_>) -> Option<Expr> {
    const DREG: u16 = 1;
    const DATA: u16 = 2;
    if data.u32(DREG)? == NFT_REG_VERDICT {
        return decode_verdict(data.nest(DATA).nest(NFTA_DATA_VERDICT)).map(Expr::Verdict);
    }
    Some(Expr::Immediate { data: value(data, DATA)?, dst: register(data, DREG)? })
}

fn lookup(data: Attributes<'_>) -> Option<Expr> {
    const SET: u16 = 1;
    const SREG: u16 = 2;
    const DREG: u16 = 3;
    const FLAGS: u16 = 5;
    without(data, FLAGS, !NFT_LOOKUP_F_INV)?;
    let verdict = data.u32(DREG) == Some(NFT_REG_VERDICT);
    Some(Expr::Lookup {
        set: name(data.str(SET)?)?,
        src: register(data, SREG)?,
        dst: if verdict { None } else { maybe_register(data, DREG)? },
        verdict,
        inverted: data.u32(FLAGS).unwrap_or(0) & NFT_LOOKUP_F_INV != 0,
    })
}

fn dynset(data: Attributes<'_>) -> Option<Expr> {
    const SET_NAME: u16 = 1;
    const OP: u16 = 3;
    const SREG_KEY: u16 = 4;
    const SREG_DATA: u16 = 5;
    const TIMEOUT: u16 = 6;
    const EXPR: u16 = 7;
    const FLAGS: u16 = 9;
    without(data, FLAGS, u32::MAX)?;
    data.get(EXPR).is_none().then_some(())?;
    Some(Expr::Dynset {
        set: name(data.str(SET_NAME)?)?,
        update: match data.u32(OP)? {
            NFT_DYNSET_OP_ADD => SetUpdate::Add,
            NFT_DYNSET_OP_UPDATE => SetUpdate::Update,
            _ => return None,
        },
        key: register(data, SREG_KEY)?,
        data: maybe_register(data, SREG_DATA)?,
        timeout: data.u64(TIMEOUT).filter(|&timeout| timeout > 0),
    })
}

/// The kernel names the upper ends of both ranges too, equal to the lower ones where none was given.
fn nat(data: Attributes<'_>) -> Option<Expr> {
    const TYPE: u16 = 1;
    const REG_ADDR_MIN: u16 = 3;
    const REG_ADDR_MAX: u16 = 4;
    const REG_PROTO_MIN: u16 = 5;
    const REG_PROTO_MAX: u16 = 6;
    const FLAGS: u16 = 7;
    (data.u32(TYPE)? == NFT_NAT_DNAT).then_some(())?;
    without(data, FLAGS, !NF_NAT_RANGE_FROM_REGISTERS)?;
    let single = |min: u16, max: u16| {
        let register = register(data, min)?;
        data.get(max).is_none_or(|max| data.get(min) == Some(max)).then_some(register)
    };
    Some(Expr::Dnat {
        address: single(REG_ADDR_MIN, REG_ADDR_MAX)?,
        port: single(REG_PROTO_MIN, REG_PROTO_MAX)?,
    })
}

fn masq(data: Attributes<'_>) -> Option<Expr> {
    const FLAGS: u16 = 1;
    const REG_PROTO_MIN: u16 = 2;
    data.get(REG_PROTO_MIN).is_none().then_some(())?;
    (data.u32(FLAGS)? == NF_NAT_RANGE_PROTO_RANDOM_FULLY).then_some(Expr::Masquerade)
}

/// ICMP and ICMPv6 number "port unreachable" differently; the code itself tells which it is.
fn reject(data: Attributes<'_>) -> Option<Expr> {
    const TYPE: u16 = 1;
    const CODE: u16 = 2;
    match (data.u32(TYPE)?, data.get(CODE)) {
        (NFT_REJECT_TCP_RST, _) => Some(Expr::Reject(RejectKind::TcpReset)),
        (NFT_REJECT_ICMP_UNREACH, Some([ICMP_PORT_UNREACH | ICMPV6_PORT_UNREACH])) => {
            Some(Expr::Reject(RejectKind::PortUnreachable))
        }
        _ => None,
    }
}

fn counter(data: Attributes<'_>) -> Option<Expr> {
    Some(Expr::Counter { packets: data.u64(counter::PACKETS)?, bytes: data.u64(counter::BYTES)? })
}

fn count(data: Attributes<'_>) -> Option<Expr> {
    const IMM_TYPE: u16 = 1;
    const IMM_NAME: u16 = 2;
    (data.u32(IMM_TYPE)? == NFT_OBJECT_COUNTER).then_some(())?;
    Some(Expr::Count(name(data.str(IMM_NAME)?)?))
}
