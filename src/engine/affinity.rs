//! Which clients a table remembers that is to be replaced: one of ours, or an upstream kube-proxy's.
//!
//! Upstream has a set of clients for each endpoint, whose name tells port and endpoint (section 6.4
//! of the behaviour reference); we have a map from clients to endpoints for each port.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use crate::engine::FamilyState;
use crate::engine::applied::{Applied, surviving_clients};
use crate::kernel::Op;
use crate::model::{Family, ObjectName, Protocol, ServicePortName};
use crate::program::objects::{MAX_CLIENTS, is_as_declared, is_clients_map};
use crate::program::{Placement, Role, clients_map};
use crate::ruleset::{Element, Key, Name, Ruleset, Value};
use crate::topology::Backend;

/// How the names of upstream's sets begin.
const UPSTREAM: &str = "affinity-";
/// Longer names are cut by upstream, and end in dots.
const CUT: &str = "...";

/// The clients by the name of our map, each at the endpoint that it used last. A map whose
/// declaration is not ours says nothing.
pub(super) fn remembered(observed: &Ruleset) -> BTreeMap<Name, Vec<Element>> {
    let family = observed.family;
    let mut maps: BTreeMap<Name, BTreeMap<Key, Element>> = BTreeMap::new();
    for (set, elements) in observed.sets.values() {
        if is_clients_map(&set.name) && is_as_declared(set, family) {
            let map = maps.entry(set.name.clone()).or_default();
            elements.values().for_each(|element| keep_latest(map, element.clone()));
        }
        let Some((port, backend)) = upstream(set.name.as_str(), family) else { continue };
        let data = Value::Data(Key::new().address(backend.address).port(backend.port));
        // Upstream knows no difference between the policies; a map takes its own endpoints only.
        for local in [false, true] {
            let map = maps.entry(clients_map(&port, local)).or_default();
            for client in elements.values().filter(|client| client.lifetime.is_some()) {
                keep_latest(map, Element { value: data.clone(), ..client.clone() });
            }
        }
    }
    maps.into_iter().map(|(name, clients)| (name, as_many_as_fit(clients))).collect()
}

/// Every use of an endpoint starts its time anew, so the longest time left is the latest use.
fn keep_latest(map: &mut BTreeMap<Key, Element>, client: Element) {
    let left = |client: &Element| client.lifetime.map(|lifetime| lifetime.expires);
    if map.get(&client.key).is_none_or(|known| left(known) < left(&client)) {
        map.insert(client.key, client);
    }
}

/// Each of upstream's sets may hold as many as one of our maps.
fn as_many_as_fit(clients: BTreeMap<Key, Element>) -> Vec<Element> {
    let mut clients: Vec<Element> = clients.into_values().collect();
    if clients.len() > MAX_CLIENTS as usize {
        clients.sort_by_key(|client| client.lifetime.map(|lifetime| lifetime.expires));
        clients.drain(..clients.len() - MAX_CLIENTS as usize);
    }
    clients
}

/// Port and endpoint of `affinity-HASH-NAMESPACE/SERVICE/PROTOCOL/PORT__ADDRESS/PORT`.
fn upstream(set: &str, family: Family) -> Option<(ServicePortName, Backend)> {
    let (_hash, base) = set.strip_prefix(UPSTREAM)?.split_once('-')?;
    let parts: Vec<&str> = base.split('/').collect();
    let [namespace, service, protocol, middle, number] = parts[..] else { return None };
    if number.ends_with(CUT) || namespace.is_empty() || service.is_empty() {
        return None;
    }
    let (port, address) = middle.split_once("__")?;
    let address: IpAddr = match family {
        Family::V4 => address.parse().ok().filter(IpAddr::is_ipv4)?,
        Family::V6 => address.replace('.', ":").parse::<Ipv6Addr>().ok()?.into(),
    };
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    let service = ObjectName::new(namespace, service);
    let port = ServicePortName { service, port: port.into(), protocol };
    Some((port, Backend { address, port: number.parse().ok()? }))
}

// Affinity maps whose members change.

