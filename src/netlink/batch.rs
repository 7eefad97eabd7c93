//! A transaction as one netlink batch.
//!
//! Place in the flow: between [`crate::kernel`] and the socket. Pure: operations in, bytes and a
//! table of messages out; with that table an error reply is traced back to the operation and element
//! it is about. It knows nothing of sockets.

use std::ffi::CString;

use nftnl::{MsgType, NlMsg, ProtoFamily};

use super::attribute::*;
use super::element::{index_at, put_element};
use super::expr::{Encodable, c_string};
use super::set::Declaration;
use super::uapi::*;
use super::userdata;
use crate::kernel::{Op, Rejection, Transaction};
use crate::model::Family;
use crate::ruleset::{
    Chain, ChainType, Element, Hook, Hooked, Name, Ownership, Rule, Set, Table, describe,
};

/// Room for the largest message of `nftnl` (64 KiB and a page of up to 64 KiB).
const SCRATCH: usize = 2 << 16;

/// What an allocation may keep between transactions.
const KEPT_CAPACITY: usize = 1 << 20;

/// A part of a transaction that has no encoding. A mistake of the caller; nothing was sent.
#[derive(Debug, thiserror::Error)]
pub enum Unencodable {
    #[error("rule of chain {0} has an expression we only read, never write")]
    Expression(Name),
    #[error("set {0} has ranges over a concatenation")]
    ConcatenatedRanges(Name),
    #[error("table is persistent without an owner")]
    PersistWithoutOwner,
}

/// Aligned room for the C library to write a message into.
#[repr(C, align(8))]
struct Scratch([u8; SCRATCH]);

/// Where a message lies and what it is about.
#[derive(Debug, Clone, Copy)]
struct Mark {
    start: usize,
    op: usize,
    first_element: usize,
}

/// One batch, and its memory for the next.
pub struct Batch {
    family: Family,
    table: CString,
    bytes: Vec<u8>,
    /// One for each message between begin and end; their sequence numbers follow on begin's.
    marks: Vec<Mark>,
    first_seq: u32,
    scratch: Box<Scratch>,
}

impl Batch {
    /// An empty batch for the table of this name in either family.
    pub fn new(table: &str) -> Self {
        Batch {
            family: Family::V4,
            table: c_string(table),
            bytes: Vec::new(),
            marks: Vec::new(),
            first_seq: 0,
            scratch: Box::new(Scratch([0; SCRATCH])),
        }
    }

    /// Encodes a transaction in place of what was there. Only the last object asks for an ack.
    pub fn encode(&mut self, transaction: &Transaction, seq: u32) -> Result<(), Unencodable> {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_CAPACITY);
        self.marks.clear();
        self.family = transaction.family;
        self.first_seq = seq;
        self.put_limit(NFNL_MSG_BATCH_BEGIN, seq);
        for (op, operation) in transaction.ops.iter().enumerate() {
            self.put_op(op, operation)?;
        }
        if let Some(last) = self.marks.last() {
            add_flags(&mut self.bytes[last.start..], NLM_F_ACK);
        }
        let end = self.next_seq();
        self.put_limit(NFNL_MSG_BATCH_END, end);
        Ok(())
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Messages in the batch, begin and end included.
    pub fn messages(&self) -> usize {
        self.marks.len() + 2
    }

    /// Whether there is nothing in it but begin and end: no operations, or empty lists of elements.
    pub fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Sequence number of the message that asks for the ack.
    pub fn acked_seq(&self) -> u32 {
        self.first_seq.wrapping_add(self.marks.len() as u32)
    }

    /// First sequence number that is not part of the batch.
    pub fn end_seq(&self) -> u32 {
        self.first_seq.wrapping_add(self.messages() as u32)
    }

    /// Whether a reply with this sequence number belongs to the batch.
    pub fn has_seq(&self, seq: u32) -> bool {
        (seq.wrapping_sub(self.first_seq) as usize) < self.messages()
    }

    /// What an error with this sequence number and, if the kernel told, offset of the offending
    /// attribute within the message is about. Errors of begin concern the batch as a whole.
    pub fn rejection(&self, ops: &[Op], seq: u32, offset: Option<u32>, errno: i32) -> Rejection {
        let index = (seq.wrapping_sub(self.first_seq) as usize).checked_sub(1);
        let Some(mark) = index.and_then(|index| self.marks.get(index)) else {
            return Rejection { op: None, element: None, object: "the batch".into(), errno };
        };
        let op = &ops[mark.op];
        let element = match op {
            Op::AddElements(..) | Op::DeleteElements(..) => {
                offset.and_then(|offset| self.element_at(mark, offset as usize))
            }
            _ => None,
        };
        Rejection { op: Some(mark.op), element, object: describe(op), errno }
    }

    fn element_at(&self, mark: &Mark, offset: usize) -> Option<usize> {
        let message = Messages::new(&self.bytes[mark.start..]).next()?.ok()?;
        let list = message.attributes().get(NFTA_SET_ELEM_LIST_ELEMENTS)?;
        // The list is the message's last attribute and its length a multiple of 4.
        let list_start = MESSAGE_HEADER + message.payload.len() - list.len();
        Some(mark.first_element + index_at(list, offset.checked_sub(list_start)?)?)
    }

