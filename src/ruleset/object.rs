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

    /// The text.
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
    /// Packets.
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

/// A hook of the network stack.
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

/// The type of a base chain.
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
    /// The chain's type.
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
    /// Comment (user data).
    pub comment: Option<String>,
}

/// One rule of a chain.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Expressions, evaluated in order; the first that does not match ends the rule.
    pub exprs: Vec<Expr>,
    /// Comment (user data).
    pub comment: Option<String>,
}

/// What a set's elements lead to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SetKind {
    /// Plain set.
    Set,
    /// Map to data.
    Map(Vec<Field>),
    /// Map to verdicts. Its elements make the kernel validate the whole table: rare features only.
    VerdictMap,
}

/// Declaration of a named set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub name: Name,
    /// The key's fields, concatenated; each is padded to 4 bytes on the wire.
    pub key: Vec<Field>,
    /// Set or map.
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
    /// Comment (user data).
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
