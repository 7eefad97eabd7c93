//! Expressions: from [`Expr`] to libnftnl objects.
//!
//! Place in the flow: [`super::batch`] adds them to `nftnl` rules. The `nftnl` crate's own expressions
//! are used for verdicts and refusals; the rest works on register 1 only there, or is missing, and is
//! built here over `nftnl-sys`. The way back is [`mod@super::decode`]. It knows nothing of messages.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use nftnl::expr::{Expression, RejectionType, Verdict as NftnlVerdict};
use nftnl::{ProtoFamily, Rule};
use nftnl_sys as sys;

use super::uapi::*;
use crate::ruleset::{
    CmpOp, CtDirection, CtKey, Expr, FibResult, Key, MetaKey, PayloadBase, Register, RejectKind,
    SetUpdate, Verdict,
};

/// Attributes of the counter expression, shared by rules and elements.
pub(super) mod counter {
    /// `NFTA_COUNTER_BYTES`.
    pub const BYTES: u16 = 1;
    /// `NFTA_COUNTER_PACKETS`.
    pub const PACKETS: u16 = 2;
}

/// An expression of ours as `nftnl` wants it.
///
/// Shape: never holds [`Expr::Unknown`]; [`Encodable::new`] sees to that.
pub(super) struct Encodable<'a>(&'a Expr);

impl<'a> Encodable<'a> {
    /// `None` for an expression that was only ever read.
    pub fn new(expr: &'a Expr) -> Option<Self> {
        (!matches!(expr, Expr::Unknown(_))).then_some(Encodable(expr))
    }
}

impl Expression for Encodable<'_> {
    fn to_expr(&self, rule: &Rule) -> NonNull<sys::nftnl_expr> {
        match self.0 {
            Expr::Verdict(verdict) => nftnl_verdict(verdict).to_expr(rule),
            Expr::Reject(kind) => reject(*kind, rule),
            Expr::Dnat { address, port } => dnat(*address, *port, rule),
            Expr::Lookup { set, src, dst, verdict, inverted } => {
                let flags = if *inverted { NFT_LOOKUP_F_INV } else { 0 };
                Object::new(c"lookup")
                    .name(sys::NFTNL_EXPR_LOOKUP_SET, set.as_str())
                    .register(sys::NFTNL_EXPR_LOOKUP_SREG, *src)
                    .registers(sys::NFTNL_EXPR_LOOKUP_DREG, *dst)
                    .maybe_u32(sys::NFTNL_EXPR_LOOKUP_DREG, verdict.then_some(NFT_REG_VERDICT))
                    .maybe_u32(sys::NFTNL_EXPR_LOOKUP_FLAGS, (flags != 0).then_some(flags))
                    .into_raw()
            }
            Expr::Dynset { set, update, key, data, timeout } => Object::new(c"dynset")
                .name(sys::NFTNL_EXPR_DYNSET_SET_NAME, set.as_str())
                .u32(sys::NFTNL_EXPR_DYNSET_OP, set_update(*update))
                .register(sys::NFTNL_EXPR_DYNSET_SREG_KEY, *key)
                .registers(sys::NFTNL_EXPR_DYNSET_SREG_DATA, *data)
                .maybe_u64(sys::NFTNL_EXPR_DYNSET_TIMEOUT, *timeout)
                .into_raw(),
            loading => load(loading),
        }
    }
}

