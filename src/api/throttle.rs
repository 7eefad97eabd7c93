//! Client-side limit of requests: `clientConnection.qps` and `.burst`.
//!
//! Place in the flow: [`super::Client`] asks before every request. Pure: the time is passed in, and
//! nothing here waits.

use std::time::{Duration, Instant};

/// A token bucket. Tokens may be borrowed: every request gets its turn, in the order of asking.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Tokens per second; `None` means unlimited.
    rate: Option<f64>,
    burst: f64,
    tokens: f64,
    updated: Instant,
}

impl TokenBucket {
    /// A full bucket. `qps` in requests per second: 0 stands for upstream's 5, a negative number for
    /// no limit. `burst` 0 stands for upstream's 10 (section 10.5).
    pub(super) fn new(qps: f32, burst: i32, now: Instant) -> Self {
        let rate = match qps {
            qps if qps < 0.0 => None,
            qps if qps > 0.0 => Some(f64::from(qps)),
            _ => Some(5.0),
        };
        let burst = if burst > 0 { f64::from(burst) } else { 10.0 };
        TokenBucket { rate, burst, tokens: burst, updated: now }
    }

    /// Takes one token and says how long to wait before using it.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.updated = now;
        self.tokens = (self.tokens + elapsed * rate).min(self.burst) - 1.0;
        if self.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-self.tokens / rate)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits, in milliseconds, of requests made at the given milliseconds.
    fn waits(qps: f32, burst: i32, at: &[u64]) -> Vec<u128> {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(qps, burst, start);
        at.iter().map(|&ms| bucket.take(start + Duration::from_millis(ms)).as_millis()).collect()
    }

    #[test]
    fn requests_beyond_the_burst_wait_their_turn() {
        let cases: [(&str, Vec<u128>, Vec<u128>); 6] = [
            ("a burst is free", waits(5.0, 2, &[0, 0]), vec![0, 0]),
            ("then one every 1/qps", waits(5.0, 2, &[0, 0, 0, 0]), vec![0, 0, 200, 400]),
            ("time refills", waits(5.0, 2, &[0, 0, 200]), vec![0, 0, 0]),
            ("but never above the burst", waits(5.0, 1, &[60_000, 60_000]), vec![0, 200]),
            ("negative means unlimited", waits(-1.0, 1, &[0, 0, 0]), vec![0, 0, 0]),
            ("zero means the defaults", waits(0.0, 0, &[0; 11]), [vec![0; 10], vec![200]].concat()),
        ];
        for (name, got, want) in cases {
            assert_eq!(got, want, "{name}");
        }
    }
}
