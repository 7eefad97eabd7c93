//! `kubeweir release`: what the agent does at its end, for one that crashed.

use std::process::ExitCode;

use super::CommandError;
use super::render::print;
use crate::model::Family;
use crate::netlink::NetlinkKernel;
use crate::ruleset::{Ownership, Table};
use crate::sync::release;

/// Makes persistent tables plain; 1 if an agent still owns one.
pub fn run() -> Result<ExitCode, CommandError> {
    let mut kernel = NetlinkKernel::open()?;
    let (mut text, mut owned) = (String::new(), false);
    for family in Family::BOTH {
        let state = match kernel.table(family)? {
            None => "not there",
            Some(Table { owner: Ownership::Ours | Ownership::Other(_), .. }) => {
                owned = true;
                "owned by an agent that runs: end it with SIGTERM, and it does the same"
            }
            Some(table) if table.persist => {
                release(&mut kernel, family)
                    .map_err(|source| CommandError::Release { family, source })?;
                "plain now, its rules are in force as before"
            }
            Some(_) => "plain already",
        };
        text += &format!("table {} kube-proxy: {state}\n", family.nft());
    }
    print(&text)?;
    Ok(ExitCode::from(u8::from(owned)))
}