/// Expressions that only move data between the packet, registers and constants.
fn load(expr: &Expr) -> NonNull<sys::nftnl_expr> {
    match expr {
        Expr::Payload { base, offset, len, dst } => Object::new(c"payload")
            .u32(sys::NFTNL_EXPR_PAYLOAD_BASE, payload_base(*base))
            .u32(sys::NFTNL_EXPR_PAYLOAD_OFFSET, *offset)
            .u32(sys::NFTNL_EXPR_PAYLOAD_LEN, *len)
            .register(sys::NFTNL_EXPR_PAYLOAD_DREG, *dst),
        Expr::Meta { key, dst } => Object::new(c"meta")
            .u32(sys::NFTNL_EXPR_META_KEY, meta_key(*key))
            .register(sys::NFTNL_EXPR_META_DREG, *dst),
        Expr::Ct { key, direction, dst } => Object::new(c"ct")
            .u32(sys::NFTNL_EXPR_CT_KEY, ct_key(*key))
            .maybe_u8(sys::NFTNL_EXPR_CT_DIR, direction.map(ct_direction))
            .register(sys::NFTNL_EXPR_CT_DREG, *dst),
        Expr::Fib { result, dst } => Object::new(c"fib")
            .u32(sys::NFTNL_EXPR_FIB_RESULT, NFT_FIB_RESULT_ADDRTYPE)
            .u32(sys::NFTNL_EXPR_FIB_FLAGS, fib_flags(*result))
            .register(sys::NFTNL_EXPR_FIB_DREG, *dst),
        Expr::Random { modulus, dst } => Object::new(c"numgen")
            .u32(sys::NFTNL_EXPR_NG_TYPE, NFT_NG_RANDOM)
            .u32(sys::NFTNL_EXPR_NG_MODULUS, *modulus)
            .register(sys::NFTNL_EXPR_NG_DREG, *dst),
        Expr::Bitwise { src, dst, mask, xor } => Object::new(c"bitwise")
            .register(sys::NFTNL_EXPR_BITWISE_SREG, *src)
            .register(sys::NFTNL_EXPR_BITWISE_DREG, *dst)
            .u32(sys::NFTNL_EXPR_BITWISE_LEN, mask.as_bytes().len() as u32)
            .data(sys::NFTNL_EXPR_BITWISE_MASK, mask)
            .data(sys::NFTNL_EXPR_BITWISE_XOR, xor),
        Expr::Cmp { op, src, data } => Object::new(c"cmp")
            .register(sys::NFTNL_EXPR_CMP_SREG, *src)
            .u32(sys::NFTNL_EXPR_CMP_OP, cmp_op(*op))
            .data(sys::NFTNL_EXPR_CMP_DATA, data),
        Expr::Immediate { data, dst } => Object::new(c"immediate")
            .register(sys::NFTNL_EXPR_IMM_DREG, *dst)
            .data(sys::NFTNL_EXPR_IMM_DATA, data),
        Expr::Masquerade => {
            Object::new(c"masq").u32(sys::NFTNL_EXPR_MASQ_FLAGS, NF_NAT_RANGE_PROTO_RANDOM_FULLY)
        }
        Expr::Counter { packets, bytes } => Object::new(c"counter")
            .u64(sys::NFTNL_EXPR_CTR_PACKETS, *packets)
            .u64(sys::NFTNL_EXPR_CTR_BYTES, *bytes),
        Expr::Count(name) => Object::new(c"objref")
            .u32(sys::NFTNL_EXPR_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER)
            .name(sys::NFTNL_EXPR_OBJREF_IMM_NAME, name.as_str()),
        Expr::Verdict(_)
        | Expr::Reject(_)
        | Expr::Dnat { .. }
        | Expr::Lookup { .. }
        | Expr::Dynset { .. }
        | Expr::Unknown(_) => unreachable!("handled by to_expr or refused by Encodable::new"),
    }
    .into_raw()
}

fn dnat(address: Register, port: Register, rule: &Rule) -> NonNull<sys::nftnl_expr> {
    Object::new(c"nat")
        .u32(sys::NFTNL_EXPR_NAT_TYPE, NFT_NAT_DNAT)
        .u32(sys::NFTNL_EXPR_NAT_FAMILY, rule.get_chain().get_table().get_family() as u32)
        .register(sys::NFTNL_EXPR_NAT_REG_ADDR_MIN, address)
        .register(sys::NFTNL_EXPR_NAT_REG_PROTO_MIN, port)
        .into_raw()
}

fn reject(kind: RejectKind, rule: &Rule) -> NonNull<sys::nftnl_expr> {
    match (kind, rule.get_chain().get_table().get_family()) {
        (RejectKind::TcpReset, _) => NftnlVerdict::Reject(RejectionType::TcpRst).to_expr(rule),
        // The crate numbers codes as for `inet`; ICMPv6's own number for "port" is missing there.
        (RejectKind::PortUnreachable, family) => {
            let code =
                if family == ProtoFamily::Ipv6 { ICMPV6_PORT_UNREACH } else { ICMP_PORT_UNREACH };
            Object::new(c"reject")
                .u32(sys::NFTNL_EXPR_REJECT_TYPE, NFT_REJECT_ICMP_UNREACH)
                .maybe_u8(sys::NFTNL_EXPR_REJECT_CODE, Some(code))
                .into_raw()
        }
    }
}

fn nftnl_verdict(verdict: &Verdict) -> NftnlVerdict {
    match verdict {
        Verdict::Accept => NftnlVerdict::Accept,
        Verdict::Drop => NftnlVerdict::Drop,
        Verdict::Return => NftnlVerdict::Return,
        Verdict::Jump(chain) => NftnlVerdict::Jump { chain: c_string(chain.as_str()) },
        Verdict::Goto(chain) => NftnlVerdict::Goto { chain: c_string(chain.as_str()) },
    }
}

/// The kernel's number of a register, written as nft writes it: the first of four 32-bit registers
/// by the old 128-bit number, the others by their own.
pub(super) fn register_number(Register(word): Register) -> u32 {
    let word = u32::from(word);
    if word.is_multiple_of(4) { NFT_REG_1 + word / 4 } else { NFT_REG32_00 + word }
}

fn payload_base(base: PayloadBase) -> u32 {
    match base {
        PayloadBase::Network => NFT_PAYLOAD_NETWORK_HEADER,
        PayloadBase::Transport => NFT_PAYLOAD_TRANSPORT_HEADER,
    }
}

fn meta_key(key: MetaKey) -> u32 {
    match key {
        MetaKey::L4Proto => NFT_META_L4PROTO,
        MetaKey::IifName => NFT_META_IIFNAME,
        MetaKey::Iif => NFT_META_IIF,
    }
}

