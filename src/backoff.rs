//! How long to wait before something that failed is tried again. Pure: time and chance are arguments.

use std::time::Duration;

/// Pauses that double from the first to the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// From `first`, never more than `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest }
    }

    /// The pause after so many failures in a row; none after none.
    pub fn pause(self, failures: u32) -> Duration {
        let Some(doublings) = failures.checked_sub(1) else { return Duration::ZERO };
        self.first.saturating_mul(1 << doublings.min(30)).min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        let pauses = [0, 1, 2, 3, 5, 6, 7, u32::MAX].map(|n| backoff.pause(n).as_millis());
        assert_eq!(pauses, [0, 50, 100, 200, 800, 1000, 1000, 1000]);
    }
}
