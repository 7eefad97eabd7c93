//! UDP flows of the kernel: list and delete over ctnetlink.
//!
//! Place in the flow: carries out what a [`Reconciliation`] decides, in the network namespace of the
//! thread that opens it. Blocking: a dump walks the whole table. Must not know Services.
//! Source: linux/netfilter/nfnetlink_conntrack.h.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{Flow, Reconciliation, Tuple};
use crate::model::{Family, Protocol};
use crate::node::nfnetlink::{Attributes, Dump, Netlink, Request, attribute};

const SUBSYSTEM: u8 = 1; // NFNL_SUBSYS_CTNETLINK
const GET: u8 = 1; // IPCTNL_MSG_CT_GET
const DELETE: u8 = 2; // IPCTNL_MSG_CT_DELETE

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;

const FILTER_ORIG_FLAGS: u16 = 1;
/// Compare the protocol number only (`CTA_FILTER_F_CTA_PROTO_NUM` of the kernel's nf_internals.h).
const FILTER_PROTO_NUM: u32 = 1 << 3;

/// How often the dump is tried while it is interrupted (B-228).
const ATTEMPTS: usize = 5;

/// Why flows could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    /// No ctnetlink socket.
    #[error("opening a ctnetlink socket")]
    Open(#[source] io::Error),
    /// The table could not be read; nothing was deleted.
    #[error("listing {family} UDP flows")]
    List {
        /// Of which family.
        family: Family,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The outcome of a reconciliation.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Flows deleted, those that were gone meanwhile included.
    pub deleted: usize,
    /// Flows that could not be deleted, and why.
    pub failed: Vec<(Flow, io::Error)>,
    /// The dump was interrupted every time; flows may have been missed.
    pub partial: bool,
}

/// The kernel's conntrack table.
pub struct Conntrack {
    netlink: Netlink,
}

impl Conntrack {
    /// Opens a socket.
    pub fn open() -> Result<Self, ConntrackError> {
        let netlink = Netlink::open(NETLINK_NETFILTER).map_err(ConntrackError::Open)?;
        Ok(Conntrack { netlink })
    }

    /// Deletes the stale UDP flows of a family.
    pub fn reconcile(
        &mut self,
        family: Family,
        reconciliation: &Reconciliation<'_>,
    ) -> Result<Cleaned, ConntrackError> {
        let (stale, dump) = self.flows(family, |flow| reconciliation.is_stale(flow))?;
        let mut cleaned = self.delete(&stale);
        cleaned.partial = dump == Dump::Interrupted;
        Ok(cleaned)
    }

    /// The UDP flows of a family that `keep` wants. Only these are held in memory.
    pub fn flows(
        &mut self,
        family: Family,
        keep: impl Fn(&Flow) -> bool,
    ) -> Result<(Vec<Flow>, Dump), ConntrackError> {
        let netlink = &mut self.netlink;
        let mut list = |request: &Request| {
            uninterrupted(|flows| {
                netlink.dump(request, |attributes| {
                    flows.extend(read_flow(attributes, family).filter(&keep));
                })
            })
        };
        let all = Request::nfnetlink(SUBSYSTEM, GET, nfproto(family), Attributes::default());
        let udp = Request { attributes: udp_filter(), ..all.clone() };
        match list(&udp).map_err(|error| (error.raw_os_error(), error)) {
            // Kernels that know CTA_FILTER but not this flag; those before 5.8 ignore it. Every flow
            // is checked again by read_flow, so that the filter only saves time.
            Err((Some(libc::EOPNOTSUPP | libc::EINVAL), _)) => list(&all),
            other => other.map_err(|(_, error)| error),
        }
        .map_err(|source| ConntrackError::List { family, source })
    }

    /// Deletes these very entries; one that is gone counts as deleted.
    pub fn delete(&mut self, flows: &[Flow]) -> Cleaned {
        let mut cleaned = Cleaned::default();
        for flow in flows {
            match self.netlink.execute(&deletion(flow), |_| {}) {
                Ok(()) => cleaned.deleted += 1,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => cleaned.deleted += 1,
                Err(error) => cleaned.failed.push((*flow, error)),
            }
        }
        cleaned
    }
}

/// Repeats an interrupted dump; the last attempt's partial result stands.
fn uninterrupted(
    mut attempt: impl FnMut(&mut Vec<Flow>) -> io::Result<Dump>,
) -> io::Result<(Vec<Flow>, Dump)> {
    let mut flows = Vec::new();
    for _ in 0..ATTEMPTS {
        flows.clear();
        match attempt(&mut flows) {
            Ok(Dump::Complete) => return Ok((flows, Dump::Complete)),
            Ok(Dump::Interrupted) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((flows, Dump::Interrupted))
}

fn udp_filter() -> Attributes {
    let protocol = Attributes::default().put(PROTO_NUM, &[Protocol::Udp.number()]);
    let flags = Attributes::default().put(FILTER_ORIG_FLAGS, &FILTER_PROTO_NUM.to_ne_bytes());
    Attributes::default()
        .nest(TUPLE_ORIG, Attributes::default().nest(TUPLE_PROTO, protocol))
        .nest(FILTER, flags)
}

fn deletion(flow: &Flow) -> Request {
    let mut attributes = Attributes::default()
        .nest(TUPLE_ORIG, write_tuple(&flow.original))
        .nest(TUPLE_REPLY, write_tuple(&flow.reply));
    if let Some(zone) = flow.zone {
        attributes = attributes.put(ZONE, &zone.to_be_bytes());
    }
    if let Some(id) = flow.id {
        attributes = attributes.put(ID, &id.to_be_bytes());
    }
    let family = Family::of(&flow.original.destination.ip());
    Request::nfnetlink(SUBSYSTEM, DELETE, nfproto(family), attributes)
}

/// `None` if it is not a UDP flow of the family.
fn read_flow(attributes: &[u8], family: Family) -> Option<Flow> {
    let number = |kind| attribute(attributes, kind);
    Some(Flow {
        original: read_tuple(attribute(attributes, TUPLE_ORIG)?, family)?,
        reply: read_tuple(attribute(attributes, TUPLE_REPLY)?, family)?,
        zone: number(ZONE).and_then(|b| b.try_into().ok()).map(u16::from_be_bytes),
        id: number(ID).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes),
    })
}

fn read_tuple(tuple: &[u8], family: Family) -> Option<Tuple> {
    let (ip, proto) = (attribute(tuple, TUPLE_IP)?, attribute(tuple, TUPLE_PROTO)?);
    if attribute(proto, PROTO_NUM)? != [Protocol::Udp.number()] {
        return None;
    }
    let [source, destination] = ip_kinds(family);
    let address = |kind| -> Option<IpAddr> {
        let bytes = attribute(ip, kind)?;
        match family {
            Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    };
    let port = |kind| attribute(proto, kind)?.try_into().ok().map(u16::from_be_bytes);
    Some(Tuple {
        source: SocketAddr::new(address(source)?, port(PROTO_SRC_PORT)?),
        destination: SocketAddr::new(address(destination)?, port(PROTO_DST_PORT)?),
    })
}

fn write_tuple(tuple: &Tuple) -> Attributes {
    let [source, destination] = ip_kinds(Family::of(&tuple.source.ip()));
    let address = |attributes: Attributes, kind, ip: IpAddr| match ip {
        IpAddr::V4(ip) => attributes.put(kind, &ip.octets()),
        IpAddr::V6(ip) => attributes.put(kind, &ip.octets()),
    };
    let ip = address(Attributes::default(), source, tuple.source.ip());
    let ip = address(ip, destination, tuple.destination.ip());
    let proto = Attributes::default()
        .put(PROTO_NUM, &[Protocol::Udp.number()])
        .put(PROTO_SRC_PORT, &tuple.source.port().to_be_bytes())
        .put(PROTO_DST_PORT, &tuple.destination.port().to_be_bytes());
    Attributes::default().nest(TUPLE_IP, ip).nest(TUPLE_PROTO, proto)
}

/// The attributes of source and destination within `CTA_TUPLE_IP`.
fn ip_kinds(family: Family) -> [u16; 2] {
    match family {
        Family::V4 => [1, 2],
        Family::V6 => [3, 4],
    }
}

fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(id: u32) -> Flow {
        let address = |text: &str| text.parse().expect("a literal address");
        let original =
            Tuple { source: address("10.1.0.9:4242"), destination: address("10.96.0.10:53") };
        let reply =
            Tuple { source: address("10.1.0.2:5353"), destination: address("10.1.0.9:4242") };
        Flow { original, reply, zone: None, id: Some(id) }
    }

    // B-228: five attempts, then what the last one saw.
    #[test]
    fn an_interrupted_dump_is_repeated() {
        let attempts = |complete_at: usize, as_error: bool| {
            let mut made = 0;
            let outcome = uninterrupted(|flows| {
                made += 1;
                flows.push(flow(made));
                match made as usize == complete_at {
                    true => Ok(Dump::Complete),
                    false if as_error => Err(io::Error::from_raw_os_error(libc::EINTR)),
                    false => Ok(Dump::Interrupted),
                }
            });
            (made, outcome.expect("interruptions are no errors"))
        };
        assert_eq!(attempts(3, false), (3, (vec![flow(3)], Dump::Complete)));
        assert_eq!(attempts(3, true), (3, (vec![flow(3)], Dump::Complete)));
        assert_eq!(attempts(9, false), (5, (vec![flow(5)], Dump::Interrupted)));
        assert_eq!(attempts(9, true), (5, (vec![flow(5)], Dump::Interrupted)));
    }

    #[test]
    fn other_errors_end_the_dump() {
        let refused = uninterrupted(|_| Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert_eq!(refused.err().and_then(|e| e.raw_os_error()), Some(libc::EPERM));
    }
}
