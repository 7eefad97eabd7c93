//! Who has which address in the lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::model::{Family, PerFamily};

const fn pair(v4: [u8; 4], v6: [u16; 8]) -> PerFamily<IpAddr> {
    let [a, b, c, d] = v4;
    let [e, f, g, h, i, j, k, l] = v6;
    PerFamily {
        v4: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        v6: IpAddr::V6(Ipv6Addr::new(e, f, g, h, i, j, k, l)),
    }
}

const fn nets(v4: ([u8; 4], u8), v6: ([u16; 8], u8)) -> PerFamily<IpNet> {
    let ([a, b, c, d], v4_len) = v4;
    let ([e, f, g, h, i, j, k, l], v6_len) = v6;
    PerFamily {
        v4: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), v4_len)),
        v6: IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(e, f, g, h, i, j, k, l), v6_len)),
    }
}

/// The node's first address, on `eth0`.
pub const NODE_IP: PerFamily<IpAddr> =
    pair([192, 168, 10, 1], [0xfd00, 0x168, 0x10, 0, 0, 0, 0, 1]);

/// The node's other address, on `eth1`, towards the outside.
pub const SECOND_NODE_IP: PerFamily<IpAddr> =
    pair([172, 20, 0, 1], [0xfd00, 0x172, 0x20, 0, 0, 0, 0, 1]);

/// The second node.
pub const REMOTE_NODE_IP: PerFamily<IpAddr> =
    pair([192, 168, 10, 2], [0xfd00, 0x168, 0x10, 0, 0, 0, 0, 2]);

/// A client outside.
pub const OUTSIDE_IP: PerFamily<IpAddr> =
    pair([172, 20, 0, 2], [0xfd00, 0x172, 0x20, 0, 0, 0, 0, 2]);

/// The node's address towards its pods.
pub const GATEWAY: PerFamily<IpAddr> = pair([10, 244, 0, 1], [0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1]);

/// All pods of the cluster.
pub const CLUSTER_CIDR: PerFamily<IpNet> =
    nets(([10, 244, 0, 0], 16), ([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 56));

/// The pods of the node under test.
pub const NODE_CIDR: PerFamily<IpNet> =
    nets(([10, 244, 0, 0], 24), ([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 64));

/// The pods of the second node, all of whose addresses are its own.
pub(super) const REMOTE_POD_CIDR: PerFamily<IpNet> =
    nets(([10, 244, 1, 0], 24), ([0xfd00, 0x10, 0x244, 1, 0, 0, 0, 0], 64));

/// ClusterIPs; see [`cluster_ip`].
pub const SERVICE_CIDR: PerFamily<IpNet> =
    nets(([10, 96, 0, 0], 16), ([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0], 112));

/// External IPs and load balancers' addresses; see [`external_ip`] and [`real_external_ip`].
pub const EXTERNAL_CIDR: PerFamily<IpNet> =
    nets(([198, 51, 100, 0], 24), ([0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0], 64));

/// The half of [`EXTERNAL_CIDR`] that exists outside.
pub(super) const REAL_EXTERNAL_CIDR: PerFamily<IpNet> =
    nets(([198, 51, 100, 128], 25), ([0x2001, 0xdb8, 0x100, 0, 0, 0, 0, 0x80], 121));

/// More addresses of clients outside.
pub(super) const CLIENT_CIDR: PerFamily<IpNet> =
    nets(([203, 0, 113, 0], 24), ([0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 0], 64));

/// Where a dial comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A pod of the node under test.
    Pod(usize),
    /// A pod of the second node.
    RemotePod(usize),
    /// A process of the node itself.
    Host,
    /// Beyond the node's default route, from [`OUTSIDE_IP`].
    Outside,
    /// The same with another address: 203.0.113.N or 2001:db8:113::N.
    OutsideAt(u8),
}

impl Place {
    /// The source address of its dials; `None` lets routing choose.
    pub fn source(self, family: Family) -> Option<IpAddr> {
        match self {
            Place::Pod(n) => Some(pod_ip(n, family)),
            Place::RemotePod(n) => Some(remote_pod_ip(n, family)),
            Place::Host => None,
            Place::Outside => Some(OUTSIDE_IP[family]),
            Place::OutsideAt(n) => Some(nth(CLIENT_CIDR[family], n.into())),
        }
    }
}

/// The address of a pod of the node under test.
pub fn pod_ip(n: usize, family: Family) -> IpAddr {
    nth(NODE_CIDR[family], 10 + n)
}

/// The address of a pod of the second node; there are 200 of them.
pub fn remote_pod_ip(n: usize, family: Family) -> IpAddr {
    nth(REMOTE_POD_CIDR[family], 10 + n)
}

/// The n-th ClusterIP.
pub fn cluster_ip(n: usize, family: Family) -> IpAddr {
    nth(SERVICE_CIDR[family], n)
}

/// The n-th address, up to 127, that is routed to the node from everywhere and that nobody has.
pub fn external_ip(n: usize, family: Family) -> IpAddr {
    nth(EXTERNAL_CIDR[family], n)
}

/// The n-th address, up to 127, that really exists outside: who dials it from the node or through
/// it reaches that machine unless a Service claims the address.
pub fn real_external_ip(n: usize, family: Family) -> IpAddr {
    nth(REAL_EXTERNAL_CIDR[family], n)
}

fn nth(net: IpNet, n: usize) -> IpAddr {
    match net {
        IpNet::V4(net) => {
            let n = u32::try_from(n).expect("labs are small");
            Ipv4Addr::from_bits(net.network().to_bits() + n).into()
        }
        IpNet::V6(net) => Ipv6Addr::from_bits(net.network().to_bits() + n as u128).into(),
    }
}
