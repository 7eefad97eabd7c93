//! Health of the proxy, and what health-check node ports answer.
//!
//! Load balancers hear only of what is in force: a Service counts once a sync has brought it into
//! the kernel, in each family for itself.

use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::health::Health;
use crate::health::service::{ListenAddresses, ServiceHealth};
use crate::model::{Families, Family, ObjectName, PerFamily};
use crate::program::{NodeAddressing, NodePortMatch};
use crate::sync::{InForce, Subscriber, Turn};

/// What the health-check node ports are to serve.
pub type HealthChecks = (BTreeMap<ObjectName, ServiceHealth>, ListenAddresses);

/// Before the first sync nothing listens.
pub fn no_health_checks() -> HealthChecks {
    (BTreeMap::new(), ListenAddresses::Only(Vec::new()))
}

/// Keeps health.
pub struct Healthy {
    health: Health,
    checks: watch::Sender<HealthChecks>,
    listen: ListenAddresses,
    services: BTreeMap<ObjectName, ServiceHealth>,
    /// What was announced is not what is in force.
    changed: bool,
    /// A family was synced: before that nothing is announced.
    synced: bool,
}

impl Healthy {
    /// Nothing is in force yet; `addressing` are those of the start.
    pub fn new(
        health: Health,
        checks: watch::Sender<HealthChecks>,
        addressing: &NodeAddressing,
    ) -> Self {
        let (services, listen) = (BTreeMap::new(), listen_addresses(addressing));
        Healthy { health, checks, listen, services, changed: true, synced: false }
    }

    fn put_in_force(&mut self, family: Family, service: &InForce) {
        let before = self.services.get(&service.name).copied();
        let object = service.service.as_ref().filter(|s| s.cluster_ip(family).is_some());
        let port = object.and_then(|object| object.health_check_node_port);
        let after = match port {
            Some(port) => Some(with(before, family, port, service.local_ready)),
            None => before.and_then(|before| without(before, family)),
        };
        if before == after {
            return;
        }
        self.changed = true;
        match after {
            Some(after) => self.services.insert(service.name.clone(), after),
            None => self.services.remove(&service.name),
        };
    }

    fn announce(&mut self) {
        if !self.synced || !std::mem::take(&mut self.changed) {
            return;
        }
        self.checks.send_replace((self.services.clone(), self.listen.clone()));
    }
}

/// Where NodePorts are served, health-check node ports listen.
fn listen_addresses(addressing: &NodeAddressing) -> ListenAddresses {
    let mut chosen = Vec::new();
    let mut any = false;
    for family in Family::BOTH {
        match &addressing.options.node_ports[family] {
            NodePortMatch::AnyLocal => any = true,
            NodePortMatch::Addresses(addresses) => chosen.extend(addresses.iter().copied()),
        }
    }
    if any { ListenAddresses::Any } else { ListenAddresses::Only(chosen) }
}

fn with(before: Option<ServiceHealth>, family: Family, port: u16, ready: usize) -> ServiceHealth {
    let nothing = ServiceHealth {
        port,
        families: Families::default(),
        local_endpoints: PerFamily::default(),
    };
    let mut health = ServiceHealth { port, ..before.unwrap_or(nothing) };
    health.families = health.families.with(family);
    health.local_endpoints[family] = ready;
    health
}

fn without(mut health: ServiceHealth, family: Family) -> Option<ServiceHealth> {
    health.families = health.families.without(family);
    health.local_endpoints[family] = 0;
    (health.families != Families::default()).then_some(health)
}

impl Subscriber for Healthy {
    fn turn(&mut self, turn: &Turn) {
        if let Some(node) = &turn.node {
            self.health.observe_node(node);
        }
        if let Some(addressing) = &turn.addressing {
            let listen = listen_addresses(addressing);
            self.changed |= self.listen != listen;
            self.listen = listen;
        }
        for family in turn.waiting.iter() {
            self.health.queued(family);
        }
        for sync in &turn.syncs {
            let family = sync.report.family;
            for service in &sync.in_force {
                self.put_in_force(family, service);
            }
            if sync.report.result.is_ok() {
                self.synced = true;
                self.health.updated(family);
            }
        }
        self.announce();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::agent::subscribers::tests::{addressing, in_force, synced};
    use crate::engine::Effect;
    use crate::health::ProxyHealth;
    use crate::kernel::{CommitError, Rejection};
    use crate::model::{Kind, Protocol};
    use crate::sync::Arrival;
    use crate::testing::objects::{name, port, service, slice};

    fn web(endpoints: &[&str]) -> InForce {
        let mut object = service("web", &["10.96.0.1"]);
        object.ports.push(port("http", Protocol::Tcp, 80, Some(30080)));
        object.health_check_node_port = Some(32000);
        in_force(object, slice("web-x", "web", ("http", Protocol::Tcp, 8080), endpoints))
    }

    fn refused() -> crate::sync::SyncError {
        let (object, errno) = ("table".to_owned(), libc::EPERM);
        CommitError::Rejected(Rejection { op: None, element: None, object, errno }).into()
    }

    fn local(checks: &watch::Receiver<HealthChecks>) -> Option<usize> {
        checks.borrow().0.get(&name("web")).map(|health| health.local_endpoints.v4)
    }

    // B6: a load balancer hears of what the kernel has, not of what is wanted.
    #[test]
    fn health_checks_announce_only_what_is_in_force() {
        let (sender, checks) = watch::channel(no_health_checks());
        let health = Health::new(ProxyHealth::new(Duration::from_secs(30)));
        let mut healthy = Healthy::new(health, sender, &addressing());
        let effect = Effect { services: [name("web")].into_iter().collect(), ..Effect::default() };
        let arrival = Arrival { kind: Kind::Service, objects: 1, list: false, effect };
        healthy.turn(&Turn {
            arrivals: vec![arrival],
            syncs: vec![synced(Vec::new(), Err(refused()))],
            ..Turn::default()
        });
        assert_eq!(local(&checks), None, "the kernel refused it");
        let turn =
            |services, result| Turn { syncs: vec![synced(services, result)], ..Turn::default() };
        healthy.turn(&turn(vec![web(&["10.244.0.1@a"])], Ok(())));
        assert_eq!(local(&checks), Some(1));
        healthy.turn(&turn(Vec::new(), Err(refused())));
        assert_eq!(local(&checks), Some(1), "what was in force still is");
        let mut gone = web(&[]);
        gone.service = None;
        healthy.turn(&turn(vec![gone], Ok(())));
        assert_eq!(local(&checks), None);
    }

    // B12: work that waits for too long is unhealthy, whatever it is.
    #[test]
    fn healthz_fails_when_repairs_fail_for_long() {
        let (sender, _checks) = watch::channel(no_health_checks());
        let health = Health::new(ProxyHealth::new(Duration::ZERO));
        health.loop_started(Family::V4);
        let mut healthy = Healthy::new(health.clone(), sender, &addressing());
        assert!(health.status().healthy);
        let waiting = Families { v4: true, v6: false };
        let syncs = vec![synced(Vec::new(), Err(refused()))];
        healthy.turn(&Turn { waiting, syncs, ..Turn::default() });
        assert!(!health.status().healthy);
        let syncs = vec![synced(Vec::new(), Ok(()))];
        healthy.turn(&Turn { waiting, syncs, ..Turn::default() });
        assert!(health.status().healthy);
    }
}
