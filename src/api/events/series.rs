//! Which Events are new and which continue a series.
//!
//! Place in the flow: [`super::Recorder`]'s task asks before it writes. Pure: the time is passed in.
//! Source: KEP-383.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::{Reason, Regarding};

/// A series without repeats for this long is over (client-go).
const FINISHED: Duration = Duration::from_secs(6 * 60);
/// The written count of a lasting series is refreshed this often (client-go).
const REFRESH: Duration = Duration::from_secs(30 * 60);

/// What to write for an occurrence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Write {
    /// A new Event.
    Create,
    /// `series.count` of the Event with this name.
    Patch { name: String, count: i32 },
    /// Nothing: counted for the next patch.
    Nothing,
}

/// Series that are going on, by reason and object.
#[derive(Debug, Default)]
pub(super) struct Series(HashMap<(Reason, Regarding), Entry>);

#[derive(Debug)]
struct Entry {
    name: String,
    count: i32,
    seen: Instant,
    written: Instant,
}

impl Series {
    /// Takes an occurrence at `now`.
    pub(super) fn record(&mut self, reason: Reason, regarding: &Regarding, now: Instant) -> Write {
        self.0.retain(|_, entry| now.saturating_duration_since(entry.seen) < FINISHED);
        let Some(entry) = self.0.get_mut(&(reason, regarding.clone())) else {
            return Write::Create;
        };
        entry.count += 1;
        entry.seen = now;
        if entry.count > 2 && now.saturating_duration_since(entry.written) < REFRESH {
            return Write::Nothing;
        }
        entry.written = now;
        Write::Patch { name: entry.name.clone(), count: entry.count }
    }

    /// An Event was created under this name and opens a series.
    pub(super) fn created(
        &mut self,
        reason: Reason,
        regarding: &Regarding,
        name: String,
        now: Instant,
    ) {
        let entry = Entry { name, count: 1, seen: now, written: now };
        self.0.insert((reason, regarding.clone()), entry);
    }

    /// The Event is not there any more: the next occurrence is a new one.
    pub(super) fn forget(&mut self, reason: Reason, regarding: &Regarding) {
        self.0.remove(&(reason, regarding.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_become_a_series_and_series_end() {
        let start = Instant::now();
        let mut series = Series::default();
        let mut at = |minute: u64| {
            let now = start + Duration::from_secs(60 * minute);
            let write = series.record(Reason::Starting, &Regarding::Node, now);
            if write == Write::Create {
                series.created(Reason::Starting, &Regarding::Node, format!("at-{minute}"), now);
            }
            write
        };
        let patch = |name: &str, count| Write::Patch { name: name.into(), count };
        assert_eq!(at(0), Write::Create);
        assert_eq!(at(1), patch("at-0", 2), "the first repeat makes it a series");
        for minute in [2, 7, 12, 17, 22, 27] {
            assert_eq!(at(minute), Write::Nothing, "minute {minute}");
        }
        assert_eq!(at(31), patch("at-0", 9), "refreshed after half an hour");
        assert_eq!(at(36), Write::Nothing);
        assert_eq!(at(42), Write::Create, "six minutes of silence end a series");
    }

    #[test]
    fn series_are_kept_apart_by_reason_and_object() {
        let now = Instant::now();
        let mut series = Series::default();
        series.created(Reason::Starting, &Regarding::Node, "a".into(), now);
        let other = series.record(Reason::ServiceQuarantined, &Regarding::Node, now);
        assert_eq!(other, Write::Create);
        series.forget(Reason::Starting, &Regarding::Node);
        assert_eq!(series.record(Reason::Starting, &Regarding::Node, now), Write::Create);
    }
}
