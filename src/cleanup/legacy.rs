//! kube-proxy's chains in the tables of iptables-legacy.
//!
//! Such a table is one block of bytes that is read and replaced whole. Place in the flow: tables that
//! are in use are read, the same [`plan`] as for iptables-nft says which rules and chains go,
//! [`Block`] leaves them out, and the rest is written back. Like iptables itself, the lock file
//! keeps other writers away; counters of the remaining rules start at 0. Must not know our own table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use super::iptables::{Removal, plan};
use super::{CleanupError, Removed, TABLES, Table};
use crate::model::Family;
use crate::netlink::iptables::{Jump, Listing};
use crate::netlink::xtables::{XTable, XTables};

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

// The block of bytes that is a table of iptables-legacy: entries, and offsets between them.
//
// Source: linux/netfilter/x_tables.h, ip_tables.h, ip6_tables.h, 64-bit layout.

/// Names of the built-in chains by hook number.
const HOOKS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
/// Bytes of `xt_entry_match` and `xt_entry_target` before their data.
const EXTENSION_HEADER: usize = 32;

/// Where an entry's fields are.
struct Layout {
    target_offset: usize,
    next_offset: usize,
    matches: usize,
}

fn layout(family: Family) -> Layout {
    match family {
        Family::V4 => Layout { target_offset: 88, next_offset: 90, matches: 112 },
        Family::V6 => Layout { target_offset: 140, next_offset: 142, matches: 168 },
    }
}

struct Entry {
    offset: usize,
    bytes: Vec<u8>,
    /// Where its target begins.
    target: usize,
    chain: String,
    /// It is the beginning of its chain.
    head: bool,
}

impl Entry {
    /// The offset a standard target continues at; `None` for verdicts and other targets.
    fn continues_at(&self) -> Option<usize> {
        let standard = self.bytes[self.target + 2] == 0;
        let verdict = self.bytes.get(self.target + EXTENSION_HEADER..)?.first_chunk()?;
        usize::try_from(i32::from_ne_bytes(*verdict)).ok().filter(|_| standard)
    }

    fn end(&self) -> usize {
        self.offset + self.bytes.len()
    }

    fn comment(&self, layout: &Layout) -> Option<String> {
        let mut matches = self.bytes.get(layout.matches..self.target)?;
        while let Some(size) = short(matches, 0).filter(|size| *size >= EXTENSION_HEADER) {
            if text(matches.get(2..31)?) == "comment" {
                return Some(text(matches.get(EXTENSION_HEADER..size)?).to_owned());
            }
            matches = matches.get(size..)?;
        }
        None
    }
}

struct Block<'a> {
    table: &'a XTable,
    layout: Layout,
    entries: Vec<Entry>,
}

impl<'a> Block<'a> {
    /// `None` if the bytes make no sense.
    fn read(family: Family, table: &'a XTable) -> Option<Self> {
        let layout = layout(family);
        let mut entries: Vec<Entry> = Vec::new();
        let (mut offset, mut chain) = (0, String::new());
        while offset < table.entries.len() {
            let rest = &table.entries[offset..];
            let target = short(rest, layout.target_offset)?;
            let bytes = rest.get(..short(rest, layout.next_offset)?)?.to_vec();
            let name = text(bytes.get(target + 2..target + 31)?);
            let head = name == "ERROR";
            if head {
                chain = text(bytes.get(target + EXTENSION_HEADER..)?).to_owned();
            } else if let Some(hook) = hook_at(table, offset) {
                chain = HOOKS[hook].to_owned();
            }
            offset += bytes.len();
            let start = offset - bytes.len();
            entries.push(Entry { offset: start, bytes, target, chain: chain.clone(), head });
        }
        Some(Block { table, layout, entries })
    }

    /// Chains and jumps; a jump's handle is its offset.
    fn listing(&self) -> Listing {
        let heads = self.entries.iter().filter(|entry| entry.head);
        let begins: BTreeMap<usize, &str> =
            heads.clone().map(|head| (head.end(), head.chain.as_str())).collect();
        let jumps = self.entries.iter().filter_map(|entry| {
            // A rule without target continues at the next entry, which begins no chain.
            let to = *begins.get(&entry.continues_at()?)?;
            Some(Jump {
                from: entry.chain.clone(),
                handle: entry.offset as u64,
                to: to.to_owned(),
                comment: entry.comment(&self.layout),
            })
        });
        Listing { chains: heads.map(|head| head.chain.clone()).collect(), jumps: jumps.collect() }
    }

