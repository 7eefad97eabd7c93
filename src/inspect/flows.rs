//! Which flows a Service, an endpoint or a client has.
//!
//! Place in the flow: `kubeweir flows` reads conntrack's entries and the kernel's table, and prints
//! what this module makes of both: the table's own comments name the Service of a frontend. Pure.

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry as Slot;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::view::{Frontend, Frontends};
use crate::conntrack::{Change, Entry, Within};
use crate::model::address::{parse_ip, parse_ip_port};
use crate::model::{Family, ObjectName};
use crate::program::{FrontendAt, FrontendKey};
use crate::ruleset::Environment;

/// Whose flows are meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Of every Service.
    All,
    /// Of a Service, or of one of its ports, by name or number.
    Service(ObjectName, Option<String>),
    /// From a client, or to an endpoint or a frontend at this address.
    Address(IpAddr),
    /// To an endpoint or a frontend.
    Socket(SocketAddr),
}

impl Selector {
    /// From what somebody wrote; `None` if it is nothing of it.
    pub fn parse(text: &str) -> Option<Selector> {
        if let Some(address) = parse_ip(text) {
            return Some(Selector::Address(address));
        }
        if let Some(socket) = parse_ip_port(text) {
            return Some(Selector::Socket(socket));
        }
        let (namespace, rest) = text.split_once('/')?;
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (rest, None),
        };
        let is_name = |part: &str| {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            !part.is_empty() && part.chars().all(fits)
        };
        let parts = [namespace, name].into_iter().chain(port);
        let service = ObjectName::new(namespace, name);
        parts.into_iter().all(is_name).then(|| Selector::Service(service, port.map(str::to_owned)))
    }

    /// Families that may have such flows.
    pub fn families(&self) -> Vec<Family> {
        match self {
            Selector::All | Selector::Service(..) => Family::BOTH.to_vec(),
            Selector::Address(ip) => vec![Family::of(ip)],
            Selector::Socket(socket) => vec![Family::of(&socket.ip())],
        }
    }
}

/// Frontends by what is dialled.
#[derive(Debug, Default)]
pub struct Names {
    frontends: Frontends,
    node: Environment,
}

impl Names {
    /// From the tables of both families, and the node's addresses, at which NodePorts are.
    pub fn new(tables: impl IntoIterator<Item = Frontends>, node: Environment) -> Names {
        Names { frontends: tables.into_iter().flatten().collect(), node }
    }

    /// What an entry's client dialled, if it is a frontend.
    fn of(&self, entry: &Entry) -> Option<&Frontend> {
        let to = entry.original.destination;
        let key = |at| FrontendKey { at, protocol: entry.protocol, port: to.port() };
        let node_port = || {
            let local = self.node.is_local(to.ip());
            self.frontends.get(&key(FrontendAt::NodePort)).filter(|_| local)
        };
        self.frontends.get(&key(FrontendAt::Address(to.ip()))).or_else(node_port)
    }

