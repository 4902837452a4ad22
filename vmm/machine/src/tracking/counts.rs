//! What the harvests of one address space have found in one migration.

use std::sync::atomic::{AtomicU64, Ordering};

use drogher_tracking::SpaceHarvest;

/// Pages and harvests, counted up; any thread may read.
#[derive(Debug, Default)]
pub struct Counts {
    /// Pages that trackers reported.
    pub(super) tracked: AtomicU64,
    /// Pages reported because a device could write anywhere, or a tracker had failed.
    pub(super) wide: AtomicU64,
    /// Pages that an earlier narrowing had left to report.
    pub(super) carried: AtomicU64,
    /// Harvests, one for each range of RAM.
    pub(super) harvests: AtomicU64,
}

impl Counts {
    /// Back to nothing, when tracking starts.
    pub(super) fn reset(&self) {
        for count in [&self.tracked, &self.wide, &self.carried, &self.harvests] {
            count.store(0, Ordering::Relaxed);
        }
    }

    pub(super) fn add(&self, harvest: &SpaceHarvest) {
        self.tracked.fetch_add(harvest.tracked.pages.0, Ordering::Relaxed);
        self.wide.fetch_add(harvest.wide.map_or(0, |pages| pages.0), Ordering::Relaxed);
        self.carried.fetch_add(harvest.carried.0, Ordering::Relaxed);
        self.harvests.fetch_add(1, Ordering::Relaxed);
    }
}
