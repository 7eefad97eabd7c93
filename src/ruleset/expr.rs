//! Expressions: the instructions of nf_tables' virtual machine.
//!
//! Rules are kept as instructions, because that is what the kernel takes and gives back; text is
//! derived from them ([`super::render_rule`]), and so is the walk of a packet ([`super::walk`]).
//! Source: `include/uapi/linux/netfilter/nf_tables.h`.

use super::{Key, Name};

/// A 32-bit register, 0 to 15 (`NFT_REG32_00` + n). A value longer than 4 bytes goes on in the next ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Register(pub u8);

/// Which header a payload expression reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PayloadBase {
    /// `NFT_PAYLOAD_NETWORK_HEADER`.
    Network,
    /// `NFT_PAYLOAD_TRANSPORT_HEADER`.
    Transport,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MetaKey {
    /// `NFT_META_L4PROTO`: transport protocol, 1 byte.
    L4Proto,
    /// `NFT_META_IIFNAME`: name of the input interface, 16 bytes.
    IifName,
    /// `NFT_META_IIF`: index of the input interface, 4 bytes in host order, 0 without one.
    Iif,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CtKey {
    /// `NFT_CT_STATE`, a bit mask in host order.
    State,
    /// `NFT_CT_STATUS`, a bit mask in host order.
    Status,
    /// `NFT_CT_SRC_IP` (IPv4).
    SrcIp,
    /// `NFT_CT_DST_IP` (IPv4).
    DstIp,
    /// `NFT_CT_SRC_IP6`.
    SrcIp6,
    /// `NFT_CT_DST_IP6`.
    DstIp6,
    /// `NFT_CT_PROTOCOL`.
    Protocol,
    /// `NFT_CT_PROTO_DST`.
    ProtoDst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CtDirection {
    /// `IP_CT_DIR_ORIGINAL`.
    Original,
    /// `IP_CT_DIR_REPLY`.
    Reply,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CmpOp {
    Eq,
    Neq,
}

/// Which address a fib expression looks up; the result is always the address type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FibResult {
    /// `fib saddr type`.
    SourceType,
    /// `fib daddr type`.
    DestinationType,
}

/// How to refuse a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RejectKind {
    /// ICMP or ICMPv6 port unreachable.
    PortUnreachable,
    TcpReset,
}

/// What a dynset expression does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SetUpdate {
    /// `add`: insert if missing.
    Add,
    /// `update`: insert or refresh.
    Update,
}

/// Where evaluation goes on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Let it pass this base chain.
    Accept,
    /// Discard it silently.
    Drop,
    /// Go on in the calling chain.
    Return,
    /// Evaluate a chain, then come back.
    Jump(Name),
    /// Evaluate a chain, then go on where this one was called.
    Goto(Name),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Expr {
    /// Load packet bytes.
    Payload {
        base: PayloadBase,
        /// Bytes from its start.
        offset: u32,
        len: u32,
        /// First register written.
        dst: Register,
    },
    /// Load a property of the packet.
    Meta {
        key: MetaKey,
        dst: Register,
    },
    /// Load a property of its flow.
    Ct {
        key: CtKey,
        /// Of which direction, for tuple keys.
        direction: Option<CtDirection>,
        dst: Register,
    },
    /// Load the type of an address (`RTN_LOCAL` = 2), 4 bytes in host order.
    Fib {
        /// Whose.
        result: FibResult,
        dst: Register,
    },
    /// Load a random number in `0..modulus`, host order.
    Random {
        /// Exclusive upper bound.
        modulus: u32,
        dst: Register,
    },
    /// `dst = (src & mask) ^ xor`, all of the same length.
    Bitwise {
        src: Register,
        dst: Register,
        /// And.
        mask: Key,
        /// Then exclusive or.
        xor: Key,
    },
    /// Go on only if the register compares so with the data.
    Cmp {
        op: CmpOp,
        src: Register,
        data: Key,
    },
    /// Load constant data.
    Immediate {
        data: Key,
        dst: Register,
    },
    /// Look the registers up in a set or map; go on only if found (or, inverted, if not).
    Lookup {
        set: Name,
        /// First register of the key.
        src: Register,
        /// Data maps: first register written.
        dst: Option<Register>,
        /// Verdict maps: take the verdict that was found.
        verdict: bool,
        /// Go on if *not* found.
        inverted: bool,
    },
    /// Insert or refresh an element from the packet path.
    Dynset {
        set: Name,
        update: SetUpdate,
        /// First register of the key.
        key: Register,
        /// Maps: first register of the data.
        data: Option<Register>,
        /// Lifetime of the element, milliseconds.
        timeout: Option<u64>,
    },
    /// Send the flow to the address and port in the registers, and accept.
    Dnat {
        address: Register,
        port: Register,
    },
    /// Give the flow the source address of the outgoing interface with a random port, and accept.
    Masquerade,
    /// Answer with a refusal, and drop.
    Reject(RejectKind),
    Counter {
        packets: u64,
        bytes: u64,
    },
    /// Count by a named counter of the table.
    Count(Name),
    /// End the rule with a verdict.
    Verdict(Verdict),
    /// An instruction we never write, found in a dump; its name.
    Unknown(String),
}
