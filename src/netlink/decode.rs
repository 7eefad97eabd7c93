//! nf_tables messages as plain values.
//!
//! Place in the flow: [`super::dump`] and [`super::monitor`] read with it. Pure and safe: whatever
//! the bytes, the answer is a value or `None`, never a panic. Unknown attributes are passed over, an
//! unknown expression keeps its name, and what has no counterpart in [`crate::ruleset`] is left out.

mod expr;

use super::attribute::{Attributes, Message};
use super::element::{Counted, Part, decode_counted, decode_part, name};
use super::expr::counter::{BYTES, PACKETS};
use super::set::fields_of;
use super::uapi::*;
use super::userdata;
use crate::model::Family;
use crate::ruleset::{
    Chain, ChainType, Counter, Hook, Hooked, Name, Ownership, Rule, Set, SetKind, Table,
};

/// One object of a dump or a notification.
#[derive(Debug, Clone, PartialEq)]
pub enum Object {
    /// A table and its name; its owner is a port, whoever reads.
    Table(Name, Table),
    Chain(Chain),
    /// A rule and the chain it is in.
    Rule(Name, Rule),
    /// A set or map without elements.
    Set(Set),
    /// A named counter; other objects are none of ours.
    Counter(Name, Counter),
    /// A generation of the rule set, and the program that made it.
    Generation(u32, Option<String>),
}

/// Decodes one message, whatever table it is about; `None` if it is not about an object of ours.
///
/// Elements are not among them: they mean something only together with their set.
pub fn decode(message: &Message<'_>) -> Option<Object> {
    let attributes = message.attributes();
    match message.nft()? {
        NFT_MSG_NEWTABLE => table(attributes).map(|(name, table)| Object::Table(name, table)),
        NFT_MSG_NEWCHAIN => chain(attributes).map(Object::Chain),
        NFT_MSG_NEWRULE => rule(attributes).map(|(chain, rule)| Object::Rule(chain, rule)),
        NFT_MSG_NEWSET => set(attributes).map(Object::Set),
        NFT_MSG_NEWOBJ => counter(attributes).map(|(name, counter)| Object::Counter(name, counter)),
        NFT_MSG_NEWGEN => {
            let name = attributes.str(NFTA_GEN_PROC_NAME).map(str::to_owned);
            Some(Object::Generation(attributes.u32(NFTA_GEN_ID)?, name))
        }
        _ => None,
    }
}

/// The name of the table a message is about. In every message that has one it is attribute 1.
pub(super) fn table_name<'a>(message: &Message<'a>) -> Option<&'a str> {
    message.attributes().str(NFTA_TABLE_NAME)
}

/// The family a message is about, if it is one of ours.
pub(super) fn family(message: &Message<'_>) -> Option<Family> {
    let number = message.family()?;
    Family::BOTH.into_iter().find(|&family| nfproto(family) == number)
}

/// The elements in a message, each still as the kernel keeps it.
pub(super) fn parts(message: &Message<'_>, default_timeout: Option<u64>) -> Vec<Part> {
    elements(message).filter_map(|element| decode_part(element, default_timeout)).collect()
}

/// What the elements in a message counted.
pub(super) fn counted<'a>(message: &Message<'a>) -> impl Iterator<Item = Counted<'a>> + use<'a> {
    elements(message).filter_map(decode_counted)
}

fn elements<'a>(message: &Message<'a>) -> impl Iterator<Item = Attributes<'a>> + use<'a> {
    let list = message.attributes().nest(NFTA_SET_ELEM_LIST_ELEMENTS);
    list.filter(|element| element.kind == NFTA_LIST_ELEM)
        .map(|element| Attributes::new(element.payload))
}

fn comment(attributes: Attributes<'_>, userdata: u16, kind: u8) -> Option<String> {
    Some(userdata::comment(attributes.get(userdata)?, kind)?.to_owned())
}

