//! The steps of a walk: one structure for programs, and its text for people.
//!
//! Place in the flow: an [`super::Explanation`] holds them; JSON is the structure itself, the text is
//! made of it and of nothing else.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::ruleset::{Effect, LookedUp, RejectKind, Step, Verdict};

/// One rule that was evaluated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedRule {
    /// Where in the network stack: `prerouting`, `input`, `forward`, `output`, `postrouting`.
    pub hook: Cow<'static, str>,
    pub chain: String,
    pub rule: String,
    /// How many equal rules in a row this stands for: draws, which are tried until one hits.
    pub times: usize,
    pub lookups: Vec<TracedLookup>,
    #[serde(flatten)]
    pub effect: TracedEffect,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedLookup {
    pub set: String,
    /// The key as nft prints it; a draw stands there as `random mod 16`.
    pub key: String,
    /// The value a map has, `member` of a set; `None` if nothing was found.
    pub found: Option<String>,
    /// The comment of what was found: `namespace/service:port`.
    pub comment: Option<String>,
}

/// What came of a rule: `effect` in JSON, with what belongs to it beside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "effect", rename_all = "kebab-case")]
pub enum TracedEffect {
    NoMatch,
    /// It matched and the next rule follows.
    Match,
    Accept,
    Drop,
    Return,
    Jump {
        target: String,
    },
    Goto {
        target: String,
    },
    Dnat {
        endpoint: SocketAddr,
    },
    /// The flow gets an address of the node as source.
    Masquerade,
    Reject {
        /// `tcp reset` or `icmp port-unreachable`.
        with: Cow<'static, str>,
    },
    Update {
        set: String,
        /// The element as nft prints it, without its lifetime.
        element: String,
    },
    /// It holds an instruction that cannot be followed, and was taken as not matching.
    NotFollowed,
}

/// The text of all steps: each hook and chain once, its rules below, their lookups below those.
#[derive(Debug)]
pub struct Trace<'a>(pub &'a [TracedRule]);

impl From<&Step> for TracedRule {
    fn from(step: &Step) -> Self {
        TracedRule {
            hook: step.hook.nft().into(),
            chain: step.chain.to_string(),
            rule: step.rule.to_string(),
            times: step.repeats,
            lookups: step.lookups.iter().map(TracedLookup::from).collect(),
            effect: TracedEffect::from(&step.effect),
        }
    }
}

impl From<&LookedUp> for TracedLookup {
    fn from(lookup: &LookedUp) -> Self {
        TracedLookup {
            set: lookup.set.to_string(),
            key: lookup.key.clone(),
            found: lookup.found.clone(),
            comment: lookup.comment.as_deref().map(str::to_owned),
        }
    }
}

impl From<&Effect> for TracedEffect {
    fn from(effect: &Effect) -> Self {
        match effect {
            Effect::NoMatch => TracedEffect::NoMatch,
            Effect::Continue => TracedEffect::Match,
            Effect::Verdict(Verdict::Accept) => TracedEffect::Accept,
            Effect::Verdict(Verdict::Drop) => TracedEffect::Drop,
            Effect::Verdict(Verdict::Return) => TracedEffect::Return,
            Effect::Verdict(Verdict::Jump(chain)) => {
                TracedEffect::Jump { target: chain.to_string() }
            }
            Effect::Verdict(Verdict::Goto(chain)) => {
                TracedEffect::Goto { target: chain.to_string() }
            }
            Effect::Dnat(endpoint) => TracedEffect::Dnat { endpoint: *endpoint },
            Effect::Masquerade => TracedEffect::Masquerade,
            Effect::Reject(RejectKind::TcpReset) => {
                TracedEffect::Reject { with: "tcp reset".into() }
            }
            Effect::Reject(RejectKind::PortUnreachable) => {
                TracedEffect::Reject { with: "icmp port-unreachable".into() }
            }
            Effect::Update { set, element } => {
                TracedEffect::Update { set: set.to_string(), element: element.clone() }
            }
            Effect::NotFollowed => TracedEffect::NotFollowed,
        }
    }
}

impl fmt::Display for TracedEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TracedEffect::NoMatch => f.write_str("no match"),
            TracedEffect::Match => f.write_str("match"),
            TracedEffect::Accept => f.write_str("accept"),
            TracedEffect::Drop => f.write_str("drop"),
            TracedEffect::Return => f.write_str("return"),
            TracedEffect::Jump { target } => write!(f, "jump {target}"),
            TracedEffect::Goto { target } => write!(f, "goto {target}"),
            TracedEffect::Dnat { endpoint } => write!(f, "dnat to {endpoint}"),
            TracedEffect::Masquerade => f.write_str("masquerade"),
            TracedEffect::Reject { with } => write!(f, "reject with {with}"),
            TracedEffect::Update { set, element } => write!(f, "update @{set} {{ {element} }}"),
            TracedEffect::NotFollowed => f.write_str("not followed"),
        }
    }
}

impl fmt::Display for TracedLookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.found.as_deref().unwrap_or("nothing");
        write!(f, "{} in {}: {found}", self.key, self.set)?;
        match &self.comment {
            Some(comment) => write!(f, " \"{comment}\""),
            None => Ok(()),
        }
    }
}

impl fmt::Display for TracedRule {
    /// The rule, and a line for each lookup; the last line says what came of it, unless it is the
    /// rule itself that says so.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "    {}", self.rule)?;
        if self.times > 1 {
            write!(f, " (up to {} draws)", self.times)?;
        }
        for lookup in &self.lookups {
            write!(f, "\n      {lookup}")?;
        }
        let effect = self.effect.to_string();
        if !self.lookups.is_empty() || !self.rule.contains(&effect) {
            write!(f, " -> {effect}")?;
        }
        writeln!(f)
    }
}

impl fmt::Display for Trace<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut place = ("", "");
        for rule in self.0 {
            if place != (&*rule.hook, rule.chain.as_str()) {
                place = (&*rule.hook, rule.chain.as_str());
                writeln!(f, "  {}, chain {}", rule.hook, rule.chain)?;
            }
            rule.fmt(f)?;
        }
        Ok(())
    }
}
