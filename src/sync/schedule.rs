//! When a family is synced next: a state machine, time passed in.
//!
//! Times are ages of the process. Whatever asks for a sync (new objects, a foreign change, a table
//! that was not read for an hour, a refused service) is one reason among others; all of them wait
//! for the pause that the last sync left behind. Source: section 7.3 of the behaviour reference
//! (upstream's bounded frequency runner), with a retry that starts small instead of waiting a whole
//! sync period.

use std::time::Duration;

use crate::backoff::Backoff;

/// First pause after a failed sync.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// Longest pause after a failed sync when something new came in for the family.
const FRESH_RETRY: Duration = Duration::from_millis(250);

/// Pauses between repairs that follow each other closely, so that two programs that undo each
/// other's work never do so at full speed.
const REPAIRS: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
/// After so long without a repair the next one is due at once.
const QUIET: Duration = Duration::from_secs(60);

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

/// What the synchronizer says of a family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Work {
    /// Objects are listed: before that nothing is synced.
    pub ready: bool,
    /// Something is to be committed or read.
    pub pending: bool,
    /// When a refused service is to be tried again.
    pub retry: Option<Duration>,
}

/// Why a sync starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// The table is to be read first.
    pub read: bool,
    /// Someone else changed the table.
    pub repair: bool,
}

#[derive(Debug, Clone)]
pub struct Schedule {
    limits: Limits,
    ended: Option<Duration>,
    failures: u32,
    /// Something new came in since the last sync.
    fresh: bool,
    /// When the table was last known to be right.
    right: Duration,
    repairs: Repairs,
}

/// Foreign changes of one family's table.
#[derive(Debug, Clone, Default)]
struct Repairs {
    last: Option<Duration>,
    repeats: u32,
    due: Option<Duration>,
    /// A repair began and none has succeeded since.
    running: bool,
}

impl Schedule {
    /// Nothing has run yet: the first sync may start at once (B-195).
    pub fn new(limits: Limits) -> Self {
        Schedule {
            limits,
            ended: None,
            failures: 0,
            fresh: false,
            right: Duration::ZERO,
            repairs: Repairs::default(),
        }
    }

    /// Something came in that this family has work with.
    pub fn arrived(&mut self) {
        self.fresh = true;
    }

    /// Someone else changed the table. The first repair after a quiet time is due at once.
    pub fn disturbed(&mut self, now: Duration) {
        let repairs = &mut self.repairs;
        if repairs.due.is_none() {
            let pause = REPAIRS.pause(repairs.repeats);
            repairs.due = Some(repairs.last.map_or(now, |last| now.max(last + pause)));
        }
    }

    /// When the next sync starts; `None` while there is no reason for one.
    pub fn due(&self, work: Work) -> Option<Duration> {
        let reason = if work.pending { Some(Duration::ZERO) } else { None };
        let later = [Some(self.right + self.limits.audit), self.repairs.due, work.retry];
        let later = later.into_iter().flatten().filter(|_| work.ready);
        let reason = reason.into_iter().chain(later).min()?;
        Some(reason.max(self.earliest()))
    }

    /// A sync starts now.
    pub fn begin(&mut self, now: Duration) -> Start {
        let repairs = &mut self.repairs;
        if repairs.due.is_some_and(|due| due <= now) {
            let quiet = repairs.last.is_none_or(|last| now >= last + QUIET);
            repairs.repeats = if quiet { 1 } else { repairs.repeats + 1 };
            repairs.last = Some(now);
            repairs.due = None;
            repairs.running = true;
        }
        let audit = now >= self.right + self.limits.audit;
        self.fresh = false;
        Start { read: repairs.running || audit, repair: repairs.running }
    }

    /// A sync ended; `read` says that the table was read in it.
    pub fn ended(&mut self, now: Duration, success: bool, read: bool) {
        self.ended = Some(now);
        self.failures = if success { 0 } else { self.failures.saturating_add(1) };
        if success && read {
            self.right = now;
            self.repairs.running = false;
        }
    }