    fn next_seq(&self) -> u32 {
        self.first_seq.wrapping_add(self.marks.len() as u32 + 1)
    }

    fn put_limit(&mut self, kind: u16, seq: u32) {
        let start = begin_message(&mut self.bytes, kind, NLM_F_REQUEST, seq, BATCH_OF_NFTABLES);
        end_message(&mut self.bytes, start);
    }

    fn put_op(&mut self, op: usize, operation: &Op) -> Result<(), Unencodable> {
        match operation {
            Op::AddTable(table) => return self.put_table(op, table),
            Op::DeleteTable => {
                let table = self.nftnl_table();
                self.put_object(op, &table, MsgType::Del, 0);
            }
            Op::AddChain(chain) => self.put_chain(op, chain),
            Op::FlushChain(chain) => {
                let table = self.nftnl_table();
                let chain = nftnl::Chain::new(c_string(chain.as_str()), &table);
                self.put_object(op, &nftnl::Rule::new(&chain), MsgType::Del, 0);
            }
            Op::DeleteChain(chain) => {
                let table = self.nftnl_table();
                let chain = nftnl::Chain::new(c_string(chain.as_str()), &table);
                self.put_object(op, &chain, MsgType::Del, 0);
            }
            Op::AddRule(chain, rule) => return self.put_rule(op, chain, rule),
            Op::AddCounter(name) => self.put_counter(op, name),
            Op::AddSet(set) => return self.put_set(op, set),
            Op::FlushSet(set) => self.flush_set(op, set),
            Op::DeleteSet(set) => {
                let set = Declaration::named(nfproto(self.family), &self.table, set.as_str());
                self.put_object(op, &set, MsgType::Del, 0);
            }
            Op::AddElements(set, elements) => {
                self.put_elements(op, NFT_MSG_NEWSETELEM, set, elements);
            }
            Op::DeleteElements(set, elements) => {
                self.put_elements(op, NFT_MSG_DELSETELEM, set, elements);
            }
        }
        Ok(())
    }

    /// `nftnl` knows neither the flags of a table nor its comment; both are appended.
    fn put_table(&mut self, op: usize, table: &Table) -> Result<(), Unencodable> {
        if table.persist && table.owner == Ownership::Nobody {
            return Err(Unencodable::PersistWithoutOwner);
        }
        let object = self.nftnl_table();
        let start = self.put_object(op, &object, MsgType::Add, NLM_F_CREATE);
        let owner = if table.owner == Ownership::Ours { NFT_TABLE_F_OWNER } else { 0 };
        let persist = if table.persist { NFT_TABLE_F_PERSIST } else { 0 };
        put_u32(&mut self.bytes, NFTA_TABLE_FLAGS, owner | persist);
        self.put_comment(NFTA_TABLE_USERDATA, table.comment.as_deref());
        end_message(&mut self.bytes, start);
        Ok(())
    }

    fn put_chain(&mut self, op: usize, chain: &Chain) {
        let table = self.nftnl_table();
        let mut object = nftnl::Chain::new(c_string(chain.name.as_str()), &table);
        if let Some(Hooked { kind, hook, priority }) = chain.hooked {
            object.set_type(nftnl_chain_type(kind));
            object.set_hook(nftnl_hook(hook), priority);
            object.set_policy(nftnl::Policy::Accept);
        }
        let start = self.put_object(op, &object, MsgType::Add, NLM_F_CREATE);
        self.put_comment(NFTA_CHAIN_USERDATA, chain.comment.as_deref());
        end_message(&mut self.bytes, start);
    }

    fn put_rule(&mut self, op: usize, chain: &Name, rule: &Rule) -> Result<(), Unencodable> {
        let table = self.nftnl_table();
        let nftnl_chain = nftnl::Chain::new(c_string(chain.as_str()), &table);
        let mut object = nftnl::Rule::new(&nftnl_chain);
        for expr in &rule.exprs {
            let expr = Encodable::new(expr);
            object.add_expr(&expr.ok_or_else(|| Unencodable::Expression(chain.clone()))?);
        }
        let start = self.put_object(op, &object, MsgType::Add, NLM_F_CREATE | NLM_F_APPEND);
        self.put_comment(NFTA_RULE_USERDATA, rule.comment.as_deref());
        end_message(&mut self.bytes, start);
        Ok(())
    }

    /// `nftnl` does not know objects; a counter at 0 is a name and an empty nest.
    fn put_counter(&mut self, op: usize, name: &Name) {
        let start = self.begin(op, 0, NFT_MSG_NEWOBJ, NLM_F_CREATE);
        put(&mut self.bytes, NFTA_OBJ_TABLE, self.table.to_bytes_with_nul());
        put_str(&mut self.bytes, NFTA_OBJ_NAME, name.as_str());
        put_u32(&mut self.bytes, NFTA_OBJ_TYPE, NFT_OBJECT_COUNTER);
        let data = begin_nest(&mut self.bytes, NFTA_OBJ_DATA);
        end_nest(&mut self.bytes, data);
        end_message(&mut self.bytes, start);
    }

