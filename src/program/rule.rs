//! Writing rules as instructions: registers are dealt out left to right, as nft itself does.

use crate::model::Family;
use crate::ruleset::{
    CmpOp, CtDirection, CtKey, Expr, FibResult, Key, MetaKey, Name, PayloadBase, Register,
    RejectKind, Rule, SetUpdate, Verdict,
};

use super::{CounterId, LocalPods};

/// A part of a lookup key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Saddr,
    Daddr,
    L4Proto,
    Sport,
    Dport,
    /// The client's address: source of the flow's original direction.
    OriginalSaddr,
    /// The address that was dialled: destination of the flow's original direction.
    OriginalDaddr,
    /// The port that was dialled.
    OriginalDport,
    /// A random slot below the bound.
    Slot(u32),
}

/// Conntrack states, as bits (`NF_CT_STATE_BIT`); a packet has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CtState {
    /// Not part of any flow.
    Invalid = 1,
    New = 8,
}

/// `IPS_DST_NAT` of `enum ip_conntrack_status`.
const CT_STATUS_DNAT: u32 = 1 << 5;
/// `RTN_LOCAL` of `enum` in `linux/rtnetlink.h`.
const RTN_LOCAL: u32 = 2;

/// Builds one rule from left to right.
#[derive(Debug, Clone)]
pub struct RuleBuilder {
    family: Family,
    exprs: Vec<Expr>,
    comment: Option<String>,
}

/// Starts a rule of a family's table.
pub fn rule(family: Family) -> RuleBuilder {
    RuleBuilder { family, exprs: Vec::new(), comment: None }
}

impl RuleBuilder {
    /// Matches if the parts are an element of a set.
    pub fn is_in(self, parts: &[Part], set: impl Into<Name>) -> Self {
        self.lookup(parts, set.into(), false)
    }

    /// Matches if they are not.
    pub fn is_not_in(self, parts: &[Part], set: impl Into<Name>) -> Self {
        self.lookup(parts, set.into(), true)
    }

    fn lookup(mut self, parts: &[Part], set: Name, inverted: bool) -> Self {
        let src = self.load(parts);
        self.exprs.push(Expr::Lookup { set, src, dst: None, verdict: false, inverted });
        self
    }

    /// Takes the verdict a map has for the parts.
    pub fn vmap(mut self, parts: &[Part], map: impl Into<Name>) -> Rule {
        let src = self.load(parts);
        let set = map.into();
        self.exprs.push(Expr::Lookup { set, src, dst: None, verdict: true, inverted: false });
        self.done()
    }

    /// Sends the flow to the address and port a map has for the parts.
    pub fn dnat(mut self, parts: &[Part], map: impl Into<Name>) -> Rule {
        let src = self.load(parts);
        let address = Register(0);
        let port = Register((self.family.address_len() / 4) as u8);
        let set = map.into();
        self.exprs.push(Expr::Lookup {
            set,
            src,
            dst: Some(address),
            verdict: false,
            inverted: false,
        });
        self.exprs.push(Expr::Dnat { address, port });
        self.done()
    }

    /// Remembers data for a key for a time, or refreshes what is remembered.
    pub fn update(
        mut self,
        map: impl Into<Name>,
        key: &[Part],
        data: &[Part],
        millis: u64,
    ) -> Rule {
        let mut next = 0;
        let key = self.load_at(key, &mut next);
        let data = self.load_at(data, &mut next);
        self.exprs.push(Expr::Dynset {
            set: map.into(),
            update: SetUpdate::Update,
            key,
            data: Some(data),
            timeout: Some(millis),
        });
        self.done()
    }

    /// Keeps a member of a set for a time, or for a time from now.
    pub fn keep(mut self, key: &[Part], set: impl Into<Name>, millis: u64) -> Rule {
        let key = self.load(key);
        self.exprs.push(Expr::Dynset {
            set: set.into(),
            update: SetUpdate::Update,
            key,
            data: None,
            timeout: Some(millis),
        });
        self.done()
    }

