//! The socket options of iptables-legacy: read a table, replace it whole.
//!
//! Place in the flow: below [`crate::cleanup`], which knows what the bytes mean. Lives here because
//! no safe crate passes structures through `getsockopt` and `setsockopt`. Must not know chains.
//! Source: linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h, 64-bit layout.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::AsRawFd;

use crate::model::Family;

/// `IPT_SO_GET_INFO`, and as an option to set `IPT_SO_SET_REPLACE`; the same number for IPv6.
const INFO_OR_REPLACE: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES`.
const ENTRIES: libc::c_int = 65;
/// Bytes of a table's name in the structures.
const NAME_LEN: usize = 32;
/// Bytes of `struct ipt_getinfo`.
const INFO_LEN: usize = 84;
/// Bytes of `struct ipt_get_entries` before the entries.
const ENTRIES_HEADER: usize = 40;
/// Bytes of `struct xt_counters`.
const COUNTERS_LEN: usize = 16;

/// A table as the kernel hands it out and takes it back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XTable {
    /// Bit per hook at which the table is called.
    pub valid_hooks: u32,
    /// Per hook the offset of its first entry.
    pub hook_entry: [u32; 5],
    /// Per hook the offset of its policy.
    pub underflow: [u32; 5],
    pub count: u32,
    /// The entries, one after the other.
    pub entries: Vec<u8>,
}

/// A socket that reaches one family's tables, in the network namespace of the thread that opens it.
pub struct XTables {
    socket: UdpSocket,
    level: libc::c_int,
}

impl XTables {
    /// Opens a socket; nothing is sent or received through it.
    pub fn open(family: Family) -> io::Result<Self> {
        let (socket, level) = match family {
            Family::V4 => (UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?, libc::IPPROTO_IP),
            Family::V6 => (UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?, libc::IPPROTO_IPV6),
        };
        Ok(XTables { socket, level })
    }

    /// Reads a table. Asking for one that does not exist creates it.
    pub fn read(&self, table: &str) -> io::Result<XTable> {
        let mut info = named(table, INFO_LEN);
        self.get(INFO_OR_REPLACE, &mut info)?;
        let word = |index: usize| word(&info, NAME_LEN + 4 * index);
        let five = |from: usize| std::array::from_fn(|hook| word(from + hook));
        let size = word(12);
        let mut buffer = named(table, ENTRIES_HEADER + index(size));
        buffer[NAME_LEN..NAME_LEN + 4].copy_from_slice(&size.to_ne_bytes());
        self.get(ENTRIES, &mut buffer)?;
        Ok(XTable {
            valid_hooks: word(0),
            hook_entry: five(1),
            underflow: five(6),
            count: word(11),
            entries: buffer.split_off(ENTRIES_HEADER),
        })
    }

    /// Replaces a table that had `former_count` entries; fails with EAGAIN if it has another number
    /// by now. Counters start at 0.
    pub fn replace(&self, table: &str, former_count: u32, new: &XTable) -> io::Result<()> {
        let mut counters = vec![0u8; index(former_count) * COUNTERS_LEN];
        let mut bytes = named(table, NAME_LEN);
        let size = u32::try_from(new.entries.len()).expect("not larger than the table it replaces");
        for number in [new.valid_hooks, new.count, size]
            .iter()
            .chain(&new.hook_entry)
            .chain(&new.underflow)
            .chain([&former_count])
        {
            bytes.extend_from_slice(&number.to_ne_bytes());
        }
        bytes.extend_from_slice(&counters.as_mut_ptr().expose_provenance().to_ne_bytes());
        bytes.extend_from_slice(&new.entries);
        let length = libc::socklen_t::try_from(bytes.len()).expect("tables are below 4 GiB");
        let socket = self.socket.as_raw_fd();
        // SAFETY: `bytes` is valid for `length` bytes, which the kernel only reads. The pointer within
        // it is to `counters`, which lives until after the call; the kernel writes `former_count`
        // counters there, whose size it has, and refuses if the table has another number.
        let result = unsafe {
            libc::setsockopt(socket, self.level, INFO_OR_REPLACE, bytes.as_ptr().cast(), length)
        };
        drop(counters);
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn get(&self, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
        let mut length = libc::socklen_t::try_from(buffer.len()).expect("tables are below 4 GiB");
        let socket = self.socket.as_raw_fd();
        // SAFETY: `buffer` is valid for reading and writing `length` bytes, and the kernel does not
        // write beyond what it is told; `length` is a local variable.
        let result = unsafe {
            libc::getsockopt(socket, self.level, option, buffer.as_mut_ptr().cast(), &mut length)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// A zeroed structure that begins with a table's name.
fn named(table: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    bytes[..table.len()].copy_from_slice(table.as_bytes());
    bytes
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|b| b.first_chunk()).map_or(0, |word| u32::from_ne_bytes(*word))
}

fn index(number: u32) -> usize {
    usize::try_from(number).expect("Linux has at least 32 bits")
}
