//! Chains and sets that belong to a single service port: session affinity and source ranges.
//!
//! Affinity in three steps. The `sticky-…` chain looks the client up in the `clients-…` map and sends
//! it where it went before. If it is unknown, the flow goes on as without affinity. After DNAT the
//! `remember-…` chain writes down, or refreshes, where the client went. Policy Local has a map of its
//! own, so that a client is never sent to a remote endpoint that way.

use std::fmt::Write;

use super::rule::{Part, rule};
use super::{CounterId, LocalPods, Placement, RuleOptions};
use crate::model::{Family, ServicePortName};
use crate::ruleset::{CmpOp, Element, Field, Key, Name, Rule, Set, SetKind};

/// Most clients one map remembers: the kernel's own default for dynamic sets, which upstream's sets
/// have (section 4.9).
pub const MAX_CLIENTS: u32 = 65535;

/// Where clients outside of the source ranges end, where service ports are counted.
pub(super) const OUTSIDE_RANGES: &str = "outside-ranges";

/// Which list a frontend's flows use, as far as affinity is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The list for policy Cluster.
    Cluster,
    /// The list for policy Local, for everyone: `internalTrafficPolicy: Local`.
    Local,
    /// Policy Local with the short-circuits for pods and the host: `externalTrafficPolicy: Local`.
    LocalPolicy,
}

impl Role {
    /// Start of the chain's name: `sticky`, `sticky.local`, `sticky.policy`.
    pub(super) fn chain_prefix(self, verb: &str) -> &'static str {
        match (verb, self) {
            ("sticky", Role::Cluster) => "sticky",
            ("sticky", Role::Local) => "sticky.local",
            ("sticky", Role::LocalPolicy) => "sticky.policy",
            (_, Role::Cluster) => "remember",
            (_, Role::Local) => "remember.local",
            (_, Role::LocalPolicy) => "remember.policy",
        }
    }
}

/// Objects of one service port in one family.
///
/// Shape: sets with their elements (none for the maps that packets fill), then chains; both in an
/// order in which later ones refer to earlier ones only.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ServiceObjects {
    pub sets: Vec<(Set, Vec<Element>)>,
    pub chains: Vec<(Name, Vec<Rule>)>,
}

impl ServiceObjects {
    /// Adds another port's objects.
    pub fn extend(&mut self, other: ServiceObjects) {
        self.sets.extend(other.sets);
        self.chains.extend(other.chains);
    }
}

/// `PREFIX-NAMESPACE.SERVICE.PROTOCOL.PORT`.
///
/// Neither namespaces nor services nor ports contain a dot, and no prefix is another one's
/// start followed by a dash, so names are unique. They contain no `/` and do not start with `affinity-`, by which
/// upstream recognises its own leftovers.
pub fn chain_name(prefix: &str, port: &ServicePortName) -> Name {
    let ServicePortName { service, port: name, protocol } = port;
    let mut text = format!("{prefix}-{}.{}.{protocol}", service.namespace, service.name);
    if !name.is_empty() {
        write!(text, ".{name}").expect("writing to a String cannot fail");
    }
    Name::new(text)
}

/// The map that remembers clients under a policy.
pub fn clients_map(port: &ServicePortName, local: bool) -> Name {
    chain_name(if local { "clients.local" } else { "clients" }, port)
}

/// Whether a set is a map that remembers clients.
pub fn is_clients_map(name: &Name) -> bool {
    ["clients-", "clients.local-"].iter().any(|prefix| name.as_str().starts_with(prefix))
}

/// The objects a service port needs besides its elements in the shared sets.
pub fn service_objects(
    placement: &Placement,
    family: Family,
    options: &RuleOptions,
) -> ServiceObjects {
    let mut objects = ServiceObjects::default();
    if let Some(seconds) = placement.affinity {
        affinity(placement, family, u64::from(seconds) * 1000, options, &mut objects);
    }
    if let Some(ranges) = &placement.ranges {
        let name = chain_name("ranges", &placement.name);
        let set = networks(family, name.clone());
        let elements = ranges.iter().map(|net| Element {
            last: Some(Key::new().address(net.broadcast())),
            ..Element::member(Key::new().address(net.network()))
        });
        objects.sets.push((set, elements.collect()));
        let others = rule(family).is_not_in(&[Part::Saddr], name.clone());
        let drop = match options.service_counters {
            true => others.goto(OUTSIDE_RANGES),
            false => others.counts(CounterId::SourceRanges).drops(),
        };
        objects.chains.push((name, vec![drop]));
    }
    objects
}