    fn put_set(&mut self, op: usize, set: &Set) -> Result<(), Unencodable> {
        if set.interval && set.key.len() != 1 {
            return Err(Unencodable::ConcatenatedRanges(set.name.clone()));
        }
        // Identifiers only have to differ within the batch; operations do.
        let id = op as u32 + 1;
        let object = Declaration::new(nfproto(self.family), &self.table, set, id);
        self.put_object(op, &object, MsgType::Add, NLM_F_CREATE);
        Ok(())
    }

    fn flush_set(&mut self, op: usize, set: &Name) {
        let start = self.begin(op, 0, NFT_MSG_DELSETELEM, 0);
        self.put_set_name(set);
        end_message(&mut self.bytes, start);
    }

    /// As many messages as it takes: the list of one holds at most 64 KiB.
    fn put_elements(&mut self, op: usize, message: u8, set: &Name, elements: &[Element]) {
        let deletes = message == NFT_MSG_DELSETELEM;
        let flags = if deletes { 0 } else { NLM_F_CREATE };
        let mut elements = elements.iter().enumerate().peekable();
        while let Some((first, _)) = elements.peek().copied() {
            let start = self.begin(op, first, message, flags);
            self.put_set_name(set);
            let list = begin_nest(&mut self.bytes, NFTA_SET_ELEM_LIST_ELEMENTS);
            while let Some((_, element)) = elements.peek() {
                let before = self.bytes.len();
                put_element(&mut self.bytes, element, deletes);
                if self.bytes.len() - list > usize::from(u16::MAX) {
                    self.bytes.truncate(before);
                    break;
                }
                elements.next();
            }
            end_nest(&mut self.bytes, list);
            end_message(&mut self.bytes, start);
        }
    }

    fn put_set_name(&mut self, set: &Name) {
        let table = self.table.to_bytes_with_nul();
        put(&mut self.bytes, NFTA_SET_ELEM_LIST_TABLE, table);
        put_str(&mut self.bytes, NFTA_SET_ELEM_LIST_SET, set.as_str());
    }

    fn put_comment(&mut self, kind: u16, comment: Option<&str>) {
        if let Some(comment) = comment {
            let mut data = Vec::with_capacity(comment.len() + 3);
            userdata::put_comment(&mut data, userdata::COMMENT, comment);
            put(&mut self.bytes, kind, &data);
        }
    }

    fn begin(&mut self, op: usize, first_element: usize, message: u8, flags: u16) -> usize {
        let (kind, flags, seq) = (nft_type(message), NLM_F_REQUEST | flags, self.next_seq());
        let family = [nfproto(self.family), 0, 0, 0];
        let start = begin_message(&mut self.bytes, kind, flags, seq, family);
        self.marks.push(Mark { start, op, first_element });
        start
    }

    /// Lets the C library write a message, takes it over with flags of ours (the crate asks for an
    /// ack on every message), and returns where it starts, for those who append to it.
    fn put_object(&mut self, op: usize, object: &impl NlMsg, how: MsgType, flags: u16) -> usize {
        let seq = self.next_seq();
        // SAFETY: the scratch is SCRATCH bytes, at least nft_nlmsg_maxsize() with pages of up to
        // 64 KiB, and aligned for the headers written into it.
        unsafe { object.write(self.scratch.0.as_mut_ptr().cast(), seq, how) };
        let len = u32_at(&self.scratch.0, 0).expect("the scratch has a header") as usize;
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&self.scratch.0[..len.next_multiple_of(4)]);
        let flags = (NLM_F_REQUEST | flags).to_ne_bytes();
        self.bytes[start + 6..start + 8].copy_from_slice(&flags);
        self.marks.push(Mark { start, op, first_element: 0 });
        start
    }

    fn nftnl_table(&self) -> nftnl::Table {
        let family = match self.family {
            Family::V4 => ProtoFamily::Ipv4,
            Family::V6 => ProtoFamily::Ipv6,
        };
        nftnl::Table::new(&self.table, family)
    }
}

fn add_flags(message: &mut [u8], flags: u16) {
    let old = u16_at(message, 6).expect("every message has a header");
    message[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
}

fn nftnl_chain_type(kind: ChainType) -> nftnl::ChainType {
    match kind {
        ChainType::Filter => nftnl::ChainType::Filter,
        ChainType::Nat => nftnl::ChainType::Nat,
    }
}

fn nftnl_hook(hook: Hook) -> nftnl::Hook {
    match hook {
        Hook::Prerouting => nftnl::Hook::PreRouting,
        Hook::Input => nftnl::Hook::In,
        Hook::Forward => nftnl::Hook::Forward,
        Hook::Output => nftnl::Hook::Out,
        Hook::Postrouting => nftnl::Hook::PostRouting,
    }
}

#[cfg(test)]
mod tests {
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
            .map(|m| {
                Attributes::new(m.attributes().get(NFTA_SET_ELEM_LIST_ELEMENTS).unwrap()).count()
            })
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
}
