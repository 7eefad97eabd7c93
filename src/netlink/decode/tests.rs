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
        Op::AddTable(Table { comment: Some("mark".into()), owner: Ownership::Ours, persist: true }),
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