    /// The frontends of a Service, or of one of its ports.
    fn of_service<'a>(
        &'a self,
        service: &'a ObjectName,
        port: Option<&'a str>,
    ) -> impl Iterator<Item = &'a FrontendKey> {
        let fits = move |(key, frontend): &(&FrontendKey, &Frontend)| {
            frontend.label.as_deref().is_some_and(|label| is_of(label, service, port, key.port))
        };
        self.frontends.iter().filter(fits).map(|(key, _)| key)
    }

    /// Whether the table has anything of a Service, or of one of its ports.
    pub fn knows(&self, service: &ObjectName, port: Option<&str>) -> bool {
        self.of_service(service, port).next().is_some()
    }

    /// What to ask the kernel for, so that it leaves out what is not wanted where it can: each question
    /// walks the whole table once.
    pub fn questions(&self, selector: &Selector, family: Family) -> Vec<Within> {
        match selector {
            Selector::All => vec![Within::All],
            Selector::Address(ip) => {
                vec![Within::From(*ip), Within::AnsweredBy(*ip), Within::To(*ip)]
            }
            Selector::Socket(socket) => {
                vec![Within::AnsweredBy(socket.ip()), Within::To(socket.ip())]
            }
            Selector::Service(service, port) => {
                let mut addresses = Vec::new();
                for key in self.of_service(service, port.as_deref()) {
                    match key.at {
                        FrontendAt::Address(ip) if Family::of(&ip) == family => addresses.push(ip),
                        FrontendAt::Address(_) => {}
                        FrontendAt::NodePort => return vec![Within::All],
                    }
                }
                addresses.sort_unstable();
                addresses.dedup();
                match addresses.len() {
                    0..=2 => addresses.into_iter().map(Within::To).collect(),
                    _ => vec![Within::All],
                }
            }
        }
    }

    /// Whether an entry is of a Service, now or when it began, and of the selected ones.
    pub fn selects(&self, selector: &Selector, entry: &Entry) -> bool {
        let (original, endpoint) = (entry.original, entry.reply.source);
        let frontend = self.of(entry);
        let translated = endpoint != original.destination;
        if frontend.is_none() && !translated {
            return false;
        }
        match selector {
            Selector::All => true,
            Selector::Address(ip) => {
                [original.source, original.destination, endpoint].iter().any(|at| at.ip() == *ip)
            }
            Selector::Socket(socket) => [original.destination, endpoint].contains(socket),
            Selector::Service(service, port) => {
                let label = frontend.and_then(|frontend| frontend.label.as_deref());
                let number = original.destination.port();
                label.is_some_and(|label| is_of(label, service, port.as_deref(), number))
            }
        }
    }

    /// An entry as it is told; `now` in nanoseconds since 1970.
    pub fn tell(&self, entry: &Entry, now: u64) -> Flow {
        let (original, reply) = (entry.original, entry.reply);
        let frontend = self.of(entry);
        let endpoint = (reply.source != original.destination).then_some(reply.source);
        let listed = |frontend: &Frontend| {
            let lists = frontend.endpoints.values();
            endpoint.is_some_and(|endpoint| lists.flatten().any(|listed| *listed == endpoint))
        };
        let counts = entry.counts;
        Flow {
            protocol: entry.protocol.to_string(),
            client: original.source,
            frontend: original.destination,
            service: frontend.and_then(|frontend| frontend.label.as_deref()).map(str::to_owned),
            endpoint,
            seen_as: (reply.destination != original.source).then_some(reply.destination),
            state: state(entry).into(),
            in_list: frontend.map(listed),
            age_seconds: entry.started.map(|started| now.saturating_sub(started) / 1_000_000_000),
            packets: counts.map(|counts| counts.packets),
            bytes: counts.map(|counts| counts.bytes),
        }
    }
}

/// Whether a label, `namespace/service:port`, is of a Service, and of its port by name or number.
fn is_of(label: &str, service: &ObjectName, port: Option<&str>, number: u16) -> bool {
    let (name, label_port) = label.split_once(':').unwrap_or((label, ""));
    let of_port = |port: &str| port == label_port || port == number.to_string();
    name.split_once('/') == Some((&*service.namespace, &*service.name)) && port.is_none_or(of_port)
}

fn state(entry: &Entry) -> &'static str {
    match (entry.tcp, entry.assured, entry.replied) {
        (Some(state), _, _) => state,
        (None, true, _) => "ASSURED",
        (None, false, true) => "REPLIED",
        (None, false, false) => "UNREPLIED",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    pub client: SocketAddr,
    pub frontend: SocketAddr,
    /// `namespace/service:port`, if the table has the frontend.
    pub service: Option<String>,
    /// Where it was sent; `None` if nobody translated it.
    pub endpoint: Option<SocketAddr>,
    /// The client as the endpoint sees it, if that is not itself.
    pub seen_as: Option<SocketAddr>,
    /// TCP's state, `UNREPLIED`, `REPLIED`, `ASSURED`.
    pub state: Cow<'static, str>,
    /// Whether new flows to the frontend may go to the endpoint, if the table has the frontend.
    pub in_list: Option<bool>,
    /// With `nf_conntrack_timestamp`.
    pub age_seconds: Option<u64>,
    /// From the client and back, with `nf_conntrack_acct`.
    pub packets: Option<[u64; 2]>,
    pub bytes: Option<[u64; 2]>,
}

impl Flow {
    /// What is odd about it, for people.
    fn note(&self) -> &'static str {
        match (self.endpoint, self.in_list) {
            (None, _) => "sent to nobody",
            (Some(_), None) => "frontend of no Service",
            (Some(_), Some(false)) => "endpoint not in the list any more",
            (Some(_), Some(true)) => "",
        }
    }

    /// Names of the columns of [`Flow::cells`].
    pub const COLUMNS: [&'static str; 7] =
        ["PROTOCOL", "CLIENT", "FRONTEND", "SERVICE", "ENDPOINT", "STATE", "NOTE"];

    /// The flow in [`Flow::COLUMNS`].
    pub fn cells(&self) -> [String; 7] {
        let service = self.service.clone().unwrap_or_else(|| "-".to_owned());
        let endpoint = self.endpoint.map_or_else(|| "-".to_owned(), |at| at.to_string());
        let [client, frontend] = [self.client, self.frontend].map(|at| at.to_string());
        let (protocol, state) = (self.protocol.clone(), self.state.clone().into_owned());
        [protocol, client, frontend, service, endpoint, state, self.note().to_owned()]
    }
}

