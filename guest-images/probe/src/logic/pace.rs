//! So many things a second, without catching up after a long gap.

use super::options::RATE_MAX;

/// What was missed is made up for up to this part of a second.
const BACKLOG_PART: u64 = 20;

/// Counts what is due.
#[derive(Clone, Debug)]
pub struct Pace {
    rate: u64,
    hz: u64,
    last: u64,
    burst: u64,
    /// In things times `hz`.
    credit: u64,
}

impl Pace {
    /// `rate` things per second, from TSC `now` on, of a TSC of `hz`.
    /// They may be taken `burst` at a time, so as many can fall due however low the rate.
    pub fn new(rate: u64, burst: u64, hz: u64, now: u64) -> Self {
        Self { rate, hz: hz.max(1), last: now, burst: burst.max(1), credit: 0 }
    }

    /// How many are due at `now`.
    pub fn due(&mut self, now: u64) -> u64 {
        if self.rate == RATE_MAX {
            return u64::MAX;
        }
        let backlog = self.hz / BACKLOG_PART;
        let elapsed = now.saturating_sub(self.last).min(backlog);
        self.last = now;
        let most = self.rate.saturating_mul(backlog).max(self.burst.saturating_mul(self.hz));
        let earned = elapsed.saturating_mul(self.rate);
        self.credit = self.credit.saturating_add(earned).min(most);
        self.credit / self.hz
    }

    /// Takes account of `count` that were done.
    pub fn done(&mut self, count: u64) {
        self.credit = self.credit.saturating_sub(count.saturating_mul(self.hz));
    }
}

#[cfg(test)]
#[path = "pace_test.rs"]
mod tests;
