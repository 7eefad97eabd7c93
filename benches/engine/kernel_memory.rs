//! What the tables cost the kernel.
//!
//! The kernel charges nf_tables' memory to the control group of the task that asks for it, so a group
//! of our own tells it apart from everyone else's. Needs the memory controller, version 1 or 2.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kubeweir::model::Family;
use kubeweir::netlink::NetlinkKernel;
use kubeweir::sync::Synchronizer;
use kubeweir::testing::lab::Netns;

use crate::load::SIZES;
use crate::report::Table;
use crate::rig::engine;

/// A control group that this process joins, and leaves when it is dropped.
pub struct Group {
    path: PathBuf,
    parent: PathBuf,
}

impl Group {
    /// `None` where there is no memory controller.
    pub fn join() -> Option<Group> {
        // One for each table: the last one's is freed at the kernel's leisure.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kubeweir-bench-{}-{number}", std::process::id());
        let parents = ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].map(PathBuf::from);
        for parent in parents {
            let path = parent.join(&name);
            if fs::create_dir(&path).is_err() {
                continue;
            }
            let group = Group { path, parent };
            if group.kernel_bytes().is_some() && enter(&group.path).is_ok() {
                return Some(group);
            }
        }
        None
    }

    /// Kernel memory that is charged to the group.
    pub fn kernel_bytes(&self) -> Option<u64> {
        if let Ok(text) = fs::read_to_string(self.path.join("memory.kmem.usage_in_bytes")) {
            return text.trim().parse().ok();
        }
        let stat = fs::read_to_string(self.path.join("memory.stat")).ok()?;
        stat.lines().find_map(|line| line.strip_prefix("kernel "))?.parse().ok()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group with a process in it, or with memory the kernel frees later, stays: it is empty.
        let _ = enter(&self.parent);
        let _ = fs::remove_dir(&self.path);
    }
}

fn enter(group: &Path) -> std::io::Result<()> {
    fs::write(group.join("cgroup.procs"), std::process::id().to_string())
}

/// Prints the table.
pub fn run() {
    let mut table = Table::new(
        "Kernel memory of the tables",
        &["services x endpoints", "elements", "MiB", "bytes an element"],
    );
    for size in SIZES {
        let Some(group) = Group::join() else {
            println!("\nKernel memory was not measured: there is no memory controller.");
            return;
        };
        let netns = Netns::new("memory").expect("a network namespace (root is needed)");
        let kernel = netns.run(NetlinkKernel::open).expect("nf_tables");
        let mut synchronizer = Synchronizer::new(engine(), kernel);
        size.lists().into_iter().for_each(|list| drop(synchronizer.engine.apply(list)));
        let before = group.kernel_bytes().expect("it was readable");
        let mut elements = 0;
        for family in Family::BOTH {
            let report = synchronizer.sync(family, Duration::ZERO).expect("something to do");
            assert!(report.result.is_ok(), "{:?}", report.troubles);
            elements += report.commits.iter().map(|c| c.counts.elements_added).sum::<usize>();
        }
        let bytes = group.kernel_bytes().expect("it was readable").saturating_sub(before);
        table.row(&[
            size.to_string(),
            elements.to_string(),
            format!("{:.1}", bytes as f64 / f64::from(1 << 20)),
            (bytes / elements as u64).to_string(),
        ]);
    }
    table.print();
}