    /// What the last sync left: the minimum interval, and a pause if it failed. Something new
    /// shortens the pause, but never to nothing: in a busy cluster something always is.
    fn earliest(&self) -> Duration {
        let Some(ended) = self.ended else { return Duration::ZERO };
        let pause = Backoff::new(FIRST_RETRY, self.limits.retry).pause(self.failures);
        let pause = if self.fresh { pause.min(FRESH_RETRY) } else { pause };
        ended + pause.max(self.limits.min_interval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PENDING: Work = Work { ready: true, pending: true, retry: None };
    const IDLE: Work = Work { ready: true, pending: false, retry: None };

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
        assert_eq!(schedule.due(PENDING), Some(ms(0)));
        schedule.ended(ms(30), true, false);
        assert_eq!(schedule.due(PENDING), Some(ms(1030)));
    }

    // B-196: a failed sync is tried again within the sync period, sooner if something changes.
    #[test]
    fn retries_back_off_up_to_the_sync_period() {
        let mut schedule = Schedule::new(limits(0, 5000));
        let (mut pauses, mut fresh) = (Vec::new(), Vec::new());
        for _ in 0..9 {
            schedule.begin(ms(100));
            schedule.ended(ms(100), false, false);
            pauses.push((schedule.due(PENDING).unwrap() - ms(100)).as_millis());
            schedule.arrived();
            fresh.push((schedule.due(PENDING).unwrap() - ms(100)).as_millis());
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(fresh, [50, 100, 200, 250, 250, 250, 250, 250, 250]);
        schedule.begin(ms(200));
        schedule.ended(ms(200), true, false);
        assert_eq!(schedule.due(PENDING), Some(ms(200)));
    }

    #[test]
    fn a_retry_never_undercuts_the_minimum_interval() {
        let mut schedule = Schedule::new(limits(5000, 1000));
        schedule.ended(ms(0), false, false);
        assert_eq!(schedule.due(PENDING), Some(ms(5000)));
    }

    // B2: whatever is overdue waits for the pause after a failure and for the minimum interval.
    #[test]
    fn no_reason_undercuts_the_pause_after_a_sync() {
        for (min_interval, success, earliest) in [(0, false, 50), (700, true, 700)] {
            let audit = ms(1);
            let limits = Limits { audit, ..limits(min_interval, 30_000) };
            let overdue = Some(ms(1));
            for work in [PENDING, IDLE, Work { retry: overdue, ..IDLE }] {
                let mut schedule = Schedule::new(limits);
                schedule.begin(ms(1000));
                schedule.ended(ms(1000), success, false);
                schedule.disturbed(ms(1000));
                assert_eq!(schedule.due(work), Some(ms(1000 + earliest)), "{work:?}");
            }
        }
    }

    #[test]
    fn nothing_is_due_before_objects_are_listed() {
        let mut schedule = Schedule::new(limits(0, 1000));
        schedule.disturbed(ms(1));
        let work = Work { ready: false, pending: false, retry: Some(ms(1)) };
        assert_eq!(schedule.due(work), None);
    }

    // B14: a repair that had to wait, or failed, still is one when it gets through.
    #[test]
    fn a_repair_is_one_until_it_succeeded() {
        let mut schedule = Schedule::new(limits(0, 1000));
        schedule.disturbed(ms(10));
        assert_eq!(schedule.begin(ms(20)), Start { read: true, repair: true });
        schedule.ended(ms(20), false, false);
        assert_eq!(schedule.begin(ms(70)), Start { read: true, repair: true });
        schedule.ended(ms(80), true, true);
        assert_eq!(schedule.begin(ms(90)), Start { read: false, repair: false });
    }

    #[test]
    fn repeated_repairs_slow_down_and_recover_after_a_quiet_time() {
        let mut schedule = Schedule::new(limits(0, 1000));
        let mut now = ms(5000);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            schedule.disturbed(now);
            let due = schedule.due(IDLE).unwrap();
            pauses.push((due - now).as_millis());
            now = due;
            schedule.begin(now);
            schedule.ended(now, true, true);
        }
        let expected = [0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000];
        assert_eq!(pauses, expected);
        now += ms(60_000);
        schedule.disturbed(now);
        assert_eq!(schedule.due(IDLE), Some(now));
        schedule.begin(now);
        schedule.ended(now, true, true);
        schedule.disturbed(now);
        assert_eq!(schedule.due(IDLE), Some(now + ms(100)));
    }
}