/// All flows as a table, by Service, frontend and client. What the kernel does not tell of any of them
/// has no column.
///
/// Shape: the header, then a row for each flow.
pub fn rows(flows: &[Flow]) -> (Vec<&'static str>, Vec<Vec<String>>) {
    type Cell = fn(&Flow) -> Option<String>;
    let more: [(&str, Cell); 3] = [
        ("AGE", |flow| flow.age_seconds.map(age)),
        ("PACKETS", |flow| flow.packets.map(|[there, back]| format!("{there}/{back}"))),
        ("BYTES", |flow| flow.bytes.map(|[there, back]| format!("{there}/{back}"))),
    ];
    let known: Vec<_> =
        more.into_iter().filter(|(_, cell)| flows.iter().any(|f| cell(f).is_some())).collect();
    let [columns @ .., note] = Flow::COLUMNS;
    let header = columns.into_iter().chain(known.iter().map(|(name, _)| *name)).chain([note]);
    let row = |flow: &Flow| {
        let [cells @ .., note] = flow.cells();
        let more = known.iter().map(|(_, cell)| cell(flow).unwrap_or_default());
        cells.into_iter().chain(more).chain([note]).collect()
    };
    (header.collect(), flows.iter().map(row).collect())
}

/// In the two largest units.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86400, seconds % 86400 / 3600),
    }
}

// Flows as they come and go.

/// A flow as the kernel finds it.
type Key = (u8, SocketAddr, SocketAddr, Option<u16>);

/// The flows that are there, from a list and what was heard since.
///
/// A list now and then puts right what was lost, and tells the end of flows that the kernel never
/// speaks of: those that are older than the first watcher.
#[derive(Debug, Default)]
pub struct Live(BTreeMap<Key, Entry>);

fn key(entry: &Entry) -> Key {
    let original = entry.original;
    (entry.protocol.number(), original.source, original.destination, entry.zone)
}

impl Live {
    /// Takes a change; what is to be told of it. A message leaves out what did not change.
    pub fn hear(&mut self, change: Change, mut entry: Entry) -> Option<(Change, Entry)> {
        let slot = self.0.entry(key(&entry));
        if let Slot::Occupied(known) = &slot {
            entry.tcp = entry.tcp.or(known.get().tcp);
            entry.started = entry.started.or(known.get().started);
            entry.counts = entry.counts.or(known.get().counts);
        }
        match (slot, change) {
            (Slot::Occupied(known), Change::Ended) => {
                known.remove();
                Some((Change::Ended, entry))
            }
            (Slot::Vacant(_), Change::Ended) => None,
            (Slot::Occupied(mut known), Change::New | Change::Updated) => {
                let before = known.insert(entry.clone());
                differs(&before, &entry).then_some((Change::Updated, entry))
            }
            // The beginning was lost, or is older than the watcher.
            (Slot::Vacant(slot), Change::New | Change::Updated) => {
                slot.insert(entry.clone());
                Some((Change::New, entry))
            }
        }
    }

    /// Takes a complete list; what is to be told that nobody spoke of.
    pub fn relist(&mut self, entries: Vec<Entry>) -> Vec<(Change, Entry)> {
        let mut before = std::mem::take(&mut self.0);
        let mut told = Vec::new();
        for entry in entries {
            let key = key(&entry);
            match before.remove(&key) {
                None => told.push((Change::New, entry.clone())),
                Some(known) if differs(&known, &entry) => {
                    told.push((Change::Updated, entry.clone()));
                }
                Some(_) => {}
            }
            self.0.insert(key, entry);
        }
        told.extend(before.into_values().map(|entry| (Change::Ended, entry)));
        told
    }
}

/// Whether people would see a difference; counts and times change all the time.
fn differs(a: &Entry, b: &Entry) -> bool {
    let shown = |entry: &Entry| (entry.reply, entry.tcp, entry.replied, entry.assured);
    shown(a) != shown(b)
}
