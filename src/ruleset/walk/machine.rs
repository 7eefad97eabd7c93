//! nf_tables' virtual machine: hooks, chains, rules, instructions.

mod load;
mod lookup;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::state::{Registers, State};
use super::{Effect, Environment, FlowState, LookedUp, Packet, Step};
use crate::ruleset::render::render_rule;
use crate::ruleset::{
    Chain, ChainType, CmpOp, Expr, Hook, Key, Name, Register, RejectKind, Rule, Ruleset, Verdict,
};

/// How a chain ends for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The calling chain goes on.
    Return,
    /// The base chain is done.
    Accept,
    /// Discarded.
    Drop,
    /// Refused.
    Reject(RejectKind),
}

/// The deepest nesting of jumps the kernel allows (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;

/// A table with a packet in it.
pub(super) struct Machine<'a> {
    ruleset: &'a Ruleset,
    packet: &'a Packet,
    environment: &'a Environment,
    texts: RefCell<BTreeMap<(Name, usize), Arc<str>>>,
}

/// The place in the table where a rule is evaluated.
#[derive(Clone, Copy)]
struct Place<'a> {
    hook: Hook,
    chain: &'a Name,
    index: usize,
    /// Equal rules in a row that are evaluated as one.
    repeats: usize,
}

/// What is known while a rule is evaluated.
#[derive(Clone)]
struct Progress {
    state: State,
    registers: Registers,
    lookups: Vec<LookedUp>,
    /// An element the rule adds or refreshes.
    update: Option<Effect>,
}

impl<'a> Machine<'a> {
    pub(super) fn new(
        ruleset: &'a Ruleset,
        packet: &'a Packet,
        environment: &'a Environment,
    ) -> Self {
        Machine { ruleset, packet, environment, texts: RefCell::default() }
    }

    /// All base chains of a hook, by priority.
    pub(super) fn hook(&self, hook: Hook, state: State) -> Vec<(State, End)> {
        let mut chains: Vec<(i32, ChainType, &Name)> =
            self.ruleset.chains.values().filter_map(|(chain, _)| base_of(chain, hook)).collect();
        chains.sort_by_key(|(priority, ..)| *priority);
        let mut live = vec![state];
        let mut ended = Vec::new();
        for (_, kind, chain) in chains {
            let mut next = Vec::new();
            for mut state in live {
                if kind == ChainType::Nat && !self.enters_nat(hook, &mut state) {
                    next.push(state);
                    continue;
                }
                for (state, end) in self.chain(hook, chain, state, 0) {
                    match end {
                        End::Return | End::Accept => next.push(state),
                        End::Drop | End::Reject(_) => ended.push((state, end)),
                    }
                }
            }
            live = next;
        }
        ended.extend(live.into_iter().map(|state| (state, End::Accept)));
        ended
    }

    /// Nat chains see a flow's first packet until one of the hook translates it (`nf_nat_inet_fn`), and
    /// its destination only once: what the host sends to itself has been through output when it
    /// reaches prerouting.
    fn enters_nat(&self, hook: Hook, state: &mut State) -> bool {
        let destination_hook = matches!(hook, Hook::Prerouting | Hook::Output);
        let again = hook == Hook::Prerouting && self.packet.input.is_none();
        match self.packet.state {
            FlowState::New if destination_hook => !again && state.translated.is_none(),
            FlowState::New => !state.masquerade,
            FlowState::Established { .. } => {
                if destination_hook && !again {
                    state.translate_as_before(self.packet);
                }
                false
            }
        }
    }

    fn chain(&self, hook: Hook, name: &Name, state: State, depth: usize) -> Vec<(State, End)> {
        let Some((_, rules)) = self.ruleset.chains.get(name).filter(|_| depth <= MAX_DEPTH) else {
            return vec![(state, End::Return)];
        };
        let mut ended = Vec::new();
        let mut live = vec![(state, 0)];
        while let Some((state, index)) = live.pop() {
            let Some(rule) = rules.get(index) else {
                ended.push((state, End::Return));
                continue;
            };
            let place = Place { hook, chain: name, index, repeats: repeats(&rules[index..]) };
            for (state, effect) in self.rule(rule, place, state) {
                let next = index + place.repeats;
                match effect {
                    Effect::Verdict(Verdict::Jump(target)) => {
                        for (state, end) in self.chain(hook, &target, state, depth + 1) {
                            match end {
                                End::Return => live.push((state, next)),
                                _ => ended.push((state, end)),
                            }
                        }
                    }
                    Effect::Verdict(Verdict::Goto(target)) => {
                        ended.extend(self.chain(hook, &target, state, depth + 1));
                    }
                    effect => match end_of(&effect) {
                        Some(end) => ended.push((state, end)),
                        None => live.push((state, next)),
                    },
                }
            }
        }
        ended
    }

    /// Evaluates a rule; more than one result where a draw decides. Each has its step noted.
    fn rule(&self, rule: &Rule, place: Place<'_>, state: State) -> Vec<(State, Effect)> {
        let progress =
            Progress { state, registers: Registers::new(), lookups: Vec::new(), update: None };
        let mut results = Vec::new();
        self.exprs(&rule.exprs, place, progress, &mut results);
        let rule = self.text(rule, place);
        results
            .into_iter()
            .map(|(mut progress, effect)| {
                progress.state.steps.push(Step {
                    hook: place.hook,
                    chain: place.chain.clone(),
                    index: place.index,
                    rule: rule.clone(),
                    repeats: place.repeats,
                    lookups: progress.lookups,
                    effect: effect.clone(),
                });
                (progress.state, effect)
            })
            .collect()
    }

