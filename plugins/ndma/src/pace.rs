//! How fast descriptors may follow each other: the parameter `rate_mib`.

use std::time::{Duration, Instant};

/// What a late start may make good, so that a rate is kept in spite of late wake-ups.
const CREDIT: Duration = Duration::from_millis(10);

/// Spaces descriptors so that their payload keeps to a rate. Without a rate it never waits.
#[derive(Debug, Default)]
pub struct Pace {
    /// 0 for no limit.
    bytes_per_s: u64,
    next: Option<Instant>,
}

impl Pace {
    /// A rate; 0 for none. What was owed at an earlier rate is forgotten.
    pub fn at(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, next: None }
    }

    /// What is left to wait before the next descriptor. The clock is read only where there is a rate, here
    /// and below.
    pub fn left(&self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        self.next?.checked_duration_since(now()).filter(|left| !left.is_zero())
    }

    /// A descriptor moved this much.
    pub fn moved(&mut self, bytes: u64, now: impl FnOnce() -> Instant) {
        if self.bytes_per_s == 0 {
            return;
        }
        let now = now();
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.bytes_per_s);
        let takes = Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        let from = self.next.map_or(now, |next| next.max(earliest));
        // Past the end of time it never comes, as asked; a new rate ends it.
        self.next = Some(from.checked_add(takes).unwrap_or(from));
    }
}

#[cfg(test)]
#[path = "pace_test.rs"]
mod tests;
