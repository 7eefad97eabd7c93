//! Address families and transport protocols.

use std::fmt;
use std::net::IpAddr;
use std::ops::{Index, IndexMut};

use ipnet::IpNet;

/// An address family; each has a table of its own and fails on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4, table family `ip`.
    V4,
    /// IPv6, table family `ip6`.
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    pub fn of(address: &IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    pub fn of_net(net: &IpNet) -> Family {
        Family::of(&net.addr())
    }

    pub fn other(self) -> Family {
        match self {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        }
    }

    pub fn address_len(self) -> usize {
        match self {
            Family::V4 => 4,
            Family::V6 => 16,
        }
    }

    pub fn loopback(self) -> IpNet {
        let (address, prefix_len) = match self {
            Family::V4 => (IpAddr::from([127, 0, 0, 0]), 8),
            Family::V6 => (IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 128),
        };
        IpNet::new_assert(address, prefix_len)
    }

    /// The network of every address.
    pub fn everything(self) -> IpNet {
        let address = match self {
            Family::V4 => IpAddr::from([0; 4]),
            Family::V6 => IpAddr::from([0; 16]),
        };
        IpNet::new_assert(address, 0)
    }

    /// nftables' name of the table family.
    pub fn nft(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        }
    }
}

impl fmt::Display for Family {
    /// As in upstream's `ip_family` label (B-254).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Families {
    /// IPv4 is programmed.
    pub v4: bool,
    /// IPv6 is programmed.
    pub v6: bool,
}

impl Families {
    /// Both of them.
    pub const DUAL: Families = Families { v4: true, v6: true };

    #[must_use]
    pub fn union(self, other: Families) -> Families {
        Families { v4: self.v4 || other.v4, v6: self.v6 || other.v6 }
    }

    /// With one more.
    #[must_use]
    pub fn with(self, family: Family) -> Families {
        match family {
            Family::V4 => Families { v4: true, ..self },
            Family::V6 => Families { v6: true, ..self },
        }
    }

    /// With one less.
    #[must_use]
    pub fn without(self, family: Family) -> Families {
        match family {
            Family::V4 => Families { v4: false, ..self },
            Family::V6 => Families { v6: false, ..self },
        }
    }

    pub fn contains(self, family: Family) -> bool {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }

    /// The families, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::BOTH.into_iter().filter(move |&f| self.contains(f))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PerFamily<T> {
    /// IPv4's.
    pub v4: T,
    /// IPv6's.
    pub v6: T,
}

impl<T> PerFamily<T> {
    /// One value per family, made by `make`.
    pub fn from_fn(mut make: impl FnMut(Family) -> T) -> Self {
        PerFamily { v4: make(Family::V4), v6: make(Family::V6) }
    }
}

impl<T> Index<Family> for PerFamily<T> {
    type Output = T;
    fn index(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

impl<T> IndexMut<Family> for PerFamily<T> {
    fn index_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

/// A transport protocol a Service port can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

    /// As nftables prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    pub fn from_number(number: u8) -> Option<Protocol> {
        Protocol::ALL.into_iter().find(|p| p.number() == number)
    }

    /// From the API's spelling (`TCP`, `UDP`, `SCTP`).
    pub fn from_api(text: &str) -> Option<Protocol> {
        match text {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