    fn text(&self, rule: &Rule, place: Place<'_>) -> Arc<str> {
        let mut texts = self.texts.borrow_mut();
        let text = texts.entry((place.chain.clone(), place.index));
        text.or_insert_with(|| render_rule(rule, self.ruleset).into()).clone()
    }

    fn exprs(
        &self,
        exprs: &[Expr],
        place: Place<'_>,
        mut progress: Progress,
        results: &mut Vec<(Progress, Effect)>,
    ) {
        for (index, expr) in exprs.iter().enumerate() {
            if let Expr::Lookup { .. } = expr {
                for (progress, effect) in self.lookup(expr, place, progress) {
                    match effect {
                        Some(effect) => results.push((progress, effect)),
                        None => self.exprs(&exprs[index + 1..], place, progress, results),
                    }
                }
                return;
            }
            if let Some(effect) = self.expr(expr, &mut progress) {
                results.push((progress, effect));
                return;
            }
        }
        let effect = progress.update.take().unwrap_or(Effect::Continue);
        results.push((progress, effect));
    }

    /// Evaluates an instruction that is no lookup; `None` if the rule goes on.
    fn expr(&self, expr: &Expr, progress: &mut Progress) -> Option<Effect> {
        match expr {
            Expr::Counter { .. } | Expr::Count(_) => None,
            Expr::Verdict(verdict) => Some(Effect::Verdict(verdict.clone())),
            Expr::Reject(kind) => Some(Effect::Reject(*kind)),
            Expr::Masquerade => {
                progress.state.masquerade = true;
                Some(Effect::Masquerade)
            }
            Expr::Cmp { op, src, data } => compare(&progress.registers, *op, *src, data),
            Expr::Random { modulus, dst } => {
                if progress.registers.load(*dst, &[0; 4]).is_none() {
                    return Some(Effect::NotFollowed);
                }
                progress.registers.draw = Some((usize::from(dst.0) * 4, *modulus));
                None
            }
            Expr::Dnat { address, port } => Some(match self.endpoint(progress, *address, *port) {
                Some(endpoint) => {
                    progress.state.translate(endpoint);
                    Effect::Dnat(endpoint)
                }
                None => Effect::NotFollowed,
            }),
            Expr::Dynset { set, key, data, .. } => {
                let element = self.element_text(&progress.registers, set, *key, *data);
                progress.update = Some(Effect::Update { set: set.clone(), element });
                None
            }
            _ => match self.load(expr, progress) {
                Some(()) => None,
                None => Some(Effect::NotFollowed),
            },
        }
    }

    fn endpoint(
        &self,
        progress: &Progress,
        address: Register,
        port: Register,
    ) -> Option<SocketAddr> {
        let family = self.ruleset.family;
        let address = progress.registers.read(address, family.address_len())?;
        let port = progress.registers.read(port, 2)?;
        let address = Key::from_bytes(address)?.address_at(0, family)?;
        Some(SocketAddr::new(address, Key::from_bytes(port)?.port_at(0)?))
    }
}

fn base_of(chain: &Chain, hook: Hook) -> Option<(i32, ChainType, &Name)> {
    let hooked = chain.hooked.filter(|hooked| hooked.hook == hook)?;
    Some((hooked.priority, hooked.kind, &chain.name))
}

/// How a chain ends with an effect; `None` if it goes on with its next rule.
fn end_of(effect: &Effect) -> Option<End> {
    match effect {
        Effect::Verdict(Verdict::Accept) | Effect::Dnat(_) | Effect::Masquerade => {
            Some(End::Accept)
        }
        Effect::Verdict(Verdict::Drop) => Some(End::Drop),
        Effect::Verdict(Verdict::Return) => Some(End::Return),
        Effect::Reject(kind) => Some(End::Reject(*kind)),
        _ => None,
    }
}

/// Draws that miss are followed by the same rule: all of them are one step, and what it hits
/// follows from the number of draws. Only for rules that end the chain when they match.
fn repeats(rules: &[Rule]) -> usize {
    let rule = &rules[0];
    let draws = rule.exprs.iter().any(|expr| matches!(expr, Expr::Random { .. }));
    if !draws || !matches!(rule.exprs.last(), Some(Expr::Dnat { .. })) {
        return 1;
    }
    rules.iter().take_while(|next| *next == rule).count()
}

fn compare(registers: &Registers, op: CmpOp, src: Register, data: &Key) -> Option<Effect> {
    let at = usize::from(src.0) * 4;
    let drawn =
        registers.draw.is_some_and(|(draw, _)| (at..at + data.as_bytes().len()).contains(&draw));
    let Some(held) = registers.read(src, data.as_bytes().len()).filter(|_| !drawn) else {
        return Some(Effect::NotFollowed);
    };
    let equal = held == data.as_bytes();
    if equal == (op == CmpOp::Eq) { None } else { Some(Effect::NoMatch) }
}
