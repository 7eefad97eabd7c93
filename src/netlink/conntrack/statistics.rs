//! How full the table is, and what happened to entries, as the kernel counts it.
//!
//! Two requests of a few hundred bytes for each CPU; the table itself is not walked.

use super::{Conntrack, ConntrackError};
use crate::conntrack::Statistics;
use crate::netlink::attribute::Attributes;
use crate::netlink::request::Request;
use crate::netlink::uapi::*;

impl Conntrack {
    /// The figures of this network namespace.
    ///
    /// # Errors
    /// If the kernel refuses: without CAP_NET_ADMIN.
    pub fn statistics(&mut self) -> Result<Statistics, ConntrackError> {
        let mut statistics = Statistics::default();
        let ask = |command| {
            Request::nfnetlink(NFNL_SUBSYS_CTNETLINK, command, NFPROTO_UNSPEC, Vec::new())
        };
        self.requests
            .execute(&ask(IPCTNL_MSG_CT_GET_STATS), |message| {
                let of = |kind| u64::from(message.attributes().u32(kind).unwrap_or(0));
                statistics.entries = of(CTA_STATS_GLOBAL_ENTRIES);
                statistics.limit = of(CTA_STATS_GLOBAL_MAX_ENTRIES);
            })
            .map_err(ConntrackError::Statistics)?;
        self.requests
            .dump(&ask(IPCTNL_MSG_CT_GET_STATS_CPU), |message| {
                add_cpu(&mut statistics, message.attributes());
            })
            .map_err(ConntrackError::Statistics)?;
        Ok(statistics)
    }
}

/// Adds what happened on one CPU. A kernel that does not know a figure leaves it out.
fn add_cpu(sum: &mut Statistics, cpu: Attributes<'_>) {
    for (figure, kind) in [
        (&mut sum.insert_failed, CTA_STATS_INSERT_FAILED),
        (&mut sum.drop, CTA_STATS_DROP),
        (&mut sum.early_drop, CTA_STATS_EARLY_DROP),
        (&mut sum.invalid, CTA_STATS_INVALID),
        (&mut sum.search_restart, CTA_STATS_SEARCH_RESTART),
        (&mut sum.clash_resolve, CTA_STATS_CLASH_RESOLVE),
        (&mut sum.chain_too_long, CTA_STATS_CHAIN_TOOLONG),
    ] {
        *figure += u64::from(cpu.u32(kind).unwrap_or(0));
    }
}
