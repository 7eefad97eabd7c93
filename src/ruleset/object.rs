//! Tables, chains, rules and sets.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use super::{Expr, Field};

/// The name of a chain, set, map or counter: at most 255 bytes (`NFT_NAME_MAXLEN` less the NUL).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

impl Name {
    /// Longest name the kernel takes, in bytes.
    pub const MAX_LEN: usize = 255;

    /// Wraps a name.
    ///
    /// # Panics
    /// If it is longer than [`Name::MAX_LEN`] or contains a NUL: names are built by us, never taken
    /// from outside unchecked.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        let name = name.into();
        assert!(name.len() <= Name::MAX_LEN, "nf_tables name too long: {name}");
        assert!(!name.contains('\0'), "nf_tables name with a NUL");
        Name(name)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        Name::new(name)
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Name::new(name)
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a named counter counted so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    pub packets: u64,
    /// Their bytes, from the network header on.
    pub bytes: u64,
}

/// The table. Its name is always `kube-proxy` (B-178).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Comment; also carries the program's version mark.
    pub comment: Option<String>,
    /// Which socket owns it (`NFT_TABLE_F_OWNER`, kernel 5.12): everybody else gets EPERM.
    pub owner: Ownership,
    /// Outlives its owner (`NFT_TABLE_F_PERSIST`, kernel 6.9).
    pub persist: bool,
}

/// Whose a table is, from the point of view of the kernel connection that reads or creates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ownership {
    /// Nobody's: everybody may change it.
    #[default]
    Nobody,
    /// This connection's.
    Ours,
    /// Another socket's, with its port: the process id of the owner, unless that process had a socket
    /// of that port before.
    Other(u32),
}

impl Ownership {
    /// Whether nobody else can change the table.
    pub fn is_ours(self) -> bool {
        self == Ownership::Ours
    }
}

impl Table {
    /// The name of the table in both families.
    pub const NAME: &'static str = "kube-proxy";
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// `NF_INET_PRE_ROUTING`.
    Prerouting,
    /// `NF_INET_LOCAL_IN`.
    Input,
    /// `NF_INET_FORWARD`.
    Forward,
    /// `NF_INET_LOCAL_OUT`.
    Output,
    /// `NF_INET_POST_ROUTING`.
    Postrouting,
}

impl Hook {
    /// As nft prints it.
    pub fn nft(self) -> &'static str {
        match self {
            Hook::Prerouting => "prerouting",
            Hook::Input => "input",
            Hook::Forward => "forward",
            Hook::Output => "output",
            Hook::Postrouting => "postrouting",
        }
    }

    /// The kernel's number (`enum nf_inet_hooks`).
    pub fn number(self) -> u32 {
        self as u32
    }

    /// From the kernel's number.
    pub fn from_number(number: u32) -> Option<Hook> {
        [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]
            .into_iter()
            .find(|h| h.number() == number)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChainType {
    /// Every packet.
    Filter,
    /// First packets of flows.
    Nat,
}

impl ChainType {
    /// As nft prints it.
    pub fn nft(self) -> &'static str {
        match self {
            ChainType::Filter => "filter",
            ChainType::Nat => "nat",
        }
    }
}

/// Where a base chain is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hooked {
    pub kind: ChainType,
    pub hook: Hook,
    /// Position among the hook's chains, lower first.
    pub priority: i32,
}

/// A chain. Base chains have policy accept, always.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: Name,
    /// `None` for a regular chain.
    pub hooked: Option<Hooked>,
    pub comment: Option<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Expressions, evaluated in order; the first that does not match ends the rule.
    pub exprs: Vec<Expr>,
    pub comment: Option<String>,
}

/// What a set's elements lead to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SetKind {
    Set,
    Map(Vec<Field>),
    /// Map to verdicts. Its elements make the kernel validate the whole table: rare features only.
    VerdictMap,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub name: Name,
    /// The key's fields, concatenated; each is padded to 4 bytes on the wire.
    pub key: Vec<Field>,
    pub kind: SetKind,
    /// Elements are ranges (`NFT_SET_INTERVAL`).
    pub interval: bool,
    /// Elements may be added by packets (`NFT_SET_EVAL`).
    pub dynamic: bool,
    /// Elements carry a packet counter (`NFTA_SET_EXPR` counter).
    pub counter: bool,
    /// Elements expire; default lifetime in milliseconds (`NFT_SET_TIMEOUT`).
    pub timeout: Option<u64>,
    /// Most elements it may hold.
    pub size: Option<u32>,
    pub comment: Option<String>,
}

impl Set {
    /// A plain set without flags.
    pub fn plain(name: impl Into<Name>, key: Vec<Field>) -> Self {
        Set {
            name: name.into(),
            key,
            kind: SetKind::Set,
            interval: false,
            dynamic: false,
            counter: false,
            timeout: None,
            size: None,
            comment: None,
        }
    }

    /// Bytes of a key on the wire.
    pub fn key_len(&self) -> usize {
        self.key.iter().map(|f| f.padded_len()).sum()
    }
}

// What stands by while one transaction replaces a table by another.
//
// Each chain that a packet enters, and each lookup it makes there, sees the generation of its moment
// (`nft_do_chain`, `nft_genmask_cur`). A packet that the commit overtakes within a hook has passed
// the new base chain while that was not in force, for a new hook comes before those of equal priority
// (`nf_hook_entries_grow`), and finds the sets of the old one empty. Nobody would translate it: seen
// with kernel 6.18 about once in 250 replacements under load. So every base chain has a twin one
// priority later for as long as the replacement takes, which is in force when the packet gets there.

/// How a twin's name ends.
const SUFFIX: &str = "-handover";

impl Chain {
    /// The twin of a base chain; `None` of a regular chain, and of a twin.
    pub fn handover(&self) -> Option<Chain> {
        let hooked = self.hooked.filter(|_| !self.is_handover())?;
        Some(Chain {
            name: Name::new(format!("{}{SUFFIX}", self.name)),
            hooked: Some(Hooked { priority: hooked.priority + 1, ..hooked }),
            comment: Some("while a table is replaced".to_owned()),
        })
    }

    pub fn is_handover(&self) -> bool {
        self.hooked.is_some() && self.name.as_str().ends_with(SUFFIX)
    }
}

/// The twins of the base chains among these, each with its rules.
pub fn handover<'a>(
    chains: impl IntoIterator<Item = &'a (Chain, Vec<Rule>)>,
) -> impl Iterator<Item = (Chain, &'a [Rule])> {
    chains.into_iter().filter_map(|(chain, rules)| Some((chain.handover()?, &rules[..])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Family;
    use crate::program::{RuleOptions, program};

    #[test]
    fn a_twin_comes_right_after_its_chain_and_has_none_itself() {
        let program = program(Family::V4, &RuleOptions::nftables());
        for (chain, _) in &program.base_chains {
            let twin = chain.handover().unwrap();
            let (hooked, of_twin) = (chain.hooked.unwrap(), twin.hooked.unwrap());
            assert_eq!(Hooked { priority: of_twin.priority - 1, ..of_twin }, hooked);
            assert!(twin.is_handover() && !chain.is_handover());
            assert_eq!(twin.handover(), None);
        }
        assert_eq!(handover(&program.chains).count(), 0);
        assert_eq!(handover(&program.base_chains).count(), program.base_chains.len());
    }
}
