//! kube-proxy's chains in the tables of iptables-legacy.
//!
//! Such a table is one block of bytes that is read and replaced whole. Place in the flow: tables that
//! are in use are read, the same [`plan`] as for iptables-nft says which rules and chains go,
//! [`block`] leaves them out, and the rest is written back. Like iptables itself, the lock file
//! keeps other writers away; counters of the remaining rules start at 0. Must not know our own table.

mod block;

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::iptables::{Removal, plan};
use super::owned::{TABLES, Table};
use super::{CleanupError, Removed};
use crate::model::Family;
use crate::netlink::xtables::XTables;
use block::Block;

/// How long the lock is waited for, as upstream's `-w 5`.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_millis(100);
/// How often a table is read that changes before it is replaced.
const ATTEMPTS: usize = 5;
/// Pause before it is read again.
const CHANGED_PAUSE: Duration = Duration::from_millis(10);

/// Removes kube-proxy's jumps and chains of a family from the tables in use, which are named below
/// `root` (`/` outside tests); errors are collected in `removed`.
pub fn remove(root: &Path, family: Family, removed: &mut Removed) {
    let file = match family {
        Family::V4 => "proc/thread-self/net/ip_tables_names",
        Family::V6 => "proc/thread-self/net/ip6_tables_names",
    };
    // Absent without the module. Asking the kernel for a table would create it.
    let names = std::fs::read_to_string(root.join(file)).unwrap_or_default();
    let in_use = |table: &&Table| names.split_whitespace().any(|name| name == table.name);
    let mut tables = TABLES.iter().filter(in_use).peekable();
    if tables.peek().is_none() {
        return;
    }
    let _lock = lock(&root.join("run/xtables.lock"));
    for table in tables {
        match remove_from(family, table) {
            Ok(removal) => removal.account(family, table.name, removed),
            Err(source) => {
                removed.errors.push(CleanupError::Chains { family, table: table.name, source });
            }
        }
    }
}

fn remove_from(family: Family, table: &Table) -> io::Result<Removal> {
    let kernel = XTables::open(family)?;
    while_unchanged(|| {
        let current = kernel.read(table.name)?;
        let block = Block::read(family, &current).ok_or(io::ErrorKind::InvalidData)?;
        let removal = plan(table, &block.listing());
        if !removal.is_empty() {
            kernel.replace(table.name, current.count, &block.without(&removal))?;
        }
        Ok(removal)
    })
}

/// Begins anew when the table changed meanwhile, which reading says as well as replacing: EAGAIN.
fn while_unchanged<T>(mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => sleep(CHANGED_PAUSE),
            outcome => return outcome,
        }
    }
    attempt()
}

/// The lock of all iptables programs. Without the file, or if somebody does not let go of it, the
/// kernel's own check against concurrent changes is relied on.
fn lock(path: &Path) -> Option<File> {
    let file = File::open(path).ok()?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Some(file),
            Err(TryLockError::WouldBlock) => sleep(LOCK_PAUSE),
            Err(TryLockError::Error(_)) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    // B28: a table that grows between the two calls of a reading is read again, but not for ever.
    #[test]
    fn a_table_that_changed_is_read_again() {
        let attempts = |failures: usize, errno: i32| {
            let mut made = 0;
            let outcome = while_unchanged(|| {
                made += 1;
                if made <= failures { Err(io::Error::from_raw_os_error(errno)) } else { Ok(made) }
            });
            (outcome.ok(), made)
        };
        assert_eq!(attempts(0, libc::EAGAIN), (Some(1), 1));
        assert_eq!(attempts(4, libc::EAGAIN), (Some(5), 5));
        assert_eq!(attempts(9, libc::EAGAIN), (None, 5));
        assert_eq!(attempts(1, libc::EPERM), (None, 1));
    }
}
