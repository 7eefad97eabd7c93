//! Services the kernel refused: when to try them again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::backoff::Backoff;
use crate::kernel::Rejection;
use crate::model::ObjectName;

/// Pauses before a refused service is tried again.
const RETRIES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));

/// A service that is set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// What the kernel refused last.
    pub rejection: Rejection,
    /// How often it refused.
    pub refusals: u32,
    /// When it refused first, as the age of the process.
    pub since: Duration,
    /// When it is tried again.
    pub retry_at: Duration,
}

/// The services of one family that are set aside.
#[derive(Debug, Default)]
pub struct Quarantine {
    services: BTreeMap<ObjectName, Quarantined>,
}

impl Quarantine {
    pub fn services(&self) -> &BTreeMap<ObjectName, Quarantined> {
        &self.services
    }

    /// What of a service was refused last.
    pub fn rejection(&self, service: &ObjectName) -> Option<Rejection> {
        self.services.get(service).map(|quarantined| quarantined.rejection.clone())
    }

    /// A service was refused, for the first time or again.
    pub fn add(&mut self, service: ObjectName, rejection: Rejection, now: Duration) {
        let before = self.services.get(&service);
        let refusals = before.map_or(0, |q| q.refusals) + 1;
        let since = before.map_or(now, |q| q.since);
        let retry_at = now + RETRIES.pause(refusals);
        self.services.insert(service, Quarantined { rejection, refusals, since, retry_at });
    }

    /// A service got through.
    pub fn release(&mut self, service: &ObjectName) {
        self.services.remove(service);
    }

    /// The services that are to be tried again.
    pub fn due(&self, now: Duration) -> Vec<ObjectName> {
        let due = self.services.iter().filter(|(_, q)| q.retry_at <= now);
        due.map(|(service, _)| service.clone()).collect()
    }

    /// When the next one is due.
    pub fn next_retry(&self) -> Option<Duration> {
        self.services.values().map(|q| q.retry_at).min()
    }
}
