//! Gaps between two readings of the TSC: how long the guest did not run.
//!
//! A vCPU beats whenever it has a moment. The largest gap is its blackout; the largest in the
//! second before tells what the host's scheduling costs anyway.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Parts of the second for which the largest gap is remembered.
const PARTS: usize = 10;
/// A gap counts as running time up to this part of a second: pauses and blackouts do not.
const RUNNING_PART: u64 = 20;
/// A gap is worth a line of its own when it is this many times the noise, ...
const STANDS_OUT: u64 = 5;
/// ... and longer than this part of a second (200 µs).
const STANDS_OUT_PART: u64 = 5000;

/// What one vCPU's heart has shown, for another vCPU to print. All in TSC cycles.
#[derive(Debug, Default)]
pub struct Gaps {
    line: AtomicU64,
    max: AtomicU64,
    noise: AtomicU64,
}

impl Gaps {
    /// No gap yet.
    pub const fn new() -> Self {
        Self { line: AtomicU64::new(0), max: AtomicU64::new(0), noise: AtomicU64::new(0) }
    }

    /// Forgets all gaps.
    pub fn reset(&self) {
        for gap in [&self.line, &self.max, &self.noise] {
            gap.store(0, Relaxed);
        }
    }

    /// The largest gap since this was last asked.
    pub fn take_line(&self) -> u64 {
        self.line.swap(0, Relaxed)
    }

    /// The largest gap since the start, and the largest in the second before that one.
    pub fn largest(&self) -> (u64, u64) {
        (self.max.load(Relaxed), self.noise.load(Relaxed))
    }
}

/// A gap that stands out: its length, and the largest in the second before, in cycles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// Length of the gap.
    pub gap: u64,
    /// Largest gap in the second before.
    pub noise: u64,
}

/// One vCPU's heart.
#[derive(Debug)]
pub struct Heartbeat {
    hz: u64,
    start: u64,
    last: u64,
    running: u64,
    part_end: u64,
    parts: [u64; PARTS],
    outlier: Option<Outlier>,
}

impl Heartbeat {
    /// A heart that has not been started.
    pub const fn new() -> Self {
        let (start, last, running, part_end) = (0, 0, 0, 0);
        Self { hz: 1, start, last, running, part_end, parts: [0; PARTS], outlier: None }
    }

    /// Starts at TSC `now` of a TSC of `hz`.
    pub fn start(&mut self, now: u64, hz: u64) {
        *self = Self { hz: hz.max(1), start: now, last: now, part_end: now, ..Self::new() };
    }

    /// One beat.
    #[inline]
    pub fn beat(&mut self, now: u64, gaps: &Gaps) {
        // A TSC that went back gives no gap; the next beat counts from there.
        let gap = now.saturating_sub(self.last);
        self.last = now;
        self.running += gap.min(self.hz / RUNNING_PART);
        let [part, ..] = &self.parts;
        if gap > *part || now >= self.part_end || gap > gaps.line.load(Relaxed) {
            self.notice(now, gap, gaps);
        }
    }

    #[cold]
    fn notice(&mut self, now: u64, gap: u64, gaps: &Gaps) {
        // The noise is that of the second up to the gap's beginning, this gap left out.
        self.turn_parts(now.saturating_sub(gap));
        let noise = self.parts.iter().copied().max().unwrap_or(0);
        gaps.line.fetch_max(gap, Relaxed);
        if gap > gaps.max.load(Relaxed) {
            gaps.max.store(gap, Relaxed);
            gaps.noise.store(noise, Relaxed);
        }
        let settled = now.saturating_sub(gap).saturating_sub(self.start) >= self.hz;
        let large = gap > noise.saturating_mul(STANDS_OUT) && gap > self.hz / STANDS_OUT_PART;
        if settled && large && self.outlier.is_none_or(|old| gap > old.gap) {
            self.outlier = Some(Outlier { gap, noise });
        }
        self.turn_parts(now);
        let [part, ..] = &mut self.parts;
        *part = gap.max(*part);
    }

    /// Moves the window of the last second so that its newest part holds `time`.
    fn turn_parts(&mut self, time: u64) {
        let length = (self.hz / 10).max(1);
        let mut turns = 0;
        while time >= self.part_end && turns < PARTS {
            self.parts.rotate_right(1);
            let [newest, ..] = &mut self.parts;
            *newest = 0;
            self.part_end += length;
            turns += 1;
        }
        if time >= self.part_end {
            self.part_end = time + length;
        }
    }

    /// TSC of the last beat.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Cycles since the start in which the guest ran, as far as it can tell.
    pub fn running(&self) -> u64 {
        self.running
    }

    /// The largest gap that stood out since this was last asked.
    pub fn take_outlier(&mut self) -> Option<Outlier> {
        self.outlier.take()
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
#[path = "heartbeat_test.rs"]
mod tests;
