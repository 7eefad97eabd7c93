//! Shares equal strings: a million endpoints name a few thousand nodes and a handful of zones.

use std::collections::HashSet;
use std::sync::Arc;

/// Strings before the first look for unused ones.
const FIRST_SWEEP: usize = 1024;

/// Hands out one `Arc` per distinct string. Strings that nobody else holds any more are dropped
/// whenever the number of strings has doubled.
#[derive(Debug)]
pub struct Interner {
    strings: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Default for Interner {
    fn default() -> Self {
        Interner { strings: HashSet::new(), sweep_at: FIRST_SWEEP }
    }
}

impl Interner {
    /// The shared form of a string.
    pub fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.strings.get(text) {
            return known.clone();
        }
        if self.strings.len() >= self.sweep_at {
            self.strings.retain(|string| Arc::strong_count(string) > 1);
            self.sweep_at = FIRST_SWEEP.max(2 * self.strings.len());
        }
        let new: Arc<str> = text.into();
        self.strings.insert(new.clone());
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_share_memory_and_unused_ones_go() {
        let mut interner = Interner::default();
        let kept = interner.intern("node-a");
        for i in 0..10 * FIRST_SWEEP {
            interner.intern(&format!("gone-{i}"));
        }
        assert!(Arc::ptr_eq(&kept, &interner.intern("node-a")));
        assert!(interner.strings.len() <= FIRST_SWEEP, "{} strings", interner.strings.len());
    }
}
