//! Flows of the kernel: list and delete over ctnetlink.
//!
//! Place in the flow: carries out what a [`Reconciliation`] decides, in the network namespace of the
//! thread that opens it. Blocking: a dump walks the whole table. Must not know Services.
//! Source: linux/netfilter/nfnetlink_conntrack.h.

mod entries;

use std::io;
use std::net::{IpAddr, SocketAddr};

use super::attribute::{Attributes, begin_nest, end_nest, put, put_u32};
use super::request::{Dump, Request, Requests};
use super::sockets::Sockets;
use super::uapi::*;
use crate::conntrack::{Entry, Flow, Reconciliation, Scope, Statistics, Tuple, Within};
use crate::model::{Family, Protocol};

pub use entries::{Heard, Watch};

/// How often the dump is tried while it is interrupted (B-228).
const ATTEMPTS: usize = 5;

/// So many connections are ended at once: no other flow is looked at meanwhile.
const MOST_ENDED: usize = 1000;

/// Why flows could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ConntrackError {
    #[error("opening a ctnetlink socket")]
    Open(#[source] io::Error),
    /// The table could not be read; nothing was deleted.
    #[error("listing {family} flows")]
    List {
        family: Family,
        #[source]
        source: io::Error,
    },
    #[error("following changes of conntrack")]
    Watch(#[source] io::Error),
    #[error("reading conntrack's statistics")]
    Statistics(#[source] io::Error),
}

/// The outcome of a reconciliation.
#[derive(Debug, Default)]
pub struct Cleaned {
    /// Flows deleted, those that were gone meanwhile included.
    pub deleted: usize,
    /// Those among them that had not been translated.
    pub untranslated: Vec<Flow>,
    /// Flows that could not be deleted, and why.
    pub failed: Vec<(Flow, io::Error)>,
    /// The dump was interrupted every time; flows may have been missed.
    pub partial: bool,
}

pub struct Conntrack {
    requests: Requests,
}

impl Conntrack {
    pub fn open() -> Result<Self, ConntrackError> {
        let requests = Requests::to_netfilter().map_err(ConntrackError::Open)?;
        Ok(Conntrack { requests })
    }

    /// Deletes the stale flows of a family, those that `confirm` leaves.
    pub fn reconcile(
        &mut self,
        family: Family,
        reconciliation: &Reconciliation<'_>,
        confirm: impl FnOnce(&mut Vec<Flow>),
    ) -> Result<Cleaned, ConntrackError> {
        let (mut stale, mut partial) = (Vec::new(), false);
        for scope in reconciliation.scopes() {
            let (found, dump) = self.flows(family, scope, |flow| reconciliation.is_stale(flow))?;
            stale.extend(found);
            partial |= dump == Dump::Interrupted;
        }
        confirm(&mut stale);
        Ok(Cleaned { partial, ..self.delete(&stale) })
    }

    /// The flows of a family within a scope that `keep` wants. Only these are held in memory.
    pub fn flows(
        &mut self,
        family: Family,
        scope: Scope,
        keep: impl Fn(&Flow) -> bool,
    ) -> Result<(Vec<Flow>, Dump), ConntrackError> {
        let requests = &mut self.requests;
        let keep = |flow: &Flow| scope.contains(flow) && keep(flow);
        let (subsystem, command) = (NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET);
        let get = Request::nfnetlink(subsystem, command, nfproto(family), filter(scope));
        uninterrupted(|flows| {
            requests.dump(&get, |message| {
                flows.extend(read_flow(message.attributes(), family).filter(keep));
            })
        })
        .map_err(|source| ConntrackError::List { family, source })
    }

    /// Ends some of the TCP connections with an endpoint that `which` names, after `before` was told of
    /// them: how many, and whether there may be more.
    ///
    /// Errors: they could not be read.
    pub fn end(
        &mut self,
        endpoint: IpAddr,
        which: &dyn Fn(&Entry) -> bool,
        before: &dyn Fn(&[Flow]),
    ) -> Result<(usize, bool), ConntrackError> {
        let family = Family::of(&endpoint);
        let (entries, dump) = self.entries(family, Within::AnsweredBy(endpoint), which)?;
        let flows: Vec<Flow> = entries.iter().take(MOST_ENDED).map(Entry::flow).collect();
        before(&flows);
        // Sockets of this host, as long as their last packet finds its way to an endpoint that lives
        // after all. Where the kernel cannot, their next packet is answered as others' are.
        if let Ok(mut sockets) = Sockets::open() {
            for flow in &flows {
                let _ = sockets.destroy(flow.original.source, flow.original.destination);
            }
        }
        let ended = self.delete(&flows).deleted;
        let more = entries.len() > MOST_ENDED && ended > 0;
        Ok((ended, more || dump == Dump::Interrupted))
    }

    /// Deletes these very entries; one that is gone counts as deleted.
    pub fn delete(&mut self, flows: &[Flow]) -> Cleaned {
        let mut cleaned = Cleaned::default();
        for flow in flows {
            match self.requests.execute(&deletion(flow), |_| {}) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => {
                    cleaned.failed.push((*flow, error));
                    continue;
                }
                Ok(()) | Err(_) => cleaned.deleted += 1,
            }
            if flow.original.destination == flow.reply.source {
                cleaned.untranslated.push(*flow);
            }
        }
        cleaned
    }
}

/// Repeats an interrupted dump; the last attempt's partial result stands.
fn uninterrupted<T>(
    mut attempt: impl FnMut(&mut Vec<T>) -> io::Result<Dump>,
) -> io::Result<(Vec<T>, Dump)> {
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

/// By protocol and address since Linux 5.8 (`CTA_FILTER`), by status since 5.15; older kernels ignore
/// what they do not know. It only saves time: every flow is compared with the scope. IPv6 addresses
/// are compared there, too: a kernel that is asked for one delivers all others (seen on 6.18).
fn filter(scope: Scope) -> Vec<u8> {
    let mut attributes = Vec::new();
    let mut flags = CTA_FILTER_F_CTA_PROTO_NUM;
    nested(&mut attributes, CTA_TUPLE_ORIG, |tuple| {
        if let Some(ip) = scope.destination.filter(IpAddr::is_ipv4) {
            flags |= CTA_FILTER_F_CTA_IP_DST;
            let [_, destination] = ip_kinds(Family::of(&ip));
            nested(tuple, CTA_TUPLE_IP, |nest| put_address(nest, destination, ip));
        }
        nested(tuple, CTA_TUPLE_PROTO, |proto| {
            put(proto, CTA_PROTO_NUM, &[scope.protocol.number()]);
        });
    });
    nested(&mut attributes, CTA_FILTER, |filter| {
        // Flags are in host order.
        put(filter, CTA_FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
    });
    if scope.unreplied {
        put_u32(&mut attributes, CTA_STATUS, 0);
        put_u32(&mut attributes, CTA_STATUS_MASK, IPS_SEEN_REPLY);
    }
    attributes
}

fn deletion(flow: &Flow) -> Request {
    let mut attributes = Vec::new();
    let protocol = flow.protocol;
    nested(&mut attributes, CTA_TUPLE_ORIG, |nest| put_tuple(nest, protocol, &flow.original));
    nested(&mut attributes, CTA_TUPLE_REPLY, |nest| put_tuple(nest, protocol, &flow.reply));
    if let Some(zone) = flow.zone {
        put(&mut attributes, CTA_ZONE, &zone.to_be_bytes());
    }
    if let Some(id) = flow.id {
        put_u32(&mut attributes, CTA_ID, id);
    }
    let family = nfproto(Family::of(&flow.original.destination.ip()));
    Request::nfnetlink(NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE, family, attributes)
}

fn nested(buf: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let nest = begin_nest(buf, kind);
    write(buf);
    end_nest(buf, nest);
}

/// `None` if it is not a UDP or TCP flow of the family.
fn read_flow(attributes: Attributes<'_>, family: Family) -> Option<Flow> {
    let number = attributes.nest(CTA_TUPLE_ORIG).nest(CTA_TUPLE_PROTO).get(CTA_PROTO_NUM)?;
    let protocols = [Protocol::Udp, Protocol::Tcp];
    Some(Flow {
        protocol: protocols.into_iter().find(|protocol| *number == [protocol.number()])?,
        replied: attributes.u32(CTA_STATUS).is_some_and(|bits| bits & IPS_SEEN_REPLY != 0),
        original: read_tuple(attributes.nest(CTA_TUPLE_ORIG), family)?,
        reply: read_tuple(attributes.nest(CTA_TUPLE_REPLY), family)?,
        zone: u16_of(attributes, CTA_ZONE),
        id: attributes.u32(CTA_ID),
    })
}

/// A 16-bit number in network order.
fn u16_of(attributes: Attributes<'_>, kind: u16) -> Option<u16> {
    attributes.get(kind)?.try_into().ok().map(u16::from_be_bytes)
}

fn read_tuple(tuple: Attributes<'_>, family: Family) -> Option<Tuple> {
    let (ip, proto) = (tuple.nest(CTA_TUPLE_IP), tuple.nest(CTA_TUPLE_PROTO));
    let [source, destination] = ip_kinds(family);
    let address = |kind| -> Option<IpAddr> {
        let bytes = ip.get(kind)?;
        match family {
            Family::V4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            Family::V6 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        }
    };
    Some(Tuple {
        source: SocketAddr::new(address(source)?, u16_of(proto, CTA_PROTO_SRC_PORT)?),
        destination: SocketAddr::new(address(destination)?, u16_of(proto, CTA_PROTO_DST_PORT)?),
    })
}

fn put_tuple(buf: &mut Vec<u8>, protocol: Protocol, tuple: &Tuple) {
    let [source, destination] = ip_kinds(Family::of(&tuple.source.ip()));
    nested(buf, CTA_TUPLE_IP, |ip| {
        put_address(ip, source, tuple.source.ip());
        put_address(ip, destination, tuple.destination.ip());
    });
    nested(buf, CTA_TUPLE_PROTO, |proto| {
        put(proto, CTA_PROTO_NUM, &[protocol.number()]);
        put(proto, CTA_PROTO_SRC_PORT, &tuple.source.port().to_be_bytes());
        put(proto, CTA_PROTO_DST_PORT, &tuple.destination.port().to_be_bytes());
    });
}

fn put_address(buf: &mut Vec<u8>, kind: u16, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => put(buf, kind, &ip.octets()),
        IpAddr::V6(ip) => put(buf, kind, &ip.octets()),
    }
}

/// The attributes of source and destination within `CTA_TUPLE_IP`.
fn ip_kinds(family: Family) -> [u16; 2] {
    match family {
        Family::V4 => [CTA_IP_V4_SRC, CTA_IP_V4_DST],
        Family::V6 => [CTA_IP_V6_SRC, CTA_IP_V6_DST],
    }
}

// How full the table is, and what happened to entries, as the kernel counts it.
//
// Two requests of a few hundred bytes for each CPU; the table itself is not walked.

impl Conntrack {
    /// The figures of this network namespace.
    ///
    /// Errors: the kernel refuses: without CAP_NET_ADMIN.
    pub fn statistics(&mut self) -> Result<Statistics, ConntrackError> {
        let mut statistics = Statistics::default();
        let ask = |command| {
            Request::nfnetlink(NFNL_SUBSYS_CTNETLINK, command, NFPROTO_UNSPEC, Vec::new())
        };
        self.requests
            .execute(&ask(IPCTNL_MSG_CT_GET_STATS), |message| {
                let of = |kind| u64::from(message.attributes().u32(kind).unwrap_or(0));
                statistics.entries = of(CTA_STATS_GLOBAL_ENTRIES);
                statistics.limit = of(CTA_STATS_GLOBAL_MAX_ENTRIES);
            })
            .map_err(ConntrackError::Statistics)?;
        self.requests
            .dump(&ask(IPCTNL_MSG_CT_GET_STATS_CPU), |message| {
                add_cpu(&mut statistics, message.attributes());
            })
            .map_err(ConntrackError::Statistics)?;
        Ok(statistics)
    }
}

/// Adds what happened on one CPU. A kernel that does not know a figure leaves it out.
fn add_cpu(sum: &mut Statistics, cpu: Attributes<'_>) {
    for (figure, kind) in [
        (&mut sum.insert_failed, CTA_STATS_INSERT_FAILED),
        (&mut sum.drop, CTA_STATS_DROP),
        (&mut sum.early_drop, CTA_STATS_EARLY_DROP),
        (&mut sum.invalid, CTA_STATS_INVALID),
        (&mut sum.search_restart, CTA_STATS_SEARCH_RESTART),
        (&mut sum.clash_resolve, CTA_STATS_CLASH_RESOLVE),
        (&mut sum.chain_too_long, CTA_STATS_CHAIN_TOOLONG),
    ] {
        *figure += u64::from(cpu.u32(kind).unwrap_or(0));
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
        let protocol = Protocol::Udp;
        Flow { protocol, replied: true, original, reply, zone: None, id: Some(id) }
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
        let refused = uninterrupted::<Flow>(|_| Err(io::Error::from_raw_os_error(libc::EPERM)));
        assert_eq!(refused.err().and_then(|e| e.raw_os_error()), Some(libc::EPERM));
    }
}