/// Affinity maps of which a member left, with the members that remain.
pub(super) fn shrunken_maps(
    before: &[Placement],
    after: &[Placement],
) -> Vec<(Name, Vec<Backend>)> {
    let mut maps = Vec::new();
    for old in before.iter().filter(|old| old.affinity.is_some()) {
        let Some(new) = after.iter().find(|new| new.name == old.name && new.affinity.is_some())
        else {
            continue;
        };
        for local in [false, true] {
            let members = |p: &Placement| if local { p.local.clone() } else { p.cluster.clone() };
            let uses = |p: &Placement| {
                p.frontends.iter().any(|f| match p.role(f) {
                    Role::Cluster => !local,
                    Role::Local => local,
                    Role::LocalPolicy => true,
                })
            };
            let remaining = members(new).members().to_vec();
            let lost = members(old).members().iter().any(|member| !remaining.contains(member));
            if lost && uses(old) && uses(new) {
                maps.push((clients_map(&old.name, local), remaining));
            }
        }
    }
    maps
}

/// The affinity maps of some placements, with the members they may refer to.
pub(super) fn all_maps(placements: &[Placement]) -> Vec<(Name, Vec<Backend>)> {
    let sticky = placements.iter().filter(|placement| placement.affinity.is_some());
    sticky
        .flat_map(|placement| {
            [(false, &placement.cluster), (true, &placement.local)].map(|(local, slots)| {
                (clients_map(&placement.name, local), slots.members().to_vec())
            })
        })
        .collect()
}

/// Operations that leave only the given clients in an affinity map.
pub fn replace_clients(map: &Name, survivors: Vec<Element>) -> Vec<Op> {
    let mut ops = vec![Op::FlushSet(map.clone())];
    if !survivors.is_empty() {
        ops.push(Op::AddElements(map.clone(), survivors));
    }
    ops
}

/// Leaves in an affinity map the clients of endpoints that are members still. Also returns how many
/// elements that touches.
pub(super) fn remembered_clients(
    map: &Name,
    members: &[Backend],
    family: Family,
    state: &FamilyState,
    clients: &BTreeMap<Name, Vec<Element>>,
) -> (Vec<Op>, usize) {
    if let Some(carried) = state.applied.carried.get(map) {
        let left = surviving_clients(carried, members, family).unwrap_or_else(|| carried.clone());
        let fill = (!left.is_empty()).then(|| Op::AddElements(map.clone(), left));
        return (fill.into_iter().collect(), carried.len());
    }
    let known = clients.get(map).cloned().or_else(|| state.applied.clients(map));
    let known = known.unwrap_or_default();
    let survivors = surviving_clients(&known, members, family);
    let touched = survivors.as_ref().map_or(0, |left| known.len() + left.len());
    (survivors.map(|left| replace_clients(map, left)).unwrap_or_default(), touched)
}

impl Applied {
    /// Whether the content of an affinity map is known from a dump.
    pub(super) fn remembers(&self, map: &Name) -> bool {
        self.carried.contains_key(map) || self.found_sets.contains_key(map)
    }

