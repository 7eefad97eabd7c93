//! Which messages are shown: klog's verbosity and vmodule over `tracing`'s levels.

use std::sync::atomic::{AtomicU32, Ordering};

use tracing::{Level, Metadata};
use tracing_subscriber::filter::LevelFilter;

use crate::config::v1alpha1::VmoduleItem;

/// The thresholds of a process.
#[derive(Debug)]
pub(super) struct Thresholds {
    verbosity: AtomicU32,
    vmodule: Vec<VmoduleItem>,
}

/// The verbosity from which on an event without a field `v` is shown.
pub(super) fn of_metadata(metadata: &Metadata<'_>) -> u32 {
    let own = metadata.target().split("::").next() == Some(env!("CARGO_CRATE_NAME"));
    match (*metadata.level(), own) {
        (Level::DEBUG, true) => 2,
        (Level::DEBUG, false) => 6,
        (Level::TRACE, true) => 5,
        (Level::TRACE, false) => 8,
        _ => 0,
    }
}

impl Thresholds {
    pub(super) fn new(verbosity: u32, vmodule: &[VmoduleItem]) -> Thresholds {
        Thresholds { verbosity: AtomicU32::new(verbosity), vmodule: vmodule.to_vec() }
    }

    pub(super) fn verbosity(&self) -> u32 {
        self.verbosity.load(Ordering::Relaxed)
    }

    pub(super) fn set_verbosity(&self, verbosity: u32) {
        self.verbosity.store(verbosity, Ordering::Relaxed);
    }

    /// Whether info of verbosity `v` from a source file is shown. The first vmodule pattern that
    /// matches decides, else the general verbosity.
    pub(super) fn shows(&self, v: u32, file: Option<&str>) -> bool {
        let path = file.unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or(path);
        let stem = name.strip_suffix(".rs").unwrap_or(name);
        let by_file = self.vmodule.iter().find(|item| matches(&item.file_pattern, stem));
        v <= by_file.map_or_else(|| self.verbosity(), |item| item.verbosity.max(self.verbosity()))
    }

    /// Whether an event of this call site can be shown; one with a field `v` is asked again.
    pub(super) fn may_show(&self, metadata: &Metadata<'_>) -> bool {
        // Errors and warnings have no verbosity.
        *metadata.level() <= Level::WARN
            || metadata.fields().field("v").is_some()
            || self.shows(of_metadata(metadata), metadata.file())
    }

    /// The finest level that can be shown, for `tracing`'s own quick check.
    pub(super) fn max_level(&self) -> LevelFilter {
        let most = self.vmodule.iter().map(|item| item.verbosity).max().unwrap_or(0);
        match most.max(self.verbosity()) {
            0 => LevelFilter::INFO,
            1..=4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

/// Whether a pattern with `*` and `?` matches a whole name.
fn matches(pattern: &str, name: &str) -> bool {
    let mut pattern_rest = pattern.chars();
    match pattern_rest.next() {
        None => name.is_empty(),
        Some('*') => {
            let rest = pattern_rest.as_str();
            let tails = name.char_indices().map(|(at, _)| &name[at..]).chain([""]);
            tails.into_iter().any(|tail| matches(rest, tail))
        }
        Some(c) => {
            let mut name_rest = name.chars();
            let same = name_rest.next().is_some_and(|found| c == '?' || c == found);
            same && matches(pattern_rest.as_str(), name_rest.as_str())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let cases = [
            ("sync", "sync", true),
            ("sync", "syncs", false),
            ("s*c", "sync", true),
            ("*", "sync", true),
            ("*", "", true),
            ("s?nc", "sync", true),
            ("s?c", "sync", false),
            ("", "sync", false),
        ];
        for (pattern, name, expected) in cases {
            assert_eq!(matches(pattern, name), expected, "{pattern:?} {name:?}");
        }
    }

    #[test]
    fn vmodule_raises_single_files() {
        let item = VmoduleItem { file_pattern: "syn*".to_owned(), verbosity: 4 };
        let thresholds = Thresholds::new(1, &[item]);
        assert!(thresholds.shows(4, Some("src/engine/sync.rs")));
        assert!(!thresholds.shows(5, Some("src/engine/sync.rs")));
        assert!(!thresholds.shows(4, Some("src/engine/store.rs")));
        assert!(thresholds.shows(1, Some("src/engine/store.rs")));
    }
}