fn table(attributes: Attributes<'_>) -> Option<(Name, Table)> {
    let flags = attributes.u32(NFTA_TABLE_FLAGS).unwrap_or(0);
    let table = Table {
        comment: comment(attributes, NFTA_TABLE_USERDATA, userdata::COMMENT),
        owner: match flags & NFT_TABLE_F_OWNER {
            0 => Ownership::Nobody,
            _ => Ownership::Other(attributes.u32(NFTA_TABLE_OWNER).unwrap_or(0)),
        },
        persist: flags & NFT_TABLE_F_PERSIST != 0,
    };
    Some((name(attributes.str(NFTA_TABLE_NAME)?)?, table))
}

fn chain(attributes: Attributes<'_>) -> Option<Chain> {
    Some(Chain {
        name: name(attributes.str(NFTA_CHAIN_NAME)?)?,
        hooked: hooked(attributes),
        comment: comment(attributes, NFTA_CHAIN_USERDATA, userdata::COMMENT),
    })
}

/// `None` too for base chains of kinds we never make; others can, in a table that is not owned.
fn hooked(attributes: Attributes<'_>) -> Option<Hooked> {
    let hook = attributes.nest(NFTA_CHAIN_HOOK);
    Some(Hooked {
        kind: match attributes.str(NFTA_CHAIN_TYPE)? {
            "filter" => ChainType::Filter,
            "nat" => ChainType::Nat,
            _ => return None,
        },
        hook: Hook::from_number(hook.u32(NFTA_HOOK_HOOKNUM)?)?,
        // A signed number in network order.
        priority: hook.u32(NFTA_HOOK_PRIORITY)? as i32,
    })
}

fn rule(attributes: Attributes<'_>) -> Option<(Name, Rule)> {
    let exprs = attributes
        .nest(NFTA_RULE_EXPRESSIONS)
        .filter(|expr| expr.kind == NFTA_LIST_ELEM)
        .map(|expr| expr::expr(Attributes::new(expr.payload)))
        .collect();
    let comment = comment(attributes, NFTA_RULE_USERDATA, userdata::COMMENT);
    Some((name(attributes.str(NFTA_RULE_CHAIN)?)?, Rule { exprs, comment }))
}

fn counter(attributes: Attributes<'_>) -> Option<(Name, Counter)> {
    (attributes.u32(NFTA_OBJ_TYPE)? == NFT_OBJECT_COUNTER).then_some(())?;
    let data = attributes.nest(NFTA_OBJ_DATA);
    let (packets, bytes) = (data.u64(PACKETS)?, data.u64(BYTES)?);
    Some((name(attributes.str(NFTA_OBJ_NAME)?)?, Counter { packets, bytes }))
}

