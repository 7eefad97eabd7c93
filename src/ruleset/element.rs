//! Elements of sets and maps.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::Verdict;
use crate::model::{Family, Protocol};

/// The type of one field of a key or of map data. The numbers are nft's own (`enum datatypes` of
/// its sources): the kernel keeps them for the user space that lists the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// `ipv4_addr`.
    Ipv4Addr,
    /// `ipv6_addr`.
    Ipv6Addr,
    /// `inet_proto`.
    InetProto,
    /// `inet_service`.
    InetService,
    /// `mark`: a 32-bit number in host order; used for slots because every nft prints it.
    Mark,
}

impl Field {
    pub fn address(family: Family) -> Field {
        match family {
            Family::V4 => Field::Ipv4Addr,
            Family::V6 => Field::Ipv6Addr,
        }
    }

    /// nft's number of the type.
    pub fn type_id(self) -> u32 {
        match self {
            Field::Ipv4Addr => 7,
            Field::Ipv6Addr => 8,
            Field::InetProto => 12,
            Field::InetService => 13,
            Field::Mark => 19,
        }
    }

    /// From nft's number.
    pub fn from_type_id(id: u32) -> Option<Field> {
        [Field::Ipv4Addr, Field::Ipv6Addr, Field::InetProto, Field::InetService, Field::Mark]
            .into_iter()
            .find(|f| f.type_id() == id)
    }

    /// As nft prints the type.
    pub fn nft(self) -> &'static str {
        match self {
            Field::Ipv4Addr => "ipv4_addr",
            Field::Ipv6Addr => "ipv6_addr",
            Field::InetProto => "inet_proto",
            Field::InetService => "inet_service",
            Field::Mark => "mark",
        }
    }

    pub fn byte_len(self) -> usize {
        match self {
            Field::Ipv4Addr | Field::Mark => 4,
            Field::Ipv6Addr => 16,
            Field::InetProto => 1,
            Field::InetService => 2,
        }
    }

    /// Bytes in a concatenation: a multiple of a register, 4 bytes.
    pub fn padded_len(self) -> usize {
        self.byte_len().next_multiple_of(4)
    }
}

/// The bytes of a key or of map data as the kernel holds them: fields one after the other, network
/// order (marks: host order), each padded with zeros to 4 bytes.
///
/// A key with a single field has that field's own length (a lone `inet_service` is 2 bytes long).
#[derive(Clone, Copy)]
pub struct Key {
    len: u8,
    bytes: [u8; Key::CAPACITY],
}

impl Key {
    /// Longest key we use: hairpin's two IPv6 addresses, protocol and port.
    pub const CAPACITY: usize = 40;

    /// No bytes yet.
    pub const fn new() -> Self {
        Key { len: 0, bytes: [0; Key::CAPACITY] }
    }

    /// From raw bytes; `None` if there are more than [`Key::CAPACITY`].
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut key = Key::new();
        key.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        key.len = bytes.len() as u8;
        Some(key)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }

    fn push(mut self, bytes: &[u8]) -> Self {
        let at = self.len as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len().next_multiple_of(4) as u8;
        self
    }

    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => self.push(&a.octets()),
            IpAddr::V6(a) => self.push(&a.octets()),
        }
    }

    #[must_use]
    pub fn protocol(self, protocol: Protocol) -> Self {
        self.push(&[protocol.number()])
    }

    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.push(&port.to_be_bytes())
    }

    #[must_use]
    pub fn slot(self, slot: u32) -> Self {
        self.push(&slot.to_ne_bytes())
    }

    /// Reads an address field at a byte offset.
    pub fn address_at(&self, offset: usize, family: Family) -> Option<IpAddr> {
        let bytes = self.as_bytes().get(offset..offset + family.address_len())?;
        Some(match family {
            Family::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
            Family::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        })
    }

    pub fn port_at(&self, offset: usize) -> Option<u16> {
        let bytes = self.as_bytes().get(offset..offset + 2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// Reads a protocol field at a byte offset.
    pub fn protocol_at(&self, offset: usize) -> Option<Protocol> {
        Protocol::from_number(*self.as_bytes().get(offset)?)
    }

    pub fn slot_at(&self, offset: usize) -> Option<u32> {
        let bytes = self.as_bytes().get(offset..offset + 4)?;
        Some(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

impl Default for Key {
    fn default() -> Self {
        Key::new()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Key {}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

impl std::hash::Hash for Key {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.as_bytes() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// What an element leads to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    None,
    Data(Key),
    Verdict(Verdict),
}

/// Remaining life of an element of a set with timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Lifetime {
    /// Full lifetime, milliseconds.
    pub timeout: u64,
    /// What is left of it, milliseconds.
    pub expires: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Element {
    /// Its key; the first address of an interval.
    pub key: Key,
    /// Interval sets: the last address that belongs to it, inclusive.
    pub last: Option<Key>,
    /// What it leads to.
    pub value: Value,
    pub comment: Option<Arc<str>>,
    /// Timeout sets only.
    pub lifetime: Option<Lifetime>,
    /// Packets counted, in sets with a counter; only in dumps.
    pub packets: Option<u64>,
}

impl Element {
    pub fn member(key: Key) -> Self {
        Element {
            key,
            last: None,
            value: Value::None,
            comment: None,
            lifetime: None,
            packets: None,
        }
    }

    pub fn data(key: Key, data: Key) -> Self {
        Element { value: Value::Data(data), ..Element::member(key) }
    }

    pub fn verdict(key: Key, verdict: Verdict) -> Self {
        Element { value: Value::Verdict(verdict), ..Element::member(key) }
    }

    #[must_use]
    pub fn with_comment(self, comment: Arc<str>) -> Self {
        Element { comment: Some(comment), ..self }
    }
}
