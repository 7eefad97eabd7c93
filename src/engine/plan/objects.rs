//! Chains and sets of single services: what comes, what goes, what is found.

use std::collections::BTreeSet;

use crate::engine::applied::Applied;
use crate::kernel::Op;
use crate::program::ServiceObjects;
use crate::ruleset::{Chain, Element, Name};

/// Chains and sets of single services that come and go.
#[derive(Debug, Default)]
pub(super) struct ObjectChanges {
    pub(super) ops: Vec<Op>,
    pub(super) used_chains: BTreeSet<Name>,
    pub(super) used_sets: BTreeSet<Name>,
    pub(super) stale_chains: BTreeSet<Name>,
    pub(super) stale_sets: BTreeSet<Name>,
    /// Elements that are added and deleted.
    pub(super) len: usize,
}

impl ObjectChanges {
    pub(super) fn compare(&mut self, old: ServiceObjects, new: ServiceObjects, applied: &Applied) {
        for (set, elements) in &new.sets {
            self.used_sets.insert(set.name.clone());
            match old.sets.iter().find(|(known, _)| known.name == set.name) {
                None => {
                    self.ops.push(Op::AddSet(set.clone()));
                    if applied.garbage_sets.contains(&set.name) {
                        self.ops.push(Op::FlushSet(set.name.clone()));
                    }
                    self.add(&set.name, elements.clone());
                }
                Some((_, had)) => {
                    let gone = had.iter().filter(|e| !elements.contains(e)).cloned().collect();
                    let come = elements.iter().filter(|e| !had.contains(e)).cloned().collect();
                    self.delete(&set.name, gone);
                    self.add(&set.name, come);
                }
            }
        }
        // All chains before any rule: some refer to each other.
        for (name, _) in &new.chains {
            self.used_chains.insert(name.clone());
            if !old.chains.iter().any(|(known, _)| known == name) {
                let chain = Chain { name: name.clone(), hooked: None, comment: None };
                self.ops.push(Op::AddChain(chain));
            }
        }
        for (name, rules) in &new.chains {
            let had = old.chains.iter().find(|(known, _)| known == name).map(|(_, rules)| rules);
            if had == Some(rules) {
                continue;
            }
            // Also when it is new: it may be garbage that was not collected yet.
            self.ops.push(Op::FlushChain(name.clone()));
            self.ops.extend(rules.iter().map(|rule| Op::AddRule(name.clone(), rule.clone())));
        }
        let stale = |names: &BTreeSet<Name>, name: &Name| !names.contains(name);
        self.stale_chains
            .extend(old.chains.into_iter().map(|(n, _)| n).filter(|n| stale(&self.used_chains, n)));
        self.stale_sets.extend(
            old.sets.into_iter().map(|(set, _)| set.name).filter(|n| stale(&self.used_sets, n)),
        );
    }

    fn add(&mut self, set: &Name, elements: Vec<Element>) {
        self.len += elements.len();
        if !elements.is_empty() {
            self.ops.push(Op::AddElements(set.clone(), elements));
        }
    }

    fn delete(&mut self, set: &Name, elements: Vec<Element>) {
        self.len += elements.len();
        if !elements.is_empty() {
            self.ops.push(Op::DeleteElements(set.clone(), elements));
        }
    }
}

impl Applied {
    /// Objects found in the kernel under the names of wanted ones.
    pub(super) fn found_objects(&self, wanted: &ServiceObjects) -> ServiceObjects {
        let mut objects = ServiceObjects::default();
        for (set, _) in &wanted.sets {
            if let Some((found, elements)) = self.found_sets.get(&set.name) {
                let elements =
                    if set.dynamic { Vec::new() } else { elements.values().cloned().collect() };
                objects.sets.push((found.clone(), elements));
            }
        }
        for (name, _) in &wanted.chains {
            if let Some(rules) = self.found_chains.get(name) {
                objects.chains.push((name.clone(), rules.clone()));
            }
        }
        objects
    }
}