/// `None` for sets whose types we never use.
fn set(attributes: Attributes<'_>) -> Option<Set> {
    let flags = attributes.u32(NFTA_SET_FLAGS).unwrap_or(0);
    let kind = match attributes.u32(NFTA_SET_DATA_TYPE) {
        _ if flags & NFT_SET_MAP == 0 => SetKind::Set,
        Some(NFT_DATA_VERDICT) => SetKind::VerdictMap,
        data => SetKind::Map(fields_of(data?)?),
    };
    let timeout = attributes.u64(NFTA_SET_TIMEOUT).unwrap_or(0);
    Some(Set {
        name: name(attributes.str(NFTA_SET_NAME)?)?,
        key: fields_of(attributes.u32(NFTA_SET_KEY_TYPE)?)?,
        kind,
        interval: flags & NFT_SET_INTERVAL != 0,
        dynamic: flags & NFT_SET_EVAL != 0,
        counter: attributes.nest(NFTA_SET_EXPR).str(NFTA_EXPR_NAME) == Some("counter"),
        timeout: (flags & NFT_SET_TIMEOUT != 0).then_some(timeout),
        size: attributes.nest(NFTA_SET_DESC).u32(NFTA_SET_DESC_SIZE),
        comment: comment(attributes, NFTA_SET_USERDATA, userdata::SET_COMMENT),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Op, Transaction};
    use crate::netlink::attribute::Messages;
    use crate::netlink::batch::Batch;
    use crate::ruleset::{
        CmpOp, Element, Expr, Field, Key, Ownership, PayloadBase, Register, RejectKind, Verdict,
    };

    /// One of each object, as the encoder writes it.
    fn encoded() -> Vec<u8> {
        let reg = Register(0);
        let rule = Rule {
            exprs: vec![
                Expr::Payload { base: PayloadBase::Network, offset: 16, len: 4, dst: reg },
                Expr::Cmp { op: CmpOp::Neq, src: reg, data: Key::from_bytes(&[10]).unwrap() },
                Expr::Reject(RejectKind::PortUnreachable),
                Expr::Verdict(Verdict::Jump("d".into())),
            ],
            comment: Some("text".into()),
        };
        let set = Set { comment: Some("c".into()), ..Set::plain("s", vec![Field::Mark]) };
        let ops = vec![
            Op::AddTable(Table {
                comment: Some("mark".into()),
                owner: Ownership::Ours,
                persist: true,
            }),
            Op::AddChain(Chain { name: "c".into(), hooked: None, comment: None }),
            Op::AddSet(set),
            Op::AddElements("s".into(), vec![Element::member(Key::new().slot(3))]),
            Op::AddRule("c".into(), rule),
        ];
        let mut batch = Batch::new(Table::NAME);
        batch.encode(&Transaction { family: Family::V4, ops }, 1).unwrap();
        batch.bytes().to_vec()
    }

    fn decode_all(bytes: &[u8]) -> Vec<Object> {
        let messages = Messages::new(bytes).map_while(Result::ok);
        messages
            .filter_map(|message| {
                parts(&message, None);
                decode(&message)
            })
            .collect()
    }

    #[test]
    fn objects_come_back_as_written() {
        let objects = decode_all(&encoded());
        assert_eq!(objects.len(), 4, "{objects:?}");
        let Object::Rule(chain, rule) = &objects[3] else { panic!("{objects:?}") };
        assert_eq!(chain.as_str(), "c");
        assert_eq!(rule.exprs.len(), 4);
        assert_eq!(rule.exprs[3], Expr::Verdict(Verdict::Jump("d".into())));
        assert_eq!(rule.comment.as_deref(), Some("text"));
    }

    #[test]
    fn no_truncation_panics() {
        let whole = encoded();
        for len in 0..whole.len() {
            decode_all(&whole[..len]);
        }
    }

    #[test]
    fn no_flipped_byte_panics() {
        let whole = encoded();
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                decode_all(&bytes);
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            decode_all(&bytes);
        }

        /// Random attributes behind a valid header reach further than random bytes.
        #[test]
        fn no_attributes_panic(kind in 0_u8..25, body: Vec<u8>) {
            let mut bytes = (20 + body.len() as u32).to_ne_bytes().to_vec();
            bytes.extend_from_slice(&[kind, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
            bytes.extend_from_slice(&body);
            decode_all(&bytes);
        }
    }

    #[test]
    fn an_expression_with_an_unknown_flag_is_unknown() {
        use crate::netlink::attribute::{begin_nest, end_nest, put_str, put_u32};
        let masquerade = |flags: u32| {
            let mut buf = Vec::new();
            put_str(&mut buf, NFTA_EXPR_NAME, "masq");
            let data = begin_nest(&mut buf, NFTA_EXPR_DATA);
            put_u32(&mut buf, 1, flags);
            end_nest(&mut buf, data);
            expr::expr(Attributes::new(&buf))
        };
        assert_eq!(masquerade(NF_NAT_RANGE_PROTO_RANDOM_FULLY), Expr::Masquerade);
        assert_eq!(masquerade(0), Expr::Unknown("masq".into()));
        assert_eq!(masquerade(0x30), Expr::Unknown("masq".into()));
    }
}
