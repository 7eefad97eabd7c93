//! Lists of endpoints in slots.

use super::Class;
use crate::topology::Backend;

/// A list of endpoints as the kernel has it: in slots 0 to N-1 without gaps, in a class of capacity.
///
/// Why slots: a rule draws a number below the class's capacity and looks it up; a miss draws again.
/// So no rule knows N, and adding an endpoint is one element.
/// Shape: no duplicates; more than a quarter of the slots filled, or exactly a quarter, except in
/// class 4, whose first slot is filled whenever there is any member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    class: Class,
    members: Vec<Backend>,
}

impl Default for Slots {
    fn default() -> Self {
        Slots { class: Class::ONE, members: Vec::new() }
    }
}

impl Slots {
    /// A list found in the kernel.
    pub fn found(class: Class, members: Vec<Backend>) -> Self {
        Slots { class: class.max(Class::holding(members.len())), members }
    }

    pub fn class(&self) -> Class {
        self.class
    }

    pub fn members(&self) -> &[Backend] {
        &self.members
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The list with exactly the wanted members, moving as few slots as possible: newcomers take the
    /// places of those who left, then the last ones fill what is still free. `wanted` is sorted and
    /// free of duplicates.
    ///
    /// The class grows when the list outgrows it and shrinks when less than a quarter is filled, so
    /// a list that swings around a border does not move at each swing; and never back to
    /// [`Class::ONE`], so that rolling updates of small Deployments do not move theirs.
    #[must_use]
    pub fn with_members(&self, wanted: &[Backend]) -> Slots {
        let mut known: Vec<Backend> = self.members.clone();
        known.sort_unstable();
        let mut newcomers = wanted.iter().filter(|w| known.binary_search(w).is_err());

        let mut members: Vec<Backend> = Vec::with_capacity(wanted.len());
        let mut free = Vec::new();
        for member in &self.members {
            if wanted.binary_search(member).is_ok() {
                members.push(*member);
            } else if let Some(newcomer) = newcomers.next() {
                members.push(*newcomer);
            } else {
                free.push(members.len());
                members.push(*member);
            }
        }
        members.extend(newcomers);
        for &slot in free.iter().rev() {
            members.swap_remove(slot);
        }
        Slots { class: self.class_for(members.len()), members }
    }

    fn class_for(&self, members: usize) -> Class {
        let needed = Class::holding(members);
        let slots = self.class.slots() as usize;
        if needed > self.class {
            needed
        } else if self.class > Class::FOUR && members > 0 && members * 4 < slots {
            needed.max(Class::FOUR)
        } else {
            self.class
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn backends(numbers: &[u16]) -> Vec<Backend> {
        let mut sorted = numbers.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        sorted.iter().map(|&port| Backend { address: [10, 0, 0, 1].into(), port }).collect()
    }

    fn ports(slots: &Slots) -> Vec<u16> {
        slots.members().iter().map(|b| b.port).collect()
    }

    #[test]
    fn newcomers_take_free_slots_and_the_last_fills_gaps() {
        let list = Slots::default().with_members(&backends(&[1, 2, 3, 4]));
        assert_eq!(ports(&list), [1, 2, 3, 4]);
        let replaced = list.with_members(&backends(&[1, 9, 3, 4]));
        assert_eq!(ports(&replaced), [1, 9, 3, 4]);
        let removed = list.with_members(&backends(&[2, 3, 4]));
        assert_eq!(ports(&removed), [4, 2, 3]);
        let added = list.with_members(&backends(&[0, 1, 2, 3, 4]));
        assert_eq!(ports(&added), [1, 2, 3, 4, 0]);
    }

    #[test]
    fn classes_follow_with_hysteresis() {
        let mut list = Slots::default();
        for (members, slots) in [
            (1, 1),
            (2, 4),
            (1, 4),
            (0, 4),
            (1, 4),
            (5, 16),
            (4, 16),
            (3, 4),
            (4, 4),
            (17, 64),
            (16, 64),
            (15, 16),
        ] {
            list = list.with_members(&backends(&(0..members).collect::<Vec<u16>>()));
            assert_eq!(list.class().slots(), slots, "{members} members");
        }
    }

    proptest! {
        #[test]
        fn members_are_exactly_the_wanted_ones(histories in prop::collection::vec(prop::collection::vec(0u16..40, 0..40), 1..8)) {
            let mut list = Slots::default();
            for wanted in histories {
                let wanted = backends(&wanted);
                let next = list.with_members(&wanted);
                let mut members = next.members().to_vec();
                members.sort_unstable();
                prop_assert_eq!(&members, &wanted);
                let class = next.class().slots() as usize;
                prop_assert!(wanted.len() <= class);
                prop_assert!(wanted.is_empty() || class <= 4 || wanted.len() * 4 >= class);
                let moved = list.members().iter().zip(next.members()).filter(|(a, b)| a != b).count();
                let left = list.members().iter().filter(|m| wanted.binary_search(m).is_err()).count();
                prop_assert!(moved <= left, "moved {} for {} that left", moved, left);
                list = next;
            }
        }
    }
}