fn affinity(
    placement: &Placement,
    family: Family,
    millis: u64,
    options: &RuleOptions,
    objects: &mut ServiceObjects,
) {
    let mut roles: Vec<Role> = placement.frontends.iter().map(|f| placement.role(f)).collect();
    // The short-circuits of LocalPolicy use the other two roles' chains.
    if roles.contains(&Role::LocalPolicy) {
        roles.extend([Role::Cluster, Role::Local]);
    }
    roles.sort_unstable();
    roles.dedup();

    let name = &placement.name;
    let chain = |verb: &str, role: Role| chain_name(role.chain_prefix(verb), name);
    for role in roles {
        let (sticky, remember) = match role {
            Role::LocalPolicy => {
                let route = |verb| {
                    local_policy(
                        family,
                        &options.local_pods[family],
                        chain(verb, Role::Cluster),
                        chain(verb, Role::Local),
                    )
                };
                (route("sticky"), route("remember"))
            }
            Role::Cluster | Role::Local => {
                let map = clients_map(name, role == Role::Local);
                objects.sets.push((clients(family, map.clone()), Vec::new()));
                let client = [Part::OriginalSaddr];
                let endpoint = [Part::Daddr, Part::Dport];
                (
                    vec![rule(family).dnat(&[Part::Saddr], map.clone())],
                    vec![rule(family).update(map, &client, &endpoint, millis)],
                )
            }
        };
        objects.chains.push((chain("sticky", role), sticky));
        objects.chains.push((chain("remember", role), remember));
    }
}

fn local_policy(family: Family, pods: &LocalPods, everywhere: Name, here: Name) -> Vec<Rule> {
    let from_pod = rule(family).pod(CmpOp::Eq, pods);
    let mut rules: Vec<Rule> =
        from_pod.map(|from_pod| from_pod.goto(everywhere.clone())).into_iter().collect();
    rules.push(rule(family).from_host().goto(everywhere));
    rules.push(rule(family).goto(here));
    rules
}

/// Whether a set is declared as sets of that name are here; any set under another name is.
pub fn is_as_declared(set: &Set, family: Family) -> bool {
    if is_clients_map(&set.name) {
        return *set == clients(family, set.name.clone());
    }
    !set.name.as_str().starts_with("ranges-") || *set == networks(family, set.name.clone())
}

fn networks(family: Family, name: Name) -> Set {
    Set { interval: true, ..Set::plain(name, vec![Field::address(family)]) }
}

fn clients(family: Family, name: Name) -> Set {
    let address = Field::address(family);
    Set {
        kind: SetKind::Map(vec![address, Field::InetService]),
        dynamic: true,
        timeout: Some(0),
        size: Some(MAX_CLIENTS),
        ..Set::plain(name, vec![address])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::{ObjectName, Protocol};

    #[test]
    fn names_are_unique_whatever_namespaces_are_called() {
        let namespaces = ["web", "local-web", "policy-web", "sticky-web", "local"];
        let mut names = BTreeSet::new();
        let mut count = 0;
        for namespace in namespaces {
            let service = ObjectName::new(namespace, "a");
            let port = ServicePortName { service, port: "".into(), protocol: Protocol::Tcp };
            for role in [Role::Cluster, Role::Local, Role::LocalPolicy] {
                for verb in ["sticky", "remember"] {
                    names.insert(chain_name(role.chain_prefix(verb), &port));
                    count += 1;
                }
            }
            for local in [false, true] {
                let map = clients_map(&port, local);
                assert!(is_clients_map(&map), "{map}");
                names.insert(map);
                count += 1;
            }
        }
        assert_eq!(names.len(), count, "{names:?}");
    }
}
