//! What tracking has done, counted where it happens: always off the IOTLB hit path.

use crate::sync::{AtomicU64, Ordering};

/// Counters since tracking was last started.
#[derive(Default)]
pub(crate) struct Tally {
    /// First writes that were caught.
    pub(crate) faults: Counter,
    /// Large leaves that became tables.
    pub(crate) splits: Counter,
    /// Of these, those that a write had to wait for.
    pub(crate) splits_on_write: Counter,
    /// Tables that became large leaves.
    pub(crate) merges: Counter,
    /// Large leaves marked dirty as a whole where a split was wanted.
    pub(crate) coarse: Counter,
    pub(crate) harvests: Counter,
    pub(crate) pages: Counter,
    pub(crate) entries: Counter,
}

/// A counter that orders nothing.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn store(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

impl Tally {
    pub(crate) fn reset(&self) {
        for counter in [
            &self.faults,
            &self.splits,
            &self.splits_on_write,
            &self.merges,
            &self.coarse,
            &self.harvests,
            &self.pages,
            &self.entries,
        ] {
            counter.store(0);
        }
    }
}
