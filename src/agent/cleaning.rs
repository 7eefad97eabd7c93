//! What other kube-proxies left is removed, and what we leave is made fit for them, or removed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::{error, info};

use crate::cleanup::{self, Removed};
use crate::kernel::{Kernel, Op, Transaction};
use crate::model::{Families, Family};
use crate::netlink::NetlinkKernel;
use crate::ruleset::{Ownership, Table};
use crate::status::SharedStatus;
use crate::sync::release;
use crate::text::with_causes;

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
    remove_other_modes("/".into()).await;
}

async fn remove_other_modes(root: PathBuf) {
    match tokio::task::spawn_blocking(move || cleanup::other_modes(&root)).await {
        Ok(removed) => log(&removed),
        Err(reason) => error!(%reason, "Failed to remove what another proxy mode had left"),
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
        Ok(Some(Table { owner: Ownership::Other(portid), .. })) => {
            error!(%family, portid, "The table belongs to another process that runs, and stays as it is");
            return false;
        }
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

/// `--cleanup`: removes everything, ours included. Blocking. Returns whether nothing failed (B-022, B-023).
pub fn clean_up() -> bool {
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
    let removed = cleanup::other_modes(Path::new("/"));
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing::lab::Netns;

    // B19: health and metrics are answered while another program keeps the lock of iptables.
    #[test]
    fn clean_up_waits_beside_the_runtime() {
        let root = tempfile::tempdir().expect("a directory");
        let (net, run) = (root.path().join("proc/thread-self/net"), root.path().join("run"));
        fs::create_dir_all(&net).expect("below it");
        fs::create_dir_all(&run).expect("below it");
        fs::write(net.join("ip_tables_names"), "mangle\n").expect("a table in use");
        let lock = fs::File::create(run.join("xtables.lock")).expect("the lock");
        lock.lock().expect("nobody has it");
        let netns = Netns::new("cleaning").expect("a namespace (this needs root)");
        netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let mut removing = std::pin::pin!(remove_other_modes(root.path().into()));
                for turn in 0..10 {
                    tokio::select! {
                        biased;
                        () = &mut removing => panic!("the lock was held; turn {turn}"),
                        () = tokio::time::sleep(Duration::from_millis(10)) => {}
                    }
                }
                lock.unlock().expect("it is held");
                removing.await;
            });
        });
    }
}
