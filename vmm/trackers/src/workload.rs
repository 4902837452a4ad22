//! A sample of what devices do.

use std::ops::Range;

use drogher_iommu::{Domain, Requester};
use drogher_iommu_types::{DirtyBitmap, Gpa, PAGE_SIZE, PageCount};
use drogher_tracking::TrackingPageSize;

use crate::error::TrackersError;

/// What devices have pinned for writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pinned {
    /// Pages.
    pub pages: PageCount,
    /// Ranges.
    pub ranges: u64,
}

/// What the devices of one address space did for a time. The costs that are predicted from it are
/// those of a round of that length: sample for as long as a round is expected to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Workload {
    /// Accesses.
    pub accesses: u64,
    /// Bytes written.
    pub bytes: u64,
    /// The pages written, by number: runs as long as they can be, in rising order.
    pub written: Vec<Range<u64>>,
    /// What was pinned, for devices that write to pinned memory; none if there are none.
    pub pinned: Option<Pinned>,
}

impl Workload {
    /// From the dirty bitmap of the time.
    #[must_use]
    pub fn new(accesses: u64, bytes: u64, dirty: &DirtyBitmap, pinned: Option<Pinned>) -> Self {
        let pages = |run: Range<Gpa>| run.start.page()..run.end.page();
        Self { accesses, bytes, written: dirty.runs().map(pages).collect(), pinned }
    }

    /// Samples `requesters` of `domain`, which must not be tracking, while `wait` runs: records by D
    /// bits, in `range`. Tracking is off again afterwards.
    ///
    /// # Errors
    /// The domain's, or that of `wait`.
    pub fn sample(
        domain: &Domain,
        requesters: &[Requester],
        range: Range<Gpa>,
        pinned: Option<Pinned>,
        wait: impl FnOnce() -> Result<(), TrackersError>,
    ) -> Result<Self, TrackersError> {
        let dirty = DirtyBitmap::new(range.clone())?;
        let so_far = || {
            let stats = requesters.iter().map(Requester::stats);
            stats.fold((0, 0), |(n, bytes), one| (n + one.accesses, bytes + one.bytes_written))
        };
        domain.start_tracking()?;
        let before = so_far();
        let waited = wait();
        let after = so_far();
        let harvested = domain.read_and_clear_dirty(range, &dirty);
        domain.stop_tracking();
        waited?;
        harvested?;
        Ok(Self::new(after.0 - before.0, after.1 - before.1, &dirty, pinned))
    }

    /// Pages of 4 KiB written.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        PageCount(self.written.iter().map(|run| run.end - run.start).sum())
    }

    /// Tracking pages of this size written.
    #[must_use]
    pub fn tracking_pages(&self, size: TrackingPageSize) -> u64 {
        let (mut count, mut next) = (0, 0);
        for run in self.written.iter().filter(|run| !run.is_empty()) {
            // The last of the run before may be the first of this one.
            let first = (run.start / size.pages()).max(next);
            let end = (run.end - 1) / size.pages() + 1;
            count += end.saturating_sub(first);
            next = next.max(end);
        }
        count
    }

    /// Pages of 4 KiB that a tracker with pages of this size would report, as far as there are
    /// `ram` pages.
    #[must_use]
    pub fn reported(&self, size: TrackingPageSize, ram: PageCount) -> PageCount {
        PageCount((self.tracking_pages(size) * size.pages()).min(ram.0)).max(self.pages())
    }

    /// Writes, counting one that is longer than a page for each of its pages; one for each page
    /// written at least, where nobody has counted.
    #[must_use]
    pub fn page_writes(&self) -> u64 {
        self.accesses.max(self.bytes / PAGE_SIZE).max(self.pages().0)
    }
}

#[cfg(test)]
#[path = "workload_test.rs"]
mod tests;
