//! Reads the chains of a table and the jumps between them.
//!
//! Place in the flow: what is read here is decided upon by the plan of the parent module. Keeps only
//! rules that jump or go to a chain, not what they match. Source: linux/netfilter/nf_tables.h.

use std::io;

use crate::cleanup::owned::Table;
use crate::model::Family;
use crate::node::nfnetlink::{Attributes, Dump, Netlink, Request, attribute, each_attribute, text};

pub(super) const SUBSYSTEM: u8 = 10; // NFNL_SUBSYS_NFTABLES
const GET_CHAIN: u8 = 4; // NFT_MSG_GETCHAIN
const GET_RULE: u8 = 7; // NFT_MSG_GETRULE

/// `NFTA_CHAIN_TABLE` and `NFTA_RULE_TABLE`.
pub(super) const TABLE_NAME: u16 = 1;
const CHAIN_NAME: u16 = 3;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
/// `NFTA_EXPR_NAME`, `NFTA_MATCH_NAME`.
const NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
const IMMEDIATE_DATA: u16 = 2;
const DATA_VERDICT: u16 = 2;
const VERDICT_CHAIN: u16 = 2;
const MATCH_INFO: u16 = 3;

/// How often a table is read that changes meanwhile; kubelet and CNIs write to these tables rarely.
const ATTEMPTS: usize = 5;

/// A rule that continues in another chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cleanup) struct Jump {
    pub(in crate::cleanup) from: String,
    pub(in crate::cleanup) handle: u64,
    pub(in crate::cleanup) to: String,
    pub(in crate::cleanup) comment: Option<String>,
}

/// A table's chains and jumps, in the kernel's order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::cleanup) struct Listing {
    pub(in crate::cleanup) chains: Vec<String>,
    pub(in crate::cleanup) jumps: Vec<Jump>,
}

/// Reads a table; one that does not exist has no chains.
pub(super) fn read(netlink: &mut Netlink, family: Family, table: &Table) -> io::Result<Listing> {
    for _ in 0..ATTEMPTS {
        let mut listing = Listing::default();
        let by_table = || Attributes::default().put_str(TABLE_NAME, table.name);
        let request = |command| Request::nfnetlink(SUBSYSTEM, command, nfproto(family), by_table());
        let chains = netlink.dump(&request(GET_CHAIN), |chain| {
            // The kernel does not filter chains by table.
            if text(chain, TABLE_NAME) == Some(table.name) {
                listing.chains.extend(text(chain, CHAIN_NAME).map(str::to_owned));
            }
        })?;
        let ours = listing.chains.iter().any(|chain| table.owns_chain(chain));
        let rules = match ours {
            false => Dump::Complete,
            true => netlink.dump(&request(GET_RULE), |rule| {
                if text(rule, TABLE_NAME) == Some(table.name) {
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

fn read_jump(rule: &[u8]) -> Option<Jump> {
    let expressions = attribute(rule, RULE_EXPRESSIONS)?;
    let (mut to, mut comment) = (None, None);
    for (_, expression) in each_attribute(expressions) {
        let data = attribute(expression, EXPR_DATA).unwrap_or_default();
        match text(expression, NAME) {
            Some("immediate") => to = to.or_else(|| verdict_chain(data)),
            Some("match") if text(data, NAME) == Some("comment") => {
                comment = text(data, MATCH_INFO);
            }
            _ => {}
        }
    }
    Some(Jump {
        from: text(rule, RULE_CHAIN)?.to_owned(),
        handle: u64::from_be_bytes(attribute(rule, RULE_HANDLE)?.try_into().ok()?),
        to: to?.to_owned(),
        comment: comment.or_else(|| userdata_comment(rule)).map(str::to_owned),
    })
}

fn verdict_chain(immediate: &[u8]) -> Option<&str> {
    let data = attribute(immediate, IMMEDIATE_DATA)?;
    text(attribute(data, DATA_VERDICT)?, VERDICT_CHAIN)
}

/// nft's own comments: type 0, length, text with NUL. Some versions of iptables-nft write these
/// instead of the match.
fn userdata_comment(rule: &[u8]) -> Option<&str> {
    let [0, length, rest @ ..] = attribute(rule, RULE_USERDATA)? else { return None };
    let bytes = rest.get(..usize::from(*length))?;
    std::str::from_utf8(bytes).ok().map(|text| text.trim_end_matches('\0'))
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
pub(super) fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}
