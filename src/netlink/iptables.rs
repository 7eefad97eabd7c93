//! The tables of iptables-nft: chains, the jumps between them, and their removal.
//!
//! iptables-nft keeps its tables in nf_tables: table `nat` of iptables is table `ip nat`, a comment is
//! an xt match called `comment`. Place in the flow: what is read here [`crate::cleanup`] decides upon.
//! Keeps only rules that jump or go to a chain, not what they match.
//! Source: linux/netfilter/nf_tables.h, nf_tables_compat.h.

use std::io;

use super::attribute::{Attributes, put_str, put_u64};
use super::request::{Dump, Request, Requests};
use super::uapi::*;
use super::userdata;
use crate::model::Family;

/// How often a table is read that changes meanwhile; kubelet and CNIs write to these tables rarely.
const ATTEMPTS: usize = 5;

/// A rule that continues in another chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jump {
    /// Its chain.
    pub from: String,
    /// Its number in the table.
    pub handle: u64,
    /// The other chain.
    pub to: String,
    pub comment: Option<String>,
}

/// A table's chains and jumps, in the kernel's order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub chains: Vec<String>,
    /// Rules that continue elsewhere.
    pub jumps: Vec<Jump>,
}

/// The tables of a family, in the calling thread's network namespace.
pub struct IpTables {
    requests: Requests,
    family: Family,
}

impl IpTables {
    pub fn open(family: Family) -> io::Result<Self> {
        Ok(IpTables { requests: Requests::to_netfilter()?, family })
    }

    /// Reads a table; one that does not exist has no chains, and the jumps of one in which no chain
    /// is `wanted` are left out.
    pub fn read(&mut self, table: &str, wanted: impl Fn(&str) -> bool) -> io::Result<Listing> {
        for _ in 0..ATTEMPTS {
            let mut listing = Listing::default();
            let request = |command| self.request(command, names(NFTA_CHAIN_TABLE, table, None));
            let (get_chains, get_rules) = (request(NFT_MSG_GETCHAIN), request(NFT_MSG_GETRULE));
            let chains = self.requests.dump(&get_chains, |chain| {
                let chain = chain.attributes();
                // The kernel does not filter chains by table.
                if chain.str(NFTA_CHAIN_TABLE) == Some(table) {
                    listing.chains.extend(chain.str(NFTA_CHAIN_NAME).map(str::to_owned));
                }
            })?;
            let rules = match listing.chains.iter().any(|chain| wanted(chain)) {
                false => Dump::Complete,
                true => self.requests.dump(&get_rules, |rule| {
                    let rule = rule.attributes();
                    if rule.str(NFTA_RULE_TABLE) == Some(table) {
                        listing.jumps.extend(read_jump(rule));
                    }
                })?,
            };
            if (chains, rules) == (Dump::Complete, Dump::Complete) {
                return Ok(listing);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EINTR))
    }

    /// Deletes rules by chain and handle and then all rules of some chains, in as few transactions as
    /// possible.
    pub fn delete_rules(
        &mut self,
        table: &str,
        rules: &[(String, u64)],
        emptied: &[String],
    ) -> io::Result<()> {
        let of = |chain: &str| names(NFTA_RULE_TABLE, table, Some((NFTA_RULE_CHAIN, chain)));
        let single = rules.iter().map(|(chain, handle)| {
            let mut attributes = of(chain);
            put_u64(&mut attributes, NFTA_RULE_HANDLE, *handle);
            attributes
        });
        // Without a handle every rule of the chain goes.
        let all = single.chain(emptied.iter().map(|chain| of(chain)));
        let requests: Vec<Request> =
            all.map(|attributes| self.request(NFT_MSG_DELRULE, attributes)).collect();
        self.requests.batches(&requests)
    }

    /// Deletes chains without rules, in as few transactions as possible.
    pub fn delete_chains(&mut self, table: &str, chains: &[String]) -> io::Result<()> {
        let requests: Vec<Request> = chains
            .iter()
            .map(|chain| names(NFTA_CHAIN_TABLE, table, Some((NFTA_CHAIN_NAME, chain))))
            .map(|attributes| self.request(NFT_MSG_DELCHAIN, attributes))
            .collect();
        self.requests.batches(&requests)
    }

    fn request(&self, command: u8, attributes: Vec<u8>) -> Request {
        Request::nfnetlink(NFNL_SUBSYS_NFTABLES, command, nfproto(self.family), attributes)
    }
}

fn names(table_kind: u16, table: &str, chain: Option<(u16, &str)>) -> Vec<u8> {
    let mut attributes = Vec::new();
    put_str(&mut attributes, table_kind, table);
    if let Some((kind, chain)) = chain {
        put_str(&mut attributes, kind, chain);
    }
    attributes
}

fn read_jump(rule: Attributes<'_>) -> Option<Jump> {
    let (mut to, mut comment) = (None, None);
    for expression in rule.nest(NFTA_RULE_EXPRESSIONS) {
        let expression = Attributes::new(expression.payload);
        let data = expression.nest(NFTA_EXPR_DATA);
        match expression.str(NFTA_EXPR_NAME) {
            Some("immediate") => {
                let verdict = data.nest(NFTA_IMMEDIATE_DATA).nest(NFTA_DATA_VERDICT);
                to = to.or_else(|| verdict.str(NFTA_VERDICT_CHAIN));
            }
            Some("match") if data.str(NFTA_MATCH_NAME) == Some("comment") => {
                comment = data.str(NFTA_MATCH_INFO);
            }
            _ => {}
        }
    }
    // Some versions of iptables-nft write nft's own comments instead of the match.
    let userdata = rule.get(NFTA_RULE_USERDATA);
    let comment = comment.or_else(|| userdata::comment(userdata?, userdata::COMMENT));
    Some(Jump {
        from: rule.str(NFTA_RULE_CHAIN)?.to_owned(),
        handle: rule.u64(NFTA_RULE_HANDLE)?,
        to: to?.to_owned(),
        comment: comment.map(str::to_owned),
    })
}