fn ct_key(key: CtKey) -> u32 {
    match key {
        CtKey::State => NFT_CT_STATE,
        CtKey::Status => NFT_CT_STATUS,
        CtKey::SrcIp => NFT_CT_SRC_IP,
        CtKey::DstIp => NFT_CT_DST_IP,
        CtKey::SrcIp6 => NFT_CT_SRC_IP6,
        CtKey::DstIp6 => NFT_CT_DST_IP6,
        CtKey::Protocol => NFT_CT_PROTOCOL,
        CtKey::ProtoDst => NFT_CT_PROTO_DST,
    }
}

fn ct_direction(direction: CtDirection) -> u8 {
    match direction {
        CtDirection::Original => 0,
        CtDirection::Reply => 1,
    }
}

fn fib_flags(result: FibResult) -> u32 {
    match result {
        FibResult::SourceType => NFTA_FIB_F_SADDR,
        FibResult::DestinationType => NFTA_FIB_F_DADDR,
    }
}

fn cmp_op(op: CmpOp) -> u32 {
    match op {
        CmpOp::Eq => NFT_CMP_EQ,
        CmpOp::Neq => NFT_CMP_NEQ,
    }
}

fn set_update(update: SetUpdate) -> u32 {
    match update {
        SetUpdate::Add => NFT_DYNSET_OP_ADD,
        SetUpdate::Update => NFT_DYNSET_OP_UPDATE,
    }
}

/// A name for libnftnl.
pub(super) fn c_string(name: &str) -> CString {
    CString::new(name).expect("Name refuses NULs")
}

/// A libnftnl expression under construction. Owns it until [`Object::into_raw`].
pub(super) struct Object(NonNull<sys::nftnl_expr>);

impl Object {
    /// An expression of a kind that libnftnl 1.2.4 knows.
    pub fn new(kind: &'static CStr) -> Self {
        // SAFETY: `kind` is a NUL-terminated string that outlives the call; libnftnl only reads it.
        let raw = unsafe { sys::nftnl_expr_alloc(kind.as_ptr()) };
        Object(NonNull::new(raw).expect("libnftnl knows the expression and memory suffices"))
    }

    fn u32(self, attribute: u32, value: u32) -> Self {
        // SAFETY: the pointer is a live expression owned by `self`; the value is copied. All callers
        // pass attributes that are 4 bytes wide in this kind of expression.
        unsafe { sys::nftnl_expr_set_u32(self.0.as_ptr(), attribute as u16, value) };
        self
    }

    fn u64(self, attribute: u32, value: u64) -> Self {
        // SAFETY: as in `u32`, with attributes 8 bytes wide.
        unsafe { sys::nftnl_expr_set_u64(self.0.as_ptr(), attribute as u16, value) };
        self
    }

    fn maybe_u8(self, attribute: u32, value: Option<u8>) -> Self {
        if let Some(value) = value {
            // SAFETY: as in `u32`, with attributes 1 byte wide.
            unsafe { sys::nftnl_expr_set_u8(self.0.as_ptr(), attribute as u16, value) };
        }
        self
    }

    fn maybe_u32(self, attribute: u32, value: Option<u32>) -> Self {
        match value {
            Some(value) => self.u32(attribute, value),
            None => self,
        }
    }

    fn maybe_u64(self, attribute: u32, value: Option<u64>) -> Self {
        match value {
            Some(value) => self.u64(attribute, value),
            None => self,
        }
    }

    fn register(self, attribute: u32, register: Register) -> Self {
        self.u32(attribute, register_number(register))
    }

    fn registers(self, attribute: u32, register: Option<Register>) -> Self {
        self.maybe_u32(attribute, register.map(register_number))
    }

    fn data(self, attribute: u32, data: &Key) -> Self {
        let bytes = data.as_bytes();
        let len = bytes.len() as u32;
        // SAFETY: the pointer is a live expression; `bytes` is valid for `len` bytes during the call,
        // and libnftnl copies them. `len` is at most Key::CAPACITY = 40, below the 64 bytes
        // (NFT_DATA_VALUE_MAXLEN) that libnftnl 1.2.4 has room for.
        unsafe {
            sys::nftnl_expr_set(self.0.as_ptr(), attribute as u16, bytes.as_ptr().cast(), len);
        }
        self
    }

    fn name(self, attribute: u32, name: &str) -> Self {
        let name = c_string(name);
        // SAFETY: the pointer is a live expression; `name` is NUL-terminated and outlives the call,
        // and libnftnl duplicates it.
        unsafe { sys::nftnl_expr_set_str(self.0.as_ptr(), attribute as u16, name.as_ptr()) };
        self
    }

    /// Hands the expression over to the caller, who frees it or gives it to a rule or set that will.
    pub fn into_raw(self) -> NonNull<sys::nftnl_expr> {
        std::mem::ManuallyDrop::new(self).0
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        // SAFETY: `self` owns the expression, and it was not handed over: into_raw skips this.
        unsafe { sys::nftnl_expr_free(self.0.as_ptr()) };
    }
}
