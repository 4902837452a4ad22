//! Forecast, and what follows from it: stop now, go on, or give up.

use std::time::Duration;

use crate::options::{SourceOptions, TimeoutStrategy};
use crate::report::{Forecast, micros};

/// Rounds without a better forecast, while more is dirtied than sent, that count as hopeless.
const HOPELESS_ROUNDS: u32 = 3;
/// The same while the dirty rate would allow better, as when the fixed costs alone are too high.
const STALE_ROUNDS: u32 = 10;
/// Bytes that a round must have carried for its bandwidth to mean something.
const MEANINGFUL_BYTES: u64 = 1 << 20;
/// Bandwidth taken before anything was measured: a slow machine's, in bytes per second.
const ASSUMED_BANDWIDTH: u64 = 512 << 20;

/// What the forecast is made of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terms {
    /// Dirty now.
    pub(crate) dirty_pages: u64,
    /// Device state to be sent after the stop.
    pub(crate) device_bytes: u64,
    /// Costs that do not depend on sizes.
    pub(crate) fixed: Duration,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The downtime limit is met, or is to be ignored by now.
    Stop,
    /// Another round.
    Another,
    /// The time is over.
    TimedOut,
    /// More is dirtied than sent, or the limit is below what a stop costs anyway.
    Hopeless,
}

/// Follows the rounds of one migration.
#[derive(Debug)]
pub(crate) struct Convergence {
    limit: Duration,
    timeout: Duration,
    strategy: TimeoutStrategy,
    bandwidth: Option<u64>,
    best: Option<u64>,
    stale: u32,
    outrun: u32,
}

impl Convergence {
    pub(crate) fn new(options: &SourceOptions) -> Self {
        Self {
            limit: options.downtime,
            timeout: options.timeout,
            strategy: options.timeout_strategy,
            bandwidth: None,
            best: None,
            stale: 0,
            outrun: 0,
        }
    }

    /// A round has carried so many bytes of page contents in this time. Small rounds say more
    /// about latency than about bandwidth, and are not counted.
    pub(crate) fn sent(&mut self, bytes: u64, time: Duration) -> u64 {
        let rate = per_second(bytes, time);
        if bytes >= MEANINGFUL_BYTES {
            self.bandwidth = Some(rate);
        }
        rate
    }

    /// Bytes per second that are reckoned with.
    pub(crate) fn bandwidth(&self) -> u64 {
        self.bandwidth.unwrap_or(ASSUMED_BANDWIDTH).max(1)
    }

    /// What a stop now would cost.
    pub(crate) fn forecast(&self, round: u32, terms: &Terms) -> Forecast {
        let bandwidth = self.bandwidth();
        let time = |bytes: u64| {
            let micros = u128::from(bytes) * 1_000_000 / u128::from(bandwidth);
            u64::try_from(micros).unwrap_or(u64::MAX)
        };
        let pages_us = time(terms.dirty_pages.saturating_mul(4096));
        let devices_us = time(terms.device_bytes);
        let fixed_us = micros(terms.fixed);
        Forecast {
            round,
            dirty_pages: terms.dirty_pages,
            pages_us,
            devices_us,
            fixed_us,
            downtime_us: pages_us.saturating_add(devices_us).saturating_add(fixed_us),
            limit_us: micros(self.limit),
            bandwidth,
        }
    }

    /// True if a round is to be broken off because the time is over.
    pub(crate) fn is_over(&self, elapsed: Duration) -> bool {
        elapsed >= self.timeout && self.strategy == TimeoutStrategy::Cancel
    }

    /// What follows from a forecast, with the rate at which memory is being dirtied.
    pub(crate) fn decide(
        &mut self,
        forecast: &Forecast,
        dirty_rate: u64,
        elapsed: Duration,
    ) -> Decision {
        if forecast.downtime_us <= forecast.limit_us {
            return Decision::Stop;
        }
        // Better by a twentieth at least: less is noise.
        let now = forecast.downtime_us;
        let better = self.best.is_none_or(|best| now < best - best / 20);
        if better {
            self.best = Some(now);
            self.stale = 0;
            self.outrun = 0;
        } else {
            self.stale += 1;
            if dirty_rate >= self.bandwidth() {
                self.outrun += 1;
            } else {
                self.outrun = 0;
            }
        }
        let reason = if elapsed >= self.timeout {
            Decision::TimedOut
        } else if self.outrun >= HOPELESS_ROUNDS || self.stale >= STALE_ROUNDS {
            Decision::Hopeless
        } else {
            return Decision::Another;
        };
        match self.strategy {
            TimeoutStrategy::Cancel => reason,
            TimeoutStrategy::Ignore => Decision::Stop,
        }
    }

    /// The best forecast so far.
    pub(crate) fn best(&self) -> Duration {
        Duration::from_micros(self.best.unwrap_or(0))
    }
}

/// Bytes per second; a time of zero counts as a microsecond.
pub(crate) fn per_second(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes) * 1_000_000 / u128::from(micros(time).max(1));
    u64::try_from(rate).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "converge_test.rs"]
mod tests;
