//! Which service port has a frontend that several claim.

use std::collections::BTreeSet;

use foldhash::HashMap;
use smallvec::SmallVec;

use crate::model::{ObjectName, ServicePortName};
use crate::program::FrontendKey;

/// A claim of a service port to a frontend. Ordered by who wins: the older service, then namespace
/// and name, then the port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// Creation of the service, seconds since 1970.
    pub created: i64,
    /// The claiming port.
    pub port: ServicePortName,
}

/// The claims of one family.
///
/// Shape: per frontend the claims in order, the first is the owner.
#[derive(Debug, Default)]
pub struct Claims {
    by_frontend: HashMap<FrontendKey, SmallVec<[Claim; 1]>>,
    by_service: HashMap<ObjectName, Vec<FrontendKey>>,
    contested: BTreeSet<FrontendKey>,
}

impl Claims {
    /// Replaces what a service claims. Returns the other services that gained or lost a frontend.
    pub fn set(
        &mut self,
        service: &ObjectName,
        claims: Vec<(FrontendKey, Claim)>,
    ) -> BTreeSet<ObjectName> {
        let mut touched: Vec<FrontendKey> = self.by_service.remove(service).unwrap_or_default();
        if touched.is_empty() && claims.is_empty() {
            return BTreeSet::new();
        }
        touched.extend(claims.iter().map(|(key, _)| *key));
        touched.sort_unstable();
        touched.dedup();
        let owners_before: Vec<Option<ServicePortName>> =
            touched.iter().map(|key| self.owner(key).cloned()).collect();

        for key in &touched {
            if let Some(list) = self.by_frontend.get_mut(key) {
                list.retain(|claim| claim.port.service != *service);
            }
        }
        let mut keys = Vec::with_capacity(claims.len());
        for (key, claim) in claims {
            let list = self.by_frontend.entry(key).or_default();
            if let Err(at) = list.binary_search(&claim) {
                list.insert(at, claim);
                keys.push(key);
            }
        }
        if !keys.is_empty() {
            self.by_service.insert(service.clone(), keys);
        }

        let mut affected = BTreeSet::new();
        for (key, before) in touched.iter().zip(owners_before) {
            let after = self.owner(key).cloned();
            if before != after {
                affected.extend([before, after].into_iter().flatten().map(|port| port.service));
            }
            self.settle(key);
        }
        affected.remove(service);
        affected
    }

    fn settle(&mut self, key: &FrontendKey) {
        match self.by_frontend.get(key).map_or(0, |list| list.len()) {
            0 => {
                self.by_frontend.remove(key);
                self.contested.remove(key);
            }
            1 => {
                self.contested.remove(key);
            }
            _ => {
                self.contested.insert(*key);
            }
        }
    }

    /// The claims to a frontend, in order.
    pub fn of(&self, key: &FrontendKey) -> &[Claim] {
        self.by_frontend.get(key).map_or(&[], |list| &list[..])
    }

    /// Who has a frontend.
    pub fn owner(&self, key: &FrontendKey) -> Option<&ServicePortName> {
        self.of(key).first().map(|claim| &claim.port)
    }

    /// Frontends that more than one service port claims, with the claims in order.
    pub fn conflicts(&self) -> impl Iterator<Item = (&FrontendKey, &[Claim])> {
        self.contested.iter().map(|key| (key, &self.by_frontend[key][..]))
    }

    /// How many frontends are contested.
    pub fn conflict_count(&self) -> usize {
        self.contested.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Protocol;
    use crate::program::FrontendAt;

    fn key(port: u16) -> FrontendKey {
        let at = FrontendAt::Address([192, 0, 2, 1].into());
        FrontendKey { at, protocol: Protocol::Tcp, port }
    }

    fn name(service: &str) -> ObjectName {
        ObjectName::new("ns", service)
    }

    fn claim(service: &str, created: i64) -> Claim {
        let port =
            ServicePortName { service: name(service), port: "p".into(), protocol: Protocol::Tcp };
        Claim { created, port }
    }

    #[test]
    fn the_older_service_has_it_and_the_next_takes_over() {
        let mut claims = Claims::default();
        let owner = |claims: &Claims| claims.owner(&key(80)).map(|p| p.service.name.to_string());
        assert!(claims.set(&name("young"), vec![(key(80), claim("young", 20))]).is_empty());
        let affected = claims.set(&name("old"), vec![(key(80), claim("old", 10))]);
        assert_eq!(affected, [name("young")].into());
        assert_eq!(owner(&claims).as_deref(), Some("old"));
        assert_eq!(claims.conflict_count(), 1);
        // Same age: by name; nobody else is affected by a new loser.
        assert!(claims.set(&name("a"), vec![(key(80), claim("a", 20))]).is_empty());
        let affected = claims.set(&name("old"), vec![]);
        assert_eq!(affected, [name("a")].into());
        assert_eq!(owner(&claims).as_deref(), Some("a"));
        claims.set(&name("a"), vec![]);
        claims.set(&name("young"), vec![]);
        assert_eq!((owner(&claims), claims.conflict_count()), (None, 0));
        assert!(claims.by_frontend.is_empty() && claims.by_service.is_empty());
    }
}