    /// The content of an affinity map of a table that was adopted.
    pub(super) fn clients(&self, map: &Name) -> Option<Vec<Element>> {
        let (_, clients) = self.found_sets.get(map)?;
        Some(clients.values().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::{Field, Lifetime, Set};

    fn described(set: &str, family: Family) -> Option<String> {
        let (port, backend) = upstream(set, family)?;
        Some(format!("{port}/{} {} {}", port.protocol, backend.address, backend.port))
    }

    // Section 14's names of endpoints.
    #[test]
    fn names_of_upstreams_sets_tell_port_and_endpoint() {
        let v4 = |set| described(set, Family::V4);
        let v6 = |set| described(set, Family::V6);
        assert_eq!(
            v4("affinity-JO2XBXZR-testing/service/tcp/http__10.180.0.1/80").as_deref(),
            Some("testing/service:http/tcp 10.180.0.1 80")
        );
        assert_eq!(
            v4("affinity-ABCDEFGH-a-b/c-d/udp/__10.180.0.1/65535").as_deref(),
            Some("a-b/c-d/udp 10.180.0.1 65535")
        );
        let long =
            "affinity-U7E2ET36-testing/service/tcp/http__fd80.abcd.12..a1b2.c3d4.e5f6.9999/80";
        assert_eq!(
            v6(long).as_deref(),
            Some("testing/service:http/tcp fd80:abcd:12:0:a1b2:c3d4:e5f6:9999 80")
        );
        for other in [
            "cluster-ips",
            "affinity-",
            "affinity-JO2XBXZR-testing/service/tcp/http__10.180.0.1/x",
            "affinity-JO2XBXZR-testing/service/tcp/http__10.180.0.1/8...",
            "affinity-JO2XBXZR-testing/service/tcp/http__fd80..1/80",
            "affinity-JO2XBXZR-testing/service/quic/http__10.180.0.1/80",
            "affinity-JO2XBXZR-/service/tcp/http__10.180.0.1/80",
            "affinity-JO2XBXZR-testing/service/tcp/http-10.180.0.1/80",
            "clients-testing.service.tcp.http",
        ] {
            assert_eq!(v4(other), None, "{other}");
        }
    }

    fn client(last: u8, expires: u64) -> (Key, Element) {
        let key = Key::new().address([172, 16, 0, last].into());
        let lifetime = Some(Lifetime { timeout: 10_000, expires });
        (key, Element { lifetime, ..Element::member(key) })
    }

    fn table(sets: &[(&str, &[(u8, u64)])]) -> Ruleset {
        let mut ruleset = Ruleset::empty(Family::V4);
        for (name, clients) in sets {
            let set = Set {
                dynamic: true,
                timeout: Some(10_000),
                ..Set::plain(Name::from(*name), vec![Field::Ipv4Addr])
            };
            let clients = clients.iter().map(|(last, expires)| client(*last, *expires));
            ruleset.sets.insert(Name::from(*name), (set, clients.collect()));
        }
        ruleset
    }

    #[test]
    fn a_client_stays_where_it_was_last() {
        let one = "affinity-JO2XBXZR-testing/service/tcp/http__10.180.0.1/80";
        let two = "affinity-5S6H3H22-testing/service/tcp/http__10.180.0.2/80";
        let observed = table(&[
            (one, &[(1, 9000), (2, 100), (3, 7)]),
            (two, &[(2, 8000), (3, 6)]),
            ("other", &[(4, 1)]),
        ]);
        let maps = remembered(&observed);
        let names: Vec<&str> = maps.keys().map(Name::as_str).collect();
        assert_eq!(
            names,
            ["clients-testing.service.tcp.http", "clients.local-testing.service.tcp.http"]
        );
        let at = |last: u8, endpoint: u8, expires| {
            let (key, element) = client(last, expires);
            let data = Key::new().address([10, 180, 0, endpoint].into()).port(80);
            Element { value: Value::Data(data), ..Element { key, ..element } }
        };
        for clients in maps.values() {
            assert_eq!(*clients, [at(1, 1, 9000), at(2, 2, 8000), at(3, 1, 7)]);
        }
    }

    // A map of ours with other contents, from some other version, must not spoil the replacement.
    #[test]
    fn a_map_of_another_declaration_says_nothing() {
        let observed = table(&[("clients-testing.service.tcp.http", &[(1, 9000)])]);
        assert!(remembered(&observed).is_empty());
    }

    #[test]
    fn who_does_not_fit_and_was_there_longest_ago_is_forgotten() {
        let clients = (0..MAX_CLIENTS + 10).map(|n| {
            let key = Key::new().address(std::net::Ipv4Addr::from(n).into());
            let lifetime = Some(Lifetime { timeout: 1_000_000, expires: u64::from(n) });
            (key, Element { lifetime, ..Element::member(key) })
        });
        let left = as_many_as_fit(clients.collect());
        assert_eq!(left.len(), MAX_CLIENTS as usize);
        assert_eq!(left[0].lifetime.map(|lifetime| lifetime.expires), Some(10));
    }
}
