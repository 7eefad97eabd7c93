//! Text of a rule, regained from its instructions by following what each register holds.

use super::operand::Operand;
use super::value;
use crate::ruleset::{
    CmpOp, Expr, Field, Key, Name, Register, RejectKind, Rule, Ruleset, SetKind, SetUpdate,
};

/// One rule as nft prints it. The table tells the fields of the sets the rule refers to.
pub fn render_rule(rule: &Rule, ruleset: &Ruleset) -> String {
    let mut text = RuleText {
        ruleset,
        registers: Default::default(),
        words: Vec::new(),
        protocol: None,
        dependency: None,
    };
    for expr in &rule.exprs {
        text.expr(expr);
    }
    if let Some(comment) = &rule.comment {
        text.words.push(format!("comment \"{comment}\""));
    }
    text.words.retain(|word| !word.is_empty());
    text.words.join(" ")
}

struct RuleText<'a> {
    ruleset: &'a Ruleset,
    registers: [Option<Operand>; 16],
    words: Vec<String>,
    /// The transport protocol the rule has fixed.
    protocol: Option<String>,
    /// The word that fixed it; nft leaves it out if a later word implies it.
    dependency: Option<usize>,
}

impl RuleText<'_> {
    fn expr(&mut self, expr: &Expr) {
        let family = self.ruleset.family;
        match expr {
            Expr::Payload { base, offset, len, dst } => {
                self.load(*dst, Operand::payload(family, *base, *offset, *len));
            }
            Expr::Meta { key, dst } => self.load(*dst, Operand::meta(*key)),
            Expr::Ct { key, direction, dst } => self.load(*dst, Operand::ct(*key, *direction)),
            Expr::Fib { result, dst } => self.load(*dst, Operand::fib(*result)),
            Expr::Random { modulus, dst } => self.load(*dst, Operand::Random(*modulus)),
            Expr::Immediate { data, dst } => self.load(*dst, Operand::Constant(*data)),
            Expr::Bitwise { src, dst, mask, .. } => {
                let operand = Operand::Masked(Box::new(self.operand(*src)), *mask);
                self.load(*dst, operand);
            }
            Expr::Cmp { op, src, data } => self.compare(*op, *src, data),
            Expr::Lookup { set, src, dst, verdict, inverted } => {
                let key = self.concatenation(*src, &self.key_fields(set));
                match dst {
                    Some(dst) => self.load(*dst, Operand::Mapped(format!("{key} map @{set}"))),
                    None if *verdict => self.words.push(format!("{key} vmap @{set}")),
                    None if *inverted => self.words.push(format!("{key} != @{set}")),
                    None => self.words.push(format!("{key} @{set}")),
                }
            }
            Expr::Dynset { set, update, key, data, timeout } => {
                let word = self.dynset(set, *update, (*key, *data), *timeout);
                self.words.push(word);
            }
            Expr::Dnat { address, port } => {
                let word = self.dnat(*address, *port);
                self.words.push(word);
            }
            Expr::Counter { packets, bytes } => {
                self.words.push(format!("counter packets {packets} bytes {bytes}"));
                self.dependency = None;
            }
            Expr::Count(name) => {
                self.words.push(format!("counter name \"{name}\""));
                self.dependency = None;
            }
            Expr::Reject(kind) => self.reject(*kind),
            Expr::Masquerade => self.words.push("masquerade fully-random".into()),
            Expr::Verdict(verdict) => self.words.push(value::verdict(verdict)),
            Expr::Unknown(name) => self.words.push(format!("<{name}>")),
        }
    }

    fn load(&mut self, register: Register, operand: Operand) {
        if let Some(slot) = self.registers.get_mut(usize::from(register.0)) {
            *slot = Some(operand);
        }
    }

    fn operand(&self, register: Register) -> Operand {
        let held = self.registers.get(usize::from(register.0)).cloned().flatten();
        held.unwrap_or_else(|| Operand::Raw(format!("<register {}>", register.0)))
    }

    fn text(&mut self, register: Register) -> String {
        let operand = self.operand(register);
        if matches!(operand, Operand::Port(_)) {
            self.imply_protocol();
        }
        operand.text(self.protocol.as_deref())
    }

    /// A word that names the protocol makes the word that fixed it redundant.
    fn imply_protocol(&mut self) {
        if let Some(word) = self.dependency.take() {
            self.words[word].clear();
        }
    }

    fn compare(&mut self, op: CmpOp, src: Register, data: &Key) {
        let operand = self.operand(src);
        if matches!(operand, Operand::Port(_)) {
            self.imply_protocol();
        }
        let fixes_protocol = op == CmpOp::Eq && operand.is_protocol_of_packet();
        let word = operand.compare(op, data, self.protocol.as_deref());
        if fixes_protocol && let Some(&number) = data.as_bytes().first() {
            self.protocol = Some(value::protocol(number));
            self.dependency = Some(self.words.len());
        }
        self.words.push(word);
    }

    fn reject(&mut self, kind: RejectKind) {
        match kind {
            RejectKind::TcpReset => {
                self.imply_protocol();
                self.words.push("reject with tcp reset".into());
            }
            RejectKind::PortUnreachable => self.words.push("reject".into()),
        }
    }

    fn key_fields(&self, set: &Name) -> Vec<Field> {
        self.ruleset.sets.get(set).map(|(set, _)| set.key.clone()).unwrap_or_default()
    }

    fn data_fields(&self, set: &Name) -> Vec<Field> {
        match self.ruleset.sets.get(set).map(|(set, _)| &set.kind) {
            Some(SetKind::Map(fields)) => fields.clone(),
            _ => Vec::new(),
        }
    }

    fn concatenation(&mut self, first: Register, fields: &[Field]) -> String {
        let mut register = first;
        let mut texts = Vec::new();
        for field in fields {
            texts.push(self.text(register));
            register = Register(register.0 + (field.padded_len() / 4) as u8);
        }
        texts.join(" . ")
    }

    fn dynset(
        &mut self,
        set: &Name,
        update: SetUpdate,
        (key, data): (Register, Option<Register>),
        timeout: Option<u64>,
    ) -> String {
        let verb = match update {
            SetUpdate::Add => "add",
            SetUpdate::Update => "update",
        };
        let mut text = self.concatenation(key, &self.key_fields(set));
        if let Some(millis) = timeout {
            text += &format!(" timeout {}", value::duration(millis));
        }
        if let Some(data) = data {
            text += " : ";
            text += &self.concatenation(data, &self.data_fields(set));
        }
        format!("{verb} @{set} {{ {text} }}")
    }

    fn dnat(&mut self, address: Register, port: Register) -> String {
        match (self.operand(address), self.operand(port)) {
            (Operand::Constant(address), Operand::Constant(port)) => {
                let port = port.port_at(0).unwrap_or(0);
                match (value::address(address.as_bytes()), address.as_bytes().len()) {
                    (Some(address), 16) => format!("dnat to [{address}]:{port}"),
                    (Some(address), _) => format!("dnat to {address}:{port}"),
                    (None, _) => format!("dnat to {address:?}:{port}"),
                }
            }
            (address, _) => {
                format!("dnat {} to {}", self.ruleset.family.nft(), address.text(None))
            }
        }
    }
}
