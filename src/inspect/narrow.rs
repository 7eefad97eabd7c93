//! The part of a table that belongs to one service.

use std::collections::BTreeSet;

use super::wanted::Wanted;
use crate::model::{Family, ObjectName};
use crate::program::{elements, service_objects};
use crate::ruleset::{Key, Name, Ruleset};

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
