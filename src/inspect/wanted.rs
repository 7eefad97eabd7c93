//! What a node should have, built without a kernel.
//!
//! Place in the flow: `kubeweir render` prints it, `kubeweir diff` compares the kernel with it. The
//! same engine as the agent's plans the same transactions; they are applied to an empty table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::engine::{Engine, Selection};
use crate::kernel::Rejection;
use crate::model::{Change, Families, Family, Kind, Object, ObjectName, PerFamily};
use crate::program::{RuleOptions, elements, service_objects};
use crate::ruleset::{Key, Name, Ruleset, apply};
use crate::topology::NodeTopology;

/// What of a node shapes its tables.
#[derive(Debug, Clone)]
pub struct NodeSetup {
    pub options: RuleOptions,
    /// The node as endpoint selection sees it.
    pub node_topology: NodeTopology,
    pub families: Families,
    pub owned: bool,
    /// Addresses that accept NodePorts, or all of the node's; see [`Engine::set_local_addresses`].
    pub local_addresses: PerFamily<Vec<IpAddr>>,
}

/// Why there is no such table.
#[derive(Debug, thiserror::Error)]
#[error("the kernel would refuse the {family} table at {}: {}", rejection.object,
    std::io::Error::from_raw_os_error(rejection.errno))]
pub struct Refused {
    pub family: Family,
    pub rejection: Rejection,
}

/// What a node should have.
#[derive(Debug)]
pub struct Wanted {
    /// The tables; without one in a family that is not programmed.
    pub rulesets: PerFamily<Ruleset>,
    /// The engine that made them, with everything applied.
    pub engine: Engine,
}

/// Builds the tables for these objects, which are all there are.
///
/// Errors: the first operation that the kernel would refuse.
pub fn wanted(objects: &[Object], setup: NodeSetup) -> Result<Wanted, Refused> {
    let NodeSetup { options, node_topology, families, owned, local_addresses } = setup;
    let mut engine = Engine::new(options, node_topology, families, owned);
    engine.set_local_addresses(&local_addresses);
    for kind in Kind::ALL {
        let of_kind = objects.iter().filter(|object| object.kind() == kind).cloned().collect();
        engine.apply(Change::Replace(kind, of_kind));
    }
    let mut rulesets = PerFamily::from_fn(Ruleset::empty);
    for family in families.iter() {
        while engine.is_pending(family) {
            let plan = engine.plan(family, Selection::Elements(usize::MAX), &BTreeMap::new());
            if !plan.oversized.is_empty() {
                // The agent sets them aside, too.
                for (service, _) in plan.oversized {
                    engine.set_aside(family, service);
                }
                continue;
            }
            apply(&mut rulesets[family], &plan.transaction)
                .map_err(|rejection| Refused { family, rejection })?;
            engine.applied(family, plan);
        }
    }
    Ok(Wanted { rulesets, engine })
}

/// The table with nothing in it but the service's elements, sets and chains; no table at all if the
/// service has nothing in the family.
pub fn narrowed(wanted: &Wanted, family: Family, service: &ObjectName) -> Ruleset {
    let options = wanted.engine.options();
    let mut owned: BTreeSet<(Name, Key)> = BTreeSet::new();
    let mut objects: BTreeSet<Name> = BTreeSet::new();
    for placement in wanted.engine.applied_placements(family, service) {
        let of_port = elements(placement, family, options);
        owned.extend(of_port.into_iter().map(|(set, element)| (set.name(), element.key)));
        let own = service_objects(placement, family, options);
        objects.extend(own.sets.into_iter().map(|(set, _)| set.name));
        objects.extend(own.chains.into_iter().map(|(chain, _)| chain));
    }
    let mut ruleset = wanted.rulesets[family].clone();
    ruleset.chains.retain(|name, _| objects.contains(name));
    ruleset.sets.retain(|name, (_, elements)| {
        if objects.contains(name) {
            return true;
        }
        elements.retain(|key, _| owned.contains(&(name.clone(), *key)));
        !elements.is_empty()
    });
    if owned.is_empty() { Ruleset::empty(family) } else { ruleset }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::MOST_ENTRIES;
    use crate::model::{Protocol, SlicePort};
    use crate::testing::objects::{port, service, slice};

    // It was planned again and again.
    #[test]
    fn a_service_that_is_too_large_is_left_out() {
        let mut large = service("large", &["10.96.0.1"]);
        let ports = 500;
        for n in 0..ports {
            large.ports.push(port(&format!("p{n}"), Protocol::Tcp, n + 1, None));
        }
        let endpoints: Vec<String> = (0..MOST_ENTRIES / usize::from(ports) + 1)
            .map(|n| std::net::Ipv4Addr::from(0x0af4_0000 + n as u32).to_string())
            .collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let mut many = slice("large-x", "large", ("p0", Protocol::Tcp, 8080), &endpoints);
        let named = |port: &crate::model::ServicePort| SlicePort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: 8080,
        };
        many.ports = large.ports.iter().map(named).collect();
        let mut small = service("small", &["10.96.0.2"]);
        small.ports.push(port("http", Protocol::Tcp, 80, None));
        let one = slice("small-x", "small", ("http", Protocol::Tcp, 8080), &["10.244.0.1"]);
        let setup = NodeSetup {
            options: RuleOptions::nftables(),
            node_topology: NodeTopology { node: "a".into(), zone: None },
            families: Families { v4: true, v6: false },
            owned: true,
            local_addresses: PerFamily::default(),
        };
        let objects = [large.into(), many.into(), small.into(), one.into()];
        let wanted = wanted(&objects, setup).unwrap();
        assert_eq!(wanted.engine.summary(Family::V4).totals.services, 1);
        assert_eq!(wanted.engine.aside(Family::V4).len(), 1);
    }
}