    /// The table without what the removal names, all offsets moved.
    fn without(&self, removal: &Removal) -> XTable {
        let jumps: BTreeSet<u64> = removal.jumps.iter().map(|(_, offset)| *offset).collect();
        let emptied: BTreeSet<&str> = removal.emptied.iter().map(String::as_str).collect();
        let deleted: BTreeSet<&str> = removal.deleted.iter().map(String::as_str).collect();
        let stays = |index: usize, entry: &Entry| {
            let chain = entry.chain.as_str();
            let returns = self.entries.get(index + 1).is_none_or(|next| next.head);
            !jumps.contains(&(entry.offset as u64))
                && !deleted.contains(chain)
                && (!emptied.contains(chain) || entry.head || returns)
        };
        let mut moved = BTreeMap::new();
        let mut kept = Vec::new();
        let mut position = 0;
        for (index, entry) in self.entries.iter().enumerate() {
            // What pointed at something removed points at what follows it.
            moved.insert(entry.offset, position);
            if stays(index, entry) {
                position += entry.bytes.len();
                kept.push(entry);
            }
        }
        self.assemble(&kept, &moved)
    }

    fn assemble(&self, kept: &[&Entry], moved: &BTreeMap<usize, usize>) -> XTable {
        let mut entries = Vec::new();
        for entry in kept {
            let start = entries.len();
            entries.extend_from_slice(&entry.bytes);
            if let Some(to) = entry.continues_at().and_then(|offset| moved.get(&offset)) {
                let at = start + entry.target + EXTENSION_HEADER;
                entries[at..at + 4].copy_from_slice(&(*to as i32).to_ne_bytes());
            }
        }
        let hook = |offset: u32| moved.get(&(offset as usize)).map_or(offset, |to| *to as u32);
        XTable {
            valid_hooks: self.table.valid_hooks,
            hook_entry: self.table.hook_entry.map(hook),
            underflow: self.table.underflow.map(hook),
            count: kept.len() as u32,
            entries,
        }
    }
}

/// The hook that enters the table at an offset.
fn hook_at(table: &XTable, offset: usize) -> Option<usize> {
    (0..HOOKS.len()).find(|hook| {
        table.valid_hooks & (1 << hook) != 0 && table.hook_entry[*hook] as usize == offset
    })
}

fn short(bytes: &[u8], at: usize) -> Option<usize> {
    bytes.get(at..)?.first_chunk().map(|two| usize::from(u16::from_ne_bytes(*two)))
}

/// Up to the first NUL; empty if it is not UTF-8.
fn text(bytes: &[u8]) -> &str {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    std::str::from_utf8(&bytes[..end]).unwrap_or_default()
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

    /// An IPv4 entry without matches; `target` is the name and the data.
    fn entry(name: &str, data: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 112 + EXTENSION_HEADER];
        bytes[114..114 + name.len()].copy_from_slice(name.as_bytes());
        bytes.extend_from_slice(data);
        let length = bytes.len() as u16;
        bytes[88..90].copy_from_slice(&112u16.to_ne_bytes());
        bytes[90..92].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    fn verdict(verdict: i32) -> Vec<u8> {
        entry("", &[verdict.to_ne_bytes(), [0; 4]].concat())
    }

    fn named(name: &str) -> Vec<u8> {
        let mut data = [0; 32];
        data[..name.len()].copy_from_slice(name.as_bytes());
        entry("ERROR", &data)
    }

    /// Chain OUTPUT jumps to MINE (at 960) and ends; KUBE-SEP-A has one rule; MINE is empty.
    fn table() -> XTable {
        let parts = [
            verdict(960),
            verdict(-2),
            named("KUBE-SEP-A"),
            verdict(-2),
            verdict(-5),
            named("MINE"),
            verdict(-5),
            named("ERROR"),
        ];
        XTable {
            valid_hooks: 1 << 3,
            hook_entry: [0; 5],
            underflow: [0, 0, 0, 152, 0],
            count: 8,
            entries: parts.concat(),
        }
    }

    // B-203, B-205: chains go, jumps that stay lead where they led.
    #[test]
    fn offsets_move() {
        let before = table();
        let block = Block::read(Family::V4, &before).expect("a well-formed table");
        let listing = block.listing();
        assert_eq!(listing.chains, ["KUBE-SEP-A", "MINE", "ERROR"]);
        let led: Vec<(&str, &str)> =
            listing.jumps.iter().map(|jump| (jump.from.as_str(), jump.to.as_str())).collect();
        assert_eq!(led, [("OUTPUT", "MINE")]);
        let removal = crate::cleanup::iptables::plan(&TABLES[1], &listing);
        let after = block.without(&removal);
        assert_eq!((after.count, after.underflow[3]), (5, 152));
        let block = Block::read(Family::V4, &after).expect("a well-formed table");
        assert_eq!(block.listing().chains, ["MINE", "ERROR"]);
        assert_eq!(block.listing().jumps.len(), 1, "OUTPUT still jumps to MINE");
    }

    #[test]
    fn bytes_cut_short_are_refused() {
        let whole = table();
        let ends: Vec<usize> = Block::read(Family::V4, &whole)
            .expect("well-formed")
            .entries
            .iter()
            .map(Entry::end)
            .collect();
        for length in 1..whole.entries.len() {
            let cut = XTable { entries: whole.entries[..length].to_vec(), ..whole.clone() };
            let read = Block::read(Family::V4, &cut).is_some();
            assert_eq!(read, ends.contains(&length), "{length} bytes");
        }
    }
}
