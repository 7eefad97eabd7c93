//! How full the kernel's conntrack table is, and when that is worth telling.
//!
//! Place in the flow: the agent looks every few seconds and tells what [`Pressure::look`] finds.
//! Pure: time is an argument.
//!
//! A full table costs connections: the kernel first pushes out flows that nobody has answered, then
//! drops whatever is new.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Above this share of the limit, in percent, the table is nearly full.
const NEAR: u64 = 90;

/// Below this share it is not any more.
const EASED: u64 = 80;

/// Between two tellings, if it eased between them.
const AGAIN: Duration = Duration::from_secs(10 * 60);

/// Between two tellings, if it never eased.
const STILL: Duration = Duration::from_secs(60 * 60);

/// The kernel's own figures (`include/uapi/linux/netfilter/nfnetlink_conntrack.h`): entries of this
/// network namespace, and what happened in it since it exists, on all CPUs together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statistics {
    /// Entries now.
    pub entries: u64,
    /// `nf_conntrack_max`; 0 is no limit.
    pub limit: u64,
    /// Entries that could not be inserted, another one with their addresses and ports being there.
    pub insert_failed: u64,
    /// Packets dropped because they got no entry.
    pub drop: u64,
    /// Entries pushed out of a full table.
    pub early_drop: u64,
    /// Packets that belong to no flow.
    pub invalid: u64,
    /// Lookups that had to begin again because the table was resized or changed meanwhile.
    pub search_restart: u64,
    /// Entries that lost a race to an equal one, whose packets went on with that one.
    pub clash_resolve: u64,
    /// Entries not inserted because a hash chain was too long.
    pub chain_too_long: u64,
}

impl Statistics {
    /// Full by so many percent, rounded down; 0 without a limit.
    pub fn percent(&self) -> u64 {
        (self.entries * 100).checked_div(self.limit).unwrap_or(0)
    }

    /// Whether the next burst of connections may not fit.
    pub fn is_nearly_full(&self) -> bool {
        self.percent() >= NEAR
    }
}

impl fmt::Display for Statistics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit {
            0 => write!(f, "{} entries, no limit", self.entries),
            limit => write!(f, "{} of {limit} entries ({} %)", self.entries, self.percent()),
        }
    }
}

/// Something to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// The table is nearly full, or was full between two looks.
    Near {
        /// The figures of this look.
        now: Statistics,
        /// Entries pushed out since the look before.
        pushed_out: u64,
    },
    /// What was told is over.
    Eased(Statistics),
}

/// What was seen and told so far.
#[derive(Debug, Default)]
pub struct Pressure {
    near: bool,
    /// The pressure of now is told.
    told: bool,
    last_told: Option<Instant>,
    early_drop: Option<u64>,
}

impl Pressure {
    /// Takes the figures of `now`.
    pub fn look(&mut self, statistics: &Statistics, now: Instant) -> Option<Finding> {
        let before = self.early_drop.replace(statistics.early_drop);
        let pushed_out = before.map_or(0, |before| statistics.early_drop.saturating_sub(before));
        let threshold = if self.near { EASED } else { NEAR };
        self.near = statistics.percent() >= threshold || pushed_out > 0;
        if !self.near {
            return std::mem::take(&mut self.told).then_some(Finding::Eased(*statistics));
        }
        let pause = if self.told { STILL } else { AGAIN };
        let due = |last: Instant| now.saturating_duration_since(last) >= pause;
        if !self.last_told.is_none_or(due) {
            return None;
        }
        (self.told, self.last_told) = (true, Some(now));
        Some(Finding::Near { now: *statistics, pushed_out })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(entries: u64) -> Statistics {
        Statistics { entries, limit: 1000, ..Statistics::default() }
    }

    /// Whether each look, at so many minutes, finds pressure (`near`), its end (`eased`) or nothing.
    fn told(looks: &[(u64, Statistics)]) -> Vec<&'static str> {
        let (mut pressure, start) = (Pressure::default(), Instant::now());
        let mut look = |&(minute, ref statistics): &(u64, Statistics)| match pressure
            .look(statistics, start + Duration::from_secs(minute * 60))
        {
            Some(Finding::Near { .. }) => "near",
            Some(Finding::Eased(_)) => "eased",
            None => "",
        };
        looks.iter().map(&mut look).collect()
    }

    #[test]
    fn pressure_begins_and_ends_at_different_shares() {
        let looks = [899, 900, 899, 800, 799, 899].map(filled);
        let looks: Vec<_> = looks.into_iter().map(|statistics| (0, statistics)).collect();
        assert_eq!(told(&looks), ["", "near", "", "", "eased", ""]);
    }

    #[test]
    fn a_table_at_the_border_is_told_once_in_ten_minutes() {
        let looks: Vec<_> =
            (0..40).map(|i| (i / 2, filled(if i % 2 == 0 { 950 } else { 100 }))).collect();
        let told = told(&looks);
        assert_eq!(told.iter().filter(|what| **what == "near").count(), 2, "{told:?}");
        assert_eq!((told[0], told[20]), ("near", "near"));
        assert_eq!(told.iter().filter(|what| **what == "eased").count(), 2, "as often as told");
    }

    #[test]
    fn pressure_that_lasts_is_told_every_hour() {
        let looks: Vec<_> = (0..=180).map(|minute| (minute, filled(950))).collect();
        let told = told(&looks);
        let minutes: Vec<_> = (0..told.len()).filter(|&i| told[i] == "near").collect();
        assert_eq!(minutes, [0, 60, 120, 180]);
    }

    // Bursts between two looks show in what was pushed out.
    #[test]
    fn a_table_that_was_full_between_two_looks_is_told() {
        let pushed_out = |early_drop| Statistics { early_drop, ..filled(10) };
        let looks = [(0, pushed_out(7)), (1, pushed_out(7)), (2, pushed_out(9))];
        assert_eq!(told(&looks), ["", "", "near"], "what was before the first look is old");
        let mut pressure = Pressure::default();
        let start = Instant::now();
        pressure.look(&pushed_out(7), start);
        let found = pressure.look(&pushed_out(9), start);
        assert_eq!(found, Some(Finding::Near { now: pushed_out(9), pushed_out: 2 }));
    }

    #[test]
    fn without_a_limit_nothing_is_near() {
        let unlimited = Statistics { entries: u64::MAX / 100, ..Statistics::default() };
        assert!(!unlimited.is_nearly_full());
        assert_eq!(told(&[(0, unlimited)]), [""]);
        assert_eq!(Statistics { entries: 3, ..unlimited }.to_string(), "3 entries, no limit");
        assert_eq!(filled(955).to_string(), "955 of 1000 entries (95 %)");
    }
}
