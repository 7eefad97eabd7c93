//! What other kube-proxies left is removed, and what we leave is made fit for them, or removed.

use std::path::Path;
use std::time::Duration;

use tokio::runtime::Handle;
use tracing::{error, info};

use super::status::SharedStatus;
use super::with_causes;
use crate::cleanup::{self, Removed};
use crate::model::{Families, Family};
use crate::netlink::NetlinkKernel;
use crate::sync::release;
use crate::transaction::{Kernel, Op, Transaction};

/// How often to look whether our rules are in force.
const LOOK: Duration = Duration::from_millis(200);

/// Once our rules are in force in every family, removes what iptables- and ipvs-mode kube-proxies
/// left, so that there is no moment without rules. Failures do not matter (B-208).
pub async fn after_first_sync(status: SharedStatus, families: Families) {
    loop {
        let current = status.get();
        let in_force = |family: Family| {
            current.families.get(&family.to_string()).is_some_and(|f| f.summary.attached)
        };
        if families.iter().all(in_force) {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    // It waits for the lock of iptables, and asks the kernel: nothing for a thread of the servers.
    let runtime = Handle::current();
    let removing = move || runtime.block_on(cleanup::other_modes(Path::new("/")));
    if let Ok(removed) = tokio::task::spawn_blocking(removing).await {
        log(&removed);
    }
}

fn log(removed: &Removed) {
    if removed.jumps + removed.chains + removed.sets + removed.services > 0 || removed.link {
        info!(
            jumps = removed.jumps,
            chains = removed.chains,
            sets = removed.sets,
            services = removed.services,
            "Removed what another proxy mode had left"
        );
    }
    for reason in &removed.errors {
        error!(reason = with_causes(reason), "Failed to remove what another proxy mode had left");
    }
}

/// Turns persistent tables into equal plain ones, so that any kube-proxy can follow: at the end of
/// the agent, and as `kubeweir release` after a crash. Returns whether there is none left.
pub fn release_tables() -> bool {
    let mut kernel = match NetlinkKernel::open() {
        Ok(kernel) => kernel,
        Err(reason) => {
            error!(reason = with_causes(&reason), "Cannot reach nf_tables");
            return false;
        }
    };
    let mut all = true;
    for family in Family::BOTH {
        all &= release_table(&mut kernel, family);
    }
    all
}

fn release_table(kernel: &mut NetlinkKernel, family: Family) -> bool {
    let outcome = match kernel.table(family) {
        Ok(Some(table)) if table.persist => {
            release(kernel, family).map_err(|reason| with_causes(&reason))
        }
        Ok(_) => return true,
        Err(reason) => Err(with_causes(&reason)),
    };
    match outcome {
        Ok(()) => {
            info!(%family, "The rules stay; the table is no longer owned");
            true
        }
        Err(reason) => {
            error!(
                %family,
                reason,
                "The rules stay in an owned table; before another kube-proxy, run kubeweir release"
            );
            false
        }
    }
}

/// `--cleanup`: removes everything, ours included. Returns whether nothing failed (B-022, B-023).
pub async fn clean_up() -> bool {
    let mut clean = true;
    match NetlinkKernel::open() {
        Err(reason) => {
            error!(reason = with_causes(&reason), "Cannot reach nf_tables");
            clean = false;
        }
        Ok(mut kernel) => {
            for family in Family::BOTH {
                clean &= delete_table(&mut kernel, family);
            }
        }
    }
    let removed = cleanup::other_modes(Path::new("/")).await;
    log(&removed);
    clean && removed.errors.is_empty()
}

fn delete_table(kernel: &mut NetlinkKernel, family: Family) -> bool {
    let outcome = match kernel.table(family) {
        Ok(None) => return true,
        Ok(Some(_)) => {
            let deletion = Transaction { family, ops: vec![Op::DeleteTable] };
            kernel.commit(&deletion).map(drop).map_err(|error| with_causes(&error))
        }
        Err(error) => Err(with_causes(&error)),
    };
    match outcome {
        Ok(()) => {
            info!(%family, "Removed table kube-proxy");
            true
        }
        Err(reason) => {
            error!(%family, reason, "Failed to remove table kube-proxy");
            false
        }
    }
}
