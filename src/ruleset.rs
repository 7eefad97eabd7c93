//! nf_tables objects as plain values: what is programmed, what is dumped, what is rendered.
//!
//! Place in the flow: [`crate::program`] builds these values, a [`Transaction`] lists the operations
//! that change them, [`crate::netlink`] encodes and dumps them. [`Ruleset`] is one table
//! whole: the fake kernel's state, a dump's result, the renderer's and the packet walker's input.
//! Nothing here knows services, I/O or the wire format.

mod apply;
mod element;
mod expr;
mod object;
mod op;
mod render;
mod walk;

pub use apply::{apply, describe};
pub use element::{Element, Field, Key, Lifetime, Value};
pub use expr::{
    CmpOp, CtDirection, CtKey, Expr, FibResult, MetaKey, PayloadBase, Register, RejectKind,
    SetUpdate, Verdict,
};
pub use object::handover;
pub use object::{
    Chain, ChainType, Counter, Hook, Hooked, Name, Ownership, Rule, Set, SetKind, Table,
};
pub use op::{Counts, Op, Rejection, Transaction};
pub(crate) use render::value::duration;
pub use render::{render, render_key, render_part, render_rule};
pub use walk::{
    Branch, Effect, Environment, Flow, FlowState, LookedUp, Outcome, Packet, Step, walk_flow,
};

use std::collections::BTreeMap;

use crate::model::Family;

/// One table with everything in it.
///
/// Shape: chains, sets and counters by name; rules in order; elements by key. Ordered, so that the same state
/// always gives the same text and the same bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Ruleset {
    /// The family the table lives in.
    pub family: Family,
    /// The table itself; `None` while it does not exist, and then everything else is empty.
    pub table: Option<Table>,
    /// Chains by name, each with its rules.
    pub chains: BTreeMap<Name, (Chain, Vec<Rule>)>,
    pub counters: BTreeMap<Name, Counter>,
    /// Sets and maps by name, each with its elements.
    pub sets: BTreeMap<Name, (Set, BTreeMap<Key, Element>)>,
}

impl Ruleset {
    /// No table yet.
    pub fn empty(family: Family) -> Self {
        Ruleset {
            family,
            table: None,
            chains: BTreeMap::new(),
            counters: BTreeMap::new(),
            sets: BTreeMap::new(),
        }
    }

    /// Replaces the table by one with the same content, counters at 0, and these properties, which the kernel does
    /// not let anyone change on an existing table. The second transaction ends the handover that the
    /// first begins.
    pub fn recreated(&self, table: Table) -> [Transaction; 2] {
        let own = || self.chains.values().filter(|(chain, _)| !chain.is_handover());
        let twins: Vec<_> = handover(own()).collect();
        let end = twins.iter().map(|(twin, _)| Op::DeleteChain(twin.name.clone())).collect();
        let own = own().map(|(chain, rules)| (chain.clone(), &rules[..]));
        let chains: Vec<_> = own.chain(twins).collect();
        let filled = self.sets.iter().filter(|(_, (_, elements))| !elements.is_empty());
        let mut ops = vec![Op::DeleteTable, Op::AddTable(table)];
        ops.extend(self.counters.keys().cloned().map(Op::AddCounter));
        ops.extend(self.sets.values().map(|(set, _)| Op::AddSet(set.clone())));
        ops.extend(chains.iter().map(|(chain, _)| Op::AddChain(chain.clone())));
        ops.extend(filled.map(|(name, (_, elements))| {
            Op::AddElements(name.clone(), elements.values().cloned().collect())
        }));
        for (chain, rules) in &chains {
            ops.extend(rules.iter().map(|rule| Op::AddRule(chain.name.clone(), rule.clone())));
        }
        [Transaction { family: self.family, ops }, Transaction { family: self.family, ops: end }]
    }
}
