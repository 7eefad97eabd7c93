//! What the kernel holds on behalf of a process, tables above all.
//!
//! The kernel charges nf_tables' memory to the control group of the task that asks for it, so a group
//! of its own tells a process's apart from everyone else's. Needs the memory controller, version 1
//! or 2.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// A control group with one process in it, which leaves it when this is dropped.
pub struct KernelMemory(PathBuf);

impl KernelMemory {
    /// Moves a process into a group of its own; `None` where the memory controller is not at hand.
    /// What it allocated before is not counted.
    pub fn of(pid: u32) -> Option<KernelMemory> {
        // The memory of an earlier group of the same process is freed at the kernel's leisure.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        ["/sys/fs/cgroup/memory", "/sys/fs/cgroup"].into_iter().find_map(|root| {
            let group = Path::new(root).join(format!("kubeweir-{pid}-{number}"));
            fs::create_dir(&group).ok()?;
            let group = KernelMemory(group);
            group.bytes()?;
            fs::write(group.0.join("cgroup.procs"), pid.to_string()).ok()?;
            Some(group)
        })
    }

    /// Bytes that are charged to the group.
    pub fn bytes(&self) -> Option<u64> {
        if let Ok(text) = fs::read_to_string(self.0.join("memory.kmem.usage_in_bytes")) {
            return text.trim().parse().ok();
        }
        let text = fs::read_to_string(self.0.join("memory.stat")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("kernel "))?.trim().parse().ok()
    }
}

impl Drop for KernelMemory {
    fn drop(&mut self) {
        let procs = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
        for pid in procs.lines() {
            fs::write(self.0.with_file_name("cgroup.procs"), pid).ok();
        }
        fs::remove_dir(&self.0).ok();
    }
}