    /// Matches packets in a conntrack state: one comparison, for every packet of every flow pays it.
    pub fn ct_state(mut self, state: CtState) -> Self {
        let reg = Register(0);
        self.exprs.extend([
            Expr::Ct { key: CtKey::State, direction: None, dst: reg },
            Expr::Cmp { op: CmpOp::Eq, src: reg, data: Key::new().slot(state as u32) },
        ]);
        self
    }

    /// Matches flows whose destination was translated.
    pub fn ct_status_dnat(self) -> Self {
        self.ct_status(CmpOp::Neq)
    }

    /// Matches flows whose destination was not translated.
    pub fn ct_status_not_dnat(self) -> Self {
        self.ct_status(CmpOp::Eq)
    }

    fn ct_status(mut self, than_none: CmpOp) -> Self {
        let reg = Register(0);
        self.exprs.extend([
            Expr::Ct { key: CtKey::Status, direction: None, dst: reg },
            Expr::Bitwise {
                src: reg,
                dst: reg,
                mask: Key::new().slot(CT_STATUS_DNAT),
                xor: Key::new().slot(0),
            },
            Expr::Cmp { op: than_none, src: reg, data: Key::new().slot(0) },
        ]);
        self
    }

    /// Matches if the source is one of the host's own addresses.
    pub fn from_host(self) -> Self {
        self.fib_local(FibResult::SourceType)
    }

    /// Matches if the destination is one of the host's own addresses.
    pub fn to_host(self) -> Self {
        self.fib_local(FibResult::DestinationType)
    }

    fn fib_local(mut self, result: FibResult) -> Self {
        let reg = Register(0);
        self.exprs.extend([
            Expr::Fib { result, dst: reg },
            Expr::Cmp { op: CmpOp::Eq, src: reg, data: Key::new().slot(RTN_LOCAL) },
        ]);
        self
    }

    /// Matches if the part's address is (`Eq`) or is not (`Neq`) in a network.
    pub fn network(mut self, part: Part, op: CmpOp, net: ipnet::IpNet) -> Self {
        let src = self.load(&[part]);
        if usize::from(net.prefix_len()) < self.family.address_len() * 8 {
            self.exprs.push(Expr::Bitwise {
                src,
                dst: src,
                mask: Key::new().address(net.netmask()),
                xor: Key::new().address(zero(self.family)),
            });
        }
        self.exprs.push(Expr::Cmp { op, src, data: Key::new().address(net.network()) });
        self
    }

    /// Matches if the source is (`Eq`) or is not (`Neq`) a pod as the detector sees it. `None` when
    /// nothing can be told from a packet.
    pub fn pod(mut self, op: CmpOp, detector: &LocalPods) -> Option<Self> {
        let name = match detector {
            LocalPods::Unknown => return None,
            LocalPods::Cidr(net) => return Some(self.network(Part::Saddr, op, *net)),
            LocalPods::Interface(name) => interface_name(name, true)?,
            LocalPods::InterfacePrefix(prefix) => interface_name(prefix, false)?,
        };
        let dst = Register(0);
        self.exprs.push(Expr::Meta { key: MetaKey::IifName, dst });
        self.exprs.push(Expr::Cmp { op, src: dst, data: name });
        Some(self)
    }

    /// Matches if there is an input interface.
    pub fn has_input(mut self) -> Self {
        let dst = Register(0);
        self.exprs.push(Expr::Meta { key: MetaKey::Iif, dst });
        self.exprs.push(Expr::Cmp { op: CmpOp::Neq, src: dst, data: Key::new().slot(0) });
        self
    }

    pub fn tcp(mut self) -> Self {
        let src = self.load(&[Part::L4Proto]);
        let data = Key::from_bytes(&[6]).expect("one byte fits");
        self.exprs.push(Expr::Cmp { op: CmpOp::Eq, src, data });
        self
    }

    /// Counts what matched so far.
    pub fn counts(mut self, counter: CounterId) -> Self {
        self.exprs.push(Expr::Count(counter.name()));
        self
    }

