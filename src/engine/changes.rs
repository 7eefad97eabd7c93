//! Differences of elements, collected over the services of one plan.

use std::collections::BTreeMap;
use std::collections::HashMap;

use super::applied::Applied;
use crate::program::SetId;
use crate::ruleset::{Element, Key};
use crate::transaction::Op;

/// What is to happen with elements, by set and key.
///
/// Elements of shared sets are counted; all others have one owner, but within a plan one service may
/// lose the key that another gains.
#[derive(Debug, Default)]
pub struct Changes {
    owned: BTreeMap<(SetId, Key), Change>,
    shared: BTreeMap<(SetId, Key), i64>,
}

#[derive(Debug, Default)]
struct Change {
    before: Option<Element>,
    after: Option<Element>,
}

/// The outcome: operations, and what they mean for the applied state.
#[derive(Debug, Default)]
pub struct Settled {
    /// Deletions, one operation a set.
    pub deletions: Vec<Op>,
    /// Additions, one operation a set.
    pub additions: Vec<Op>,
    /// Change of the counts of shared elements.
    pub shared: Vec<((SetId, Key), i64)>,
    /// Elements found in the kernel that now have an owner, or are gone.
    pub claimed: Vec<(SetId, Key)>,
}

impl Changes {
    /// A service had this element.
    pub fn had(&mut self, set: SetId, element: Element) {
        if set.is_shared() {
            *self.shared.entry((set, element.key)).or_default() -= 1;
        } else {
            let key = element.key;
            self.owned.entry((set, key)).or_default().before = Some(element);
        }
    }

    /// A service should have this element.
    pub fn wants(&mut self, set: SetId, element: Element) {
        if set.is_shared() {
            *self.shared.entry((set, element.key)).or_default() += 1;
        } else {
            let key = element.key;
            self.owned.entry((set, key)).or_default().after = Some(element);
        }
    }

    /// An element found in the kernel that no service has: it goes unless this plan wants it.
    pub fn orphaned(&mut self, set: SetId, element: &Element) {
        if set.is_shared() {
            self.shared.entry((set, element.key)).or_default();
        } else {
            self.owned.entry((set, element.key)).or_default();
        }
    }

    /// Number of elements touched so far.
    pub fn len(&self) -> usize {
        self.owned.len() + self.shared.len()
    }

    /// Turns differences into operations. What no service had may still be in the kernel, found
    /// there at start: then it is taken over, or replaced.
    pub fn settle(self, applied: &Applied) -> Settled {
        let mut settled = Settled::default();
        let mut deletions: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        let mut additions: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();

        for ((set, key), delta) in self.shared {
            let count = i64::from(applied.shared_count(set, &key));
            let found = applied.found(set, &key);
            match (count > 0 || found.is_some(), count + delta > 0) {
                (false, true) => additions.entry(set).or_default().push(Element::member(key)),
                (true, false) => deletions.entry(set).or_default().push(Element::member(key)),
                (true, true) | (false, false) => {}
            }
            if delta != 0 {
                settled.shared.push(((set, key), delta));
            }
            settled.claimed.extend(found.map(|_| (set, key)));
        }
        for ((set, key), change) in self.owned {
            let found = applied.found(set, &key);
            let before = change.before.as_ref().or(found);
            if before != change.after.as_ref() {
                if let Some(before) = before {
                    deletions.entry(set).or_default().push(before.clone());
                }
                if let Some(after) = &change.after {
                    additions.entry(set).or_default().push(after.clone());
                }
            }
            settled.claimed.extend(found.map(|_| (set, key)));
        }
        settled.deletions = deletions
            .into_iter()
            .map(|(set, elements)| Op::DeleteElements(set.name(), elements))
            .collect();
        settled.additions = additions
            .into_iter()
            .map(|(set, elements)| Op::AddElements(set.name(), elements))
            .collect();
        settled
    }
}

/// Elements by set and key, as found in the kernel.
pub type Found = HashMap<SetId, HashMap<Key, Element>>;
