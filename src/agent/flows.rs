//! Stale flows: a subscriber that says what each sync makes due, and the [`thread`] that deletes them.

mod thread;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::conntrack::{Drained, Frontend, Served, ServedPort};
use crate::engine::Conflict;
use crate::model::{Family, ObjectName, PerFamily, Protocol};
use crate::program::{FrontendAt, FrontendKey, NodeAddressing};
use crate::sync::{InForce, Subscriber, Synced, Turn};

pub use thread::{Told, start};

/// What to reconcile: only services that changed.
#[derive(Debug, Clone)]
pub struct Job {
    pub family: Family,
    /// Services whose UDP ports are not what they were.
    pub udp: BTreeMap<ObjectName, Ports>,
    /// Services with TCP ports whose rules were made anew; `None` if they are gone.
    pub tcp: BTreeMap<ObjectName, Option<Served>>,
    /// Services whose connections to endpoints that are gone are to be ended, if their rules were made
    /// anew; `None` if they are not any more.
    pub drained: Vec<(ObjectName, Option<Drained>)>,
    /// Addresses on which NodePorts are served.
    pub node_port_addresses: HashSet<IpAddr>,
}

/// A service's UDP ports.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ports {
    /// Now.
    pub current: Vec<ServedPort>,
    /// At the last reconciliation.
    pub previous: Vec<ServedPort>,
}

/// Says which services' flows are due.
pub struct Flows {
    jobs: Sender<Job>,
    node_port_addresses: PerFamily<HashSet<IpAddr>>,
    /// Addresses came to these, and the rules may not say so yet.
    extended: PerFamily<bool>,
    /// UDP ports of services at their last job; no service without one.
    known: PerFamily<HashMap<ObjectName, Vec<ServedPort>>>,
    /// Services in force that have NodePorts.
    with_node_ports: PerFamily<HashMap<ObjectName, Served>>,
    /// After which time connections to endpoints that are gone are ended, where a service does not say.
    end_after: Option<Duration>,
    /// Services of which that was told.
    drained: PerFamily<HashSet<ObjectName>>,
}

impl Flows {
    /// Nothing is in force yet; `addressing` are those of the start.
    pub fn new(
        jobs: Sender<Job>,
        addressing: &NodeAddressing,
        end_after: Option<Duration>,
    ) -> Self {
        Flows {
            jobs,
            node_port_addresses: node_ports(addressing),
            extended: PerFamily::default(),
            known: PerFamily::default(),
            with_node_ports: PerFamily::default(),
            end_after,
            drained: PerFamily::default(),
        }
    }

    /// UDP ports of services at their last job.
    #[cfg(test)]
    pub fn known(&self, family: Family) -> &HashMap<ObjectName, Vec<ServedPort>> {
        &self.known[family]
    }

    /// Services of a sync whose flows are due.
    fn follow(&mut self, job: &mut Job, synced: &Synced) {
        let family = job.family;
        let mut lost = lost(&synced.state.conflicts);
        for service in &synced.in_force {
            let served = served(service, lost.remove(&service.name).unwrap_or_default());
            self.udp(job, &service.name, served.as_ref());
            let has = |served: &Served, of: fn(&crate::model::ServicePort) -> bool| {
                served.service.ports.iter().any(of)
            };
            let with_node_ports = &mut self.with_node_ports[family];
            match &served {
                Some(s) if has(s, |port| port.node_port.is_some()) => {
                    with_node_ports.insert(service.name.clone(), s.clone());
                }
                _ => drop(with_node_ports.remove(&service.name)),
            }
            let drained = served.as_ref().and_then(|s| s.drained(family, self.end_after));
            let told = &mut self.drained[family];
            let known = match drained {
                Some(_) => !told.insert(service.name.clone()),
                None => told.remove(&service.name),
            };
            if drained.is_some() || known {
                job.drained.push((service.name.clone(), drained));
            }
            let gone = served.is_none();
            let tcp = served.filter(|s| has(s, |port| port.protocol == Protocol::Tcp));
            if gone || tcp.is_some() {
                job.tcp.insert(service.name.clone(), tcp);
            }
        }
    }

    /// A service's UDP ports, if they are not what they were.
    fn udp(&mut self, job: &mut Job, name: &ObjectName, served: Option<&Served>) {
        let current = served.map(|served| served.ports(job.family, Protocol::Udp));
        let current = current.unwrap_or_default();
        let known = &mut self.known[job.family];
        if known.get(name).map_or(&[][..], Vec::as_slice) == current {
            return;
        }
        let previous = match current.is_empty() {
            true => known.remove(name),
            false => known.insert(name.clone(), current.clone()),
        };
        let ports = Ports { current, previous: previous.unwrap_or_default() };
        job.udp.insert(name.clone(), ports);
    }

    /// Services with NodePorts, which are served on more addresses now.
    fn extend(&self, job: &mut Job) {
        for (name, served) in &self.with_node_ports[job.family] {
            if let Some(current) = self.known[job.family].get(name) {
                let ports = || Ports { current: current.clone(), previous: Vec::new() };
                job.udp.entry(name.clone()).or_insert_with(ports);
            }
            job.tcp.entry(name.clone()).or_insert_with(|| Some(served.clone()));
        }
    }
}

impl Subscriber for Flows {
    fn turn(&mut self, turn: &Turn) {
        if let Some(addressing) = &turn.addressing {
            let now = node_ports(addressing);
            for family in Family::BOTH {
                self.extended[family] |= !now[family].is_subset(&self.node_port_addresses[family]);
            }
            self.node_port_addresses = now;
        }
        for family in Family::BOTH {
            let synced = turn.syncs.iter().find(|sync| sync.report.family == family);
            let mut job = Job {
                family,
                udp: BTreeMap::new(),
                tcp: BTreeMap::new(),
                drained: Vec::new(),
                node_port_addresses: HashSet::new(),
            };
            if let Some(synced) = synced {
                self.follow(&mut job, synced);
            }
            let settled = match synced {
                Some(sync) => sync.report.result.is_ok(),
                None => !turn.waiting.contains(family),
            };
            if settled && std::mem::take(&mut self.extended[family]) {
                self.extend(&mut job);
            }
            if !job.udp.is_empty() || !job.tcp.is_empty() || !job.drained.is_empty() {
                // Most turns make nothing due, and need no copy.
                job.node_port_addresses.clone_from(&self.node_port_addresses[family]);
                // The thread ends only with the process.
                let _ = self.jobs.send(job);
            }
        }
    }
}

/// What services would have if others had not.
pub fn lost(conflicts: &[Conflict]) -> HashMap<&ObjectName, Vec<Frontend>> {
    let mut lost: HashMap<_, Vec<Frontend>> = HashMap::new();
    for conflict in conflicts {
        let FrontendKey { at, protocol, port } = conflict.frontend;
        let address = match at {
            FrontendAt::Address(ip) => Some(ip),
            FrontendAt::NodePort => None,
        };
        let others = conflict.others.iter().map(|claim| &claim.port.service);
        for service in others.filter(|service| **service != conflict.owner.port.service) {
            lost.entry(service).or_default().push(Frontend { address, protocol, port });
        }
    }
    lost
}

fn served(in_force: &InForce, lost: Vec<Frontend>) -> Option<Served> {
    let service = Arc::clone(in_force.service.as_ref()?);
    Some(Served { service, slices: in_force.slices.clone(), lost })
}

fn node_ports(addressing: &NodeAddressing) -> PerFamily<HashSet<IpAddr>> {
    let local = &addressing.local_addresses;
    PerFamily::from_fn(|family| local[family].iter().copied().collect())
}

#[cfg(test)]
mod tests;
