use super::*;
use crate::ruleset::{Element, Expr, Field, Key, Ownership};

fn encode(ops: Vec<Op>) -> (Batch, Vec<Op>) {
    let mut batch = Batch::new(Table::NAME);
    let transaction = Transaction { family: Family::V4, ops };
    batch.encode(&transaction, 100).unwrap();
    (batch, transaction.ops)
}

fn slot(n: usize) -> Element {
    Element::member(Key::new().slot(n as u32))
}

#[test]
fn a_batch_is_framed_and_asks_for_one_ack() {
    let (batch, _) = encode(vec![Op::DeleteTable, Op::FlushSet("a".into())]);
    let messages: Vec<_> = Messages::new(batch.bytes()).collect::<Result<_, _>>().unwrap();
    let shape: Vec<_> = messages.iter().map(|m| (m.kind, m.flags, m.seq)).collect();
    assert_eq!(
        shape,
        [
            (NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 100),
            (nft_type(NFT_MSG_DELTABLE), NLM_F_REQUEST, 101),
            (nft_type(NFT_MSG_DELSETELEM), NLM_F_REQUEST | NLM_F_ACK, 102),
            (NFNL_MSG_BATCH_END, NLM_F_REQUEST, 103),
        ]
    );
    assert_eq!((batch.acked_seq(), batch.end_seq(), batch.messages()), (102, 104, 4));
    assert!(batch.has_seq(100) && batch.has_seq(103));
    assert!(!batch.has_seq(99) && !batch.has_seq(104));
}

#[test]
fn sequence_numbers_may_wrap() {
    let mut batch = Batch::new(Table::NAME);
    let ops = vec![Op::DeleteTable, Op::DeleteTable];
    batch.encode(&Transaction { family: Family::V6, ops }, u32::MAX).unwrap();
    assert!(batch.has_seq(u32::MAX) && batch.has_seq(2) && !batch.has_seq(3));
    assert_eq!((batch.acked_seq(), batch.end_seq()), (1, 3));
}

#[test]
fn many_elements_fill_messages_to_the_limit() {
    let elements: Vec<_> = (0..10_000).map(slot).collect();
    let (batch, ops) = encode(vec![Op::AddElements("s".into(), elements)]);
    let messages: Vec<_> = Messages::new(batch.bytes()).collect::<Result<_, _>>().unwrap();
    let lists: Vec<_> = messages[1..messages.len() - 1]
        .iter()
        .map(|m| Attributes::new(m.attributes().get(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap()).count())
        .collect();
    // An element is 4 + 4 + 8 bytes.
    assert_eq!(lists, [4095, 4095, 1810]);
    // The second element of the second message, counted from the message's start.
    let before_list = 16 + 4 + 16 + 8 + 4;
    let rejection = batch.rejection(&ops, 102, Some(before_list + 16), 17);
    assert_eq!((rejection.op, rejection.element), (Some(0), Some(4096)));
    assert_eq!(rejection.object, "add element s");
}

#[test]
fn errors_without_an_object_concern_the_batch() {
    let (batch, ops) = encode(vec![Op::DeleteTable]);
    let rejection = batch.rejection(&ops, 100, None, 1);
    assert_eq!((rejection.op, rejection.object.as_str()), (None, "the batch"));
}

#[test]
fn what_was_only_read_is_not_written() {
    let rule = Rule { exprs: vec![Expr::Unknown("quota".into())], comment: None };
    let ranges =
        Set { interval: true, ..Set::plain("r", vec![Field::Ipv4Addr, Field::InetService]) };
    let orphan = Table { comment: None, owner: Ownership::Nobody, persist: true };
    let cases = [
        (
            Op::AddRule("c".into(), rule),
            "rule of chain c has an expression we only read, never write",
        ),
        (Op::AddSet(ranges), "set r has ranges over a concatenation"),
        (Op::AddTable(orphan), "table is persistent without an owner"),
    ];
    for (op, text) in cases {
        let transaction = Transaction { family: Family::V4, ops: vec![op] };
        let error = Batch::new(Table::NAME).encode(&transaction, 1).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}
