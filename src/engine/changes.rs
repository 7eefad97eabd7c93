//! Differences of elements, collected over the services of one plan.

use std::collections::BTreeMap;

use foldhash::HashMap;

use super::applied::Applied;
use crate::kernel::Op;
use crate::program::SetId;
use crate::ruleset::{Element, Key};

/// What is to happen with elements.
///
/// Elements of shared sets are counted; all others have one owner, but within a plan one service may
/// lose the key that another gains.
#[derive(Debug, Default)]
pub struct Changes {
    /// In each set, what goes and what comes: a key at most once in each list.
    owned: BTreeMap<SetId, Both>,
    shared: BTreeMap<(SetId, Key), i64>,
    len: usize,
}

/// One set's part.
#[derive(Debug, Default)]
struct Both {
    gone: Vec<Element>,
    come: Vec<Element>,
    /// FoundElements in the kernel, and nobody's.
    orphans: Vec<Key>,
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
    /// A service had some elements and should have others; either list is in order of set and key.
    /// What is in both is left alone.
    pub fn difference(&mut self, had: Vec<(SetId, Element)>, wants: Vec<(SetId, Element)>) {
        self.len += wants.len();
        let mut wants = wants.into_iter().peekable();
        for (set, element) in had {
            let place = (set, element.key);
            while let Some((set, wanted)) = wants.next_if(|(s, e)| (*s, e.key) < place) {
                self.come(set, wanted);
            }
            if wants.next_if(|(s, wanted)| *s == set && *wanted == element).is_none() {
                self.gone(set, element);
            }
        }
        wants.for_each(|(set, element)| self.come(set, element));
    }

    /// Elements were found in the kernel that a service should have, and maybe others in their place.
    /// What is in both is taken over.
    pub fn takeover(&mut self, found: Vec<(SetId, Element)>, wants: Vec<(SetId, Element)>) {
        self.len += wants.len();
        found.into_iter().for_each(|(set, element)| self.gone(set, element));
        wants.into_iter().for_each(|(set, element)| self.come(set, element));
    }

    fn gone(&mut self, set: SetId, element: Element) {
        self.len += 1;
        if set.is_shared() {
            *self.shared.entry((set, element.key)).or_default() -= 1;
        } else {
            self.owned.entry(set).or_default().gone.push(element);
        }
    }

    fn come(&mut self, set: SetId, element: Element) {
        if set.is_shared() {
            *self.shared.entry((set, element.key)).or_default() += 1;
        } else {
            self.owned.entry(set).or_default().come.push(element);
        }
    }

    /// An element found in the kernel that no service has: it goes unless this plan wants it.
    pub fn orphaned(&mut self, set: SetId, key: Key) {
        self.len += 1;
        if set.is_shared() {
            self.shared.entry((set, key)).or_default();
        } else {
            self.owned.entry(set).or_default().orphans.push(key);
        }
    }

    /// Number of elements looked at so far: at least as many as are added and deleted.
    pub fn len(&self) -> usize {
        self.len
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
        for (set, changes) in self.owned {
            let found = applied.found.get(&set).filter(|found| !found.is_empty());
            let (gone, come) = match found {
                None if changes.gone.is_empty() && changes.orphans.is_empty() => {
                    (changes.gone, changes.come)
                }
                _ => {
                    let keys = changes.by_key();
                    let known =
                        keys.keys().filter(|key| found.is_some_and(|f| f.contains_key(*key)));
                    settled.claimed.extend(known.map(|key| (set, *key)));
                    replacements(keys, found)
                }
            };
            if !gone.is_empty() {
                deletions.insert(set, gone);
            }
            if !come.is_empty() {
                additions.insert(set, come);
            }
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

impl Both {
    /// Before and after of each key.
    fn by_key(self) -> BTreeMap<Key, (Option<Element>, Option<Element>)> {
        let mut keys: BTreeMap<Key, (Option<Element>, Option<Element>)> = BTreeMap::new();
        for key in self.orphans {
            keys.entry(key).or_default();
        }
        for element in self.gone {
            let key = element.key;
            keys.entry(key).or_default().0 = Some(element);
        }
        for element in self.come {
            let key = element.key;
            keys.entry(key).or_default().1 = Some(element);
        }
        keys
    }
}

/// What has to go and what has to come, of elements that services or the kernel had.
fn replacements(
    keys: BTreeMap<Key, (Option<Element>, Option<Element>)>,
    found: Option<&HashMap<Key, Element>>,
) -> (Vec<Element>, Vec<Element>) {
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for (key, (before, after)) in keys {
        let before = before.or_else(|| found?.get(&key).cloned());
        if before != after {
            gone.extend(before);
            come.extend(after);
        }
    }
    (gone, come)
}