    pub fn comment(mut self, comment: &str) -> Self {
        self.comment = Some(comment.to_owned());
        self
    }

    pub fn jump(self, chain: impl Into<Name>) -> Rule {
        self.verdict(Verdict::Jump(chain.into()))
    }

    pub fn goto(self, chain: impl Into<Name>) -> Rule {
        self.verdict(Verdict::Goto(chain.into()))
    }

    pub fn returns(self) -> Rule {
        self.verdict(Verdict::Return)
    }

    pub fn drops(self) -> Rule {
        self.verdict(Verdict::Drop)
    }

    /// Ends with a masquerade with random ports.
    pub fn masquerade(mut self) -> Rule {
        self.exprs.push(Expr::Masquerade);
        self.done()
    }

    pub fn reject(mut self, kind: RejectKind) -> Rule {
        self.exprs.push(Expr::Reject(kind));
        self.done()
    }

    fn verdict(mut self, verdict: Verdict) -> Rule {
        self.exprs.push(Expr::Verdict(verdict));
        self.done()
    }

    /// Ends without a verdict: the matches themselves are the effect.
    pub fn done(self) -> Rule {
        Rule { exprs: self.exprs, comment: self.comment }
    }

    fn load(&mut self, parts: &[Part]) -> Register {
        self.load_at(parts, &mut 0)
    }

    fn load_at(&mut self, parts: &[Part], next: &mut u8) -> Register {
        let first = Register(*next);
        for &part in parts {
            let (expr, len) = self.part(part, Register(*next));
            self.exprs.push(expr);
            *next += len.div_ceil(4) as u8;
        }
        first
    }

    fn part(&self, part: Part, dst: Register) -> (Expr, usize) {
        let address_len = self.family.address_len();
        // Offsets of saddr and daddr in struct iphdr and struct ipv6hdr.
        let (saddr, daddr) = match self.family {
            Family::V4 => (12, 16),
            Family::V6 => (8, 24),
        };
        let address = |offset| Expr::Payload {
            base: PayloadBase::Network,
            offset,
            len: address_len as u32,
            dst,
        };
        let original = |key| Expr::Ct { key, direction: Some(CtDirection::Original), dst };
        match (part, self.family) {
            (Part::Saddr, _) => (address(saddr), address_len),
            (Part::Daddr, _) => (address(daddr), address_len),
            (Part::L4Proto, _) => (Expr::Meta { key: MetaKey::L4Proto, dst }, 1),
            (Part::Sport, _) => {
                (Expr::Payload { base: PayloadBase::Transport, offset: 0, len: 2, dst }, 2)
            }
            (Part::Dport, _) => {
                (Expr::Payload { base: PayloadBase::Transport, offset: 2, len: 2, dst }, 2)
            }
            (Part::OriginalSaddr, Family::V4) => (original(CtKey::SrcIp), address_len),
            (Part::OriginalSaddr, Family::V6) => (original(CtKey::SrcIp6), address_len),
            (Part::OriginalDaddr, Family::V4) => (original(CtKey::DstIp), address_len),
            (Part::OriginalDaddr, Family::V6) => (original(CtKey::DstIp6), address_len),
            (Part::OriginalDport, _) => (original(CtKey::ProtoDst), 2),
            (Part::Slot(modulus), _) => (Expr::Random { modulus, dst }, 4),
        }
    }
}

fn zero(family: Family) -> std::net::IpAddr {
    match family {
        Family::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// An interface name as the kernel compares it: whole names are padded to `IFNAMSIZ`, the starts of
/// names are compared by their own length. `None` for a name no interface can have, which then
/// never matches (section 2.3).
fn interface_name(name: &str, whole: bool) -> Option<Key> {
    const IFNAMSIZ: usize = 16;
    if name.is_empty() || name.len() >= IFNAMSIZ {
        return None;
    }
    let mut bytes = name.as_bytes().to_vec();
    if whole {
        bytes.resize(IFNAMSIZ, 0);
    }
    Key::from_bytes(&bytes)
}
