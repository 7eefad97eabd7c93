//! When a family may be synced: a state machine, time passed in.
//!
//! Times are ages of the process. Source: section 7.3 of the behaviour reference (upstream's bounded
//! frequency runner), with a retry that starts small instead of waiting a whole sync period.

use std::time::Duration;

/// First pause after a failed sync; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(50);

/// Limits of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Least time between the end of a sync and the start of the next; zero by default, for a commit
    /// is cheap and changes coalesce while one runs (B-193 as far as it is configured).
    pub min_interval: Duration,
    /// Longest pause after a failed sync: `syncPeriod` (B-196).
    pub retry: Duration,
    /// A table is read back and compared when this long has passed since it was last known to be
    /// right (B-197).
    pub audit: Duration,
}

impl Limits {
    /// Upstream's hourly full sync.
    pub const AUDIT: Duration = Duration::from_secs(3600);
}

/// The schedule of one family.
#[derive(Debug, Clone)]
pub struct Schedule {
    limits: Limits,
    ended: Option<Duration>,
    failures: u32,
}

impl Schedule {
    /// Nothing has run yet: the first sync may start at once (B-195).
    pub fn new(limits: Limits) -> Self {
        Schedule { limits, ended: None, failures: 0 }
    }

    /// A sync ended.
    pub fn ended(&mut self, now: Duration, success: bool) {
        self.ended = Some(now);
        self.failures = if success { 0 } else { self.failures.saturating_add(1) };
    }

    /// When pending work may be synced. `fresh` says that something new came in since the last sync,
    /// which does not wait for the pause after a failure.
    pub fn due(&self, fresh: bool) -> Duration {
        let Some(ended) = self.ended else { return Duration::ZERO };
        let earliest = ended + self.limits.min_interval;
        if self.failures == 0 || fresh {
            return earliest;
        }
        let doubled = FIRST_RETRY.saturating_mul(1 << (self.failures - 1).min(16));
        earliest.max(ended + doubled.min(self.limits.retry))
    }
}

/// Pause after a repair before the next one may start, if they follow each other closely.
const FIRST_REPAIR_PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause.
const LONGEST_REPAIR_PAUSE: Duration = Duration::from_secs(30);

/// Slows repairs down when they repeat, so that two programs that undo each other's work never do so
/// at full speed.
#[derive(Debug, Clone, Default)]
pub struct Damper {
    last: Option<Duration>,
    repeats: u32,
    due: Option<Duration>,
}

impl Damper {
    /// Someone else changed the table: sets when it is to be repaired. The first repair after a quiet
    /// time is due at once.
    pub fn disturbed(&mut self, now: Duration) {
        if self.due.is_none() {
            self.due = Some(self.last.map_or(now, |last| now.max(last + self.pause())));
        }
    }

    /// When the table is to be repaired.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// The repair begins.
    pub fn repairing(&mut self, now: Duration) {
        let quiet = self.last.is_none_or(|last| now >= last + 2 * LONGEST_REPAIR_PAUSE);
        self.repeats = if quiet { 0 } else { self.repeats + 1 };
        self.last = Some(now);
        self.due = None;
    }

    fn pause(&self) -> Duration {
        FIRST_REPAIR_PAUSE.saturating_mul(1 << self.repeats.min(16)).min(LONGEST_REPAIR_PAUSE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn limits(min_interval: u64, retry: u64) -> Limits {
        Limits { min_interval: ms(min_interval), retry: ms(retry), audit: Limits::AUDIT }
    }

    // B-193, B-194, B-195: at once when idle, then not before the minimum interval.
    #[test]
    fn the_minimum_interval_counts_from_the_end_of_a_sync() {
        let mut schedule = Schedule::new(limits(1000, 5000));
        assert_eq!(schedule.due(true), ms(0));
        schedule.ended(ms(30), true);
        assert_eq!(schedule.due(true), ms(1030));
    }

    // B-196: a failed sync is tried again within the sync period, sooner if something changes.
    #[test]
    fn retries_back_off_up_to_the_sync_period() {
        let mut schedule = Schedule::new(limits(0, 5000));
        let mut pauses = Vec::new();
        for _ in 0..9 {
            schedule.ended(ms(100), false);
            pauses.push((schedule.due(false) - ms(100)).as_millis());
            assert_eq!(schedule.due(true), ms(100));
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        schedule.ended(ms(200), true);
        assert_eq!(schedule.due(false), ms(200));
    }

    #[test]
    fn a_retry_never_undercuts_the_minimum_interval() {
        let mut schedule = Schedule::new(limits(5000, 1000));
        schedule.ended(ms(0), false);
        assert_eq!(schedule.due(false), ms(5000));
    }

    #[test]
    fn repeated_repairs_slow_down_and_recover_after_a_quiet_time() {
        let mut damper = Damper::default();
        let mut now = ms(5000);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            damper.disturbed(now);
            let due = damper.due().unwrap();
            pauses.push((due - now).as_millis());
            now = due;
            damper.repairing(now);
        }
        let expected = [0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000];
        assert_eq!(pauses, expected);
        now += ms(60_000);
        damper.disturbed(now);
        assert_eq!(damper.due(), Some(now));
        damper.repairing(now);
        damper.disturbed(now);
        assert_eq!(damper.due(), Some(now + ms(100)));
    }
}
