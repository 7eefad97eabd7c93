//! nf_tables' virtual machine: hooks, chains, rules, instructions.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::{Effect, Environment, FlowState, LookedUp, Packet, Registers, State, Step, octets};
use crate::model::Family;
use crate::ruleset::render::render_rule;
use crate::ruleset::{
    Chain, ChainType, CmpOp, CtDirection, CtKey, Expr, FibResult, Hook, Key, MetaKey, Name,
    PayloadBase, Register, RejectKind, Rule, Ruleset, Verdict,
};

/// How a chain ends for a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// The calling chain goes on.
    Return,
    /// The base chain is done.
    Accept,
    Drop,
    Reject(RejectKind),
}

/// The deepest nesting of jumps the kernel allows (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;

/// A table with a packet in it.
pub(super) struct Machine<'a> {
    pub(super) ruleset: &'a Ruleset,
    packet: &'a Packet,
    environment: &'a Environment,
    texts: RefCell<BTreeMap<(Name, usize), Arc<str>>>,
}

/// The place in the table where a rule is evaluated.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) hook: Hook,
    pub(super) chain: &'a Name,
    pub(super) index: usize,
    /// Equal rules in a row that are evaluated as one.
    pub(super) repeats: usize,
}

/// What is known while a rule is evaluated.
#[derive(Clone)]
pub(super) struct Progress {
    pub(super) state: State,
    pub(super) registers: Registers,
    pub(super) lookups: Vec<LookedUp>,
    /// An element the rule adds or refreshes.
    pub(super) update: Option<Effect>,
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

// Instructions that load registers.

/// `RTN_UNICAST` and `RTN_LOCAL` of `linux/rtnetlink.h`.
const RTN_UNICAST: u32 = 1;
const RTN_LOCAL: u32 = 2;
/// Bits of `NF_CT_STATE_BIT`.
const STATE_ESTABLISHED: u32 = 2;
const STATE_NEW: u32 = 8;
/// Bits of `enum ip_conntrack_status`.
const STATUS_SRC_NAT: u32 = 1 << 4;
const STATUS_DST_NAT: u32 = 1 << 5;
const IFNAMSIZ: usize = 16;

impl Machine<'_> {
    /// `None` if the instruction cannot be followed.
    fn load(&self, expr: &Expr, progress: &mut Progress) -> Option<()> {
        let (dst, bytes): (Register, Vec<u8>) = match expr {
            Expr::Payload { base, offset, len, dst } => {
                (*dst, self.payload(*base, *offset, *len, progress)?)
            }
            Expr::Meta { key: MetaKey::L4Proto, dst } => (*dst, vec![self.packet.protocol]),
            Expr::Meta { key: MetaKey::IifName, dst } => (*dst, self.interface()),
            // Which index an interface has, nobody can tell from a packet; only 0 means something.
            Expr::Meta { key: MetaKey::Iif, dst } => {
                (*dst, u32::from(self.packet.input.is_some()).to_ne_bytes().to_vec())
            }
            Expr::Ct { key, direction, dst } => (*dst, self.conntrack(*key, *direction, progress)?),
            Expr::Fib { result, dst } => (*dst, self.address_type(*result, progress)),
            Expr::Immediate { data, dst } => (*dst, data.as_bytes().to_vec()),
            Expr::Bitwise { src, dst, mask, xor } => {
                (*dst, bitwise(progress.registers.read(*src, mask.as_bytes().len())?, mask, xor)?)
            }
            _ => return None,
        };
        progress.registers.load(dst, &bytes)
    }

    fn payload(
        &self,
        base: PayloadBase,
        offset: u32,
        len: u32,
        progress: &Progress,
    ) -> Option<Vec<u8>> {
        let header = match base {
            PayloadBase::Network => self.network_header(progress),
            PayloadBase::Transport => {
                let ports = [self.packet.source.port(), progress.state.destination.port()];
                ports.iter().flat_map(|port| port.to_be_bytes()).collect()
            }
        };
        let (offset, len) = (offset as usize, len as usize);
        header.get(offset..offset + len).map(<[u8]>::to_vec)
    }

    /// The parts of `struct iphdr` and `struct ipv6hdr` that are known.
    fn network_header(&self, progress: &Progress) -> Vec<u8> {
        let (addresses, protocol) = match self.ruleset.family {
            Family::V4 => (12, 9),
            Family::V6 => (8, 6),
        };
        let mut header = vec![0; addresses];
        header[protocol] = self.packet.protocol;
        header.extend(octets(self.packet.source.ip()));
        header.extend(octets(progress.state.destination.ip()));
        header
    }

    /// Empty for what the host sends: no name starts or equals it.
    fn interface(&self) -> Vec<u8> {
        let mut name = self.packet.input.clone().unwrap_or_default().into_bytes();
        name.resize(IFNAMSIZ, 0);
        name
    }

    fn address_type(&self, result: FibResult, progress: &Progress) -> Vec<u8> {
        let address = match result {
            FibResult::SourceType => self.packet.source.ip(),
            FibResult::DestinationType => progress.state.destination.ip(),
        };
        let local = self.environment.is_local(address);
        let number = if local { RTN_LOCAL } else { RTN_UNICAST };
        number.to_ne_bytes().to_vec()
    }

    fn conntrack(
        &self,
        key: CtKey,
        direction: Option<CtDirection>,
        progress: &Progress,
    ) -> Option<Vec<u8>> {
        let packet = self.packet;
        let bits = |bits: u32| Some(bits.to_ne_bytes().to_vec());
        match key {
            CtKey::State => bits(match packet.state {
                FlowState::New => STATE_NEW,
                FlowState::Established { .. } => STATE_ESTABLISHED,
            }),
            CtKey::Status => {
                let translated = progress.state.translated.map_or(0, |_| STATUS_DST_NAT);
                let masqueraded = if progress.state.masquerade { STATUS_SRC_NAT } else { 0 };
                bits(translated | masqueraded)
            }
            CtKey::Protocol => Some(vec![packet.protocol]),
            // What a reply will look like is not known before the flow leaves the last hook.
            _ if direction == Some(CtDirection::Reply) => None,
            CtKey::SrcIp | CtKey::SrcIp6 => Some(octets(packet.source.ip())),
            CtKey::DstIp | CtKey::DstIp6 => Some(octets(packet.destination.ip())),
            CtKey::ProtoDst => Some(packet.destination.port().to_be_bytes().to_vec()),
        }
    }
}

fn bitwise(held: &[u8], mask: &Key, xor: &Key) -> Option<Vec<u8>> {
    let (mask, xor) = (mask.as_bytes(), xor.as_bytes());
    if mask.len() != xor.len() {
        return None;
    }
    Some(held.iter().zip(mask).zip(xor).map(|((held, mask), xor)| held & mask ^ xor).collect())
}
