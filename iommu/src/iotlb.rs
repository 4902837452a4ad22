//! One slot's cache of translations.

use drogher_iommu_types::{Gpa, Oa, PAGE_MASK};

use crate::sync::{AtomicU64, IOTLB_ENTRIES, Ordering};

/// The cached translation may be read through.
pub(crate) const READ: u64 = 1;
/// It may be written through: writing is allowed, and the D bit is set or nobody tracks.
pub(crate) const WRITE: u64 = 2;

/// Where a byte of IOVA goes: in the address space, and in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) gpa: Gpa,
    pub(crate) output: Oa,
}

impl Target {
    /// So many bytes on, inside the page.
    #[inline]
    pub(crate) fn plus(self, bytes: u64) -> Self {
        Self { gpa: Gpa(self.gpa.0 + bytes), output: Oa(self.output.0 + bytes) }
    }

    /// True if `other` is `bytes` further on, both in the address space and in memory.
    #[inline]
    pub(crate) fn goes_on_at(self, bytes: u64, other: Self) -> bool {
        self.output.0 + bytes == other.output.0 && self.gpa.0 + bytes == other.gpa.0
    }
}

/// Direct mapped, whole translations (IOVA to OA). Only the claimant of the slot touches it.
///
/// Every entry carries the domain's state word (generation and whether it tracks) that its access
/// had read when it walked; any change of that word makes all entries stale at once.
pub(crate) struct Iotlb {
    entries: [Entry; IOTLB_ENTRIES],
}

#[repr(align(32))]
struct Entry {
    /// IOVA of the page in 63:12, flags below. 0: nothing.
    tag: AtomicU64,
    state: AtomicU64,
    output: AtomicU64,
    gpa: AtomicU64,
}

impl Iotlb {
    pub(crate) fn new() -> Self {
        let entry = |_| Entry {
            tag: AtomicU64::new(0),
            state: AtomicU64::new(0),
            output: AtomicU64::new(0),
            gpa: AtomicU64::new(0),
        };
        Self { entries: std::array::from_fn(entry) }
    }

    /// Where `page` (an IOVA, page aligned) goes, if that was cached under `state` for all of
    /// `need`.
    #[inline]
    pub(crate) fn lookup(&self, page: u64, state: u64, need: u64) -> Option<Target> {
        let entry = self.entry(page);
        let tag = entry.tag.load(Ordering::Relaxed);
        let hit = tag & !PAGE_MASK == page
            && tag & need == need
            && entry.state.load(Ordering::Relaxed) == state;
        hit.then(|| Target {
            gpa: Gpa(entry.gpa.load(Ordering::Relaxed)),
            output: Oa(entry.output.load(Ordering::Relaxed)),
        })
    }

    /// Caches where `page` goes and what `flags` it may be used for.
    pub(crate) fn fill(&self, page: u64, state: u64, flags: u64, target: Target) {
        let entry = self.entry(page);
        entry.tag.store(page | flags, Ordering::Relaxed);
        entry.state.store(state, Ordering::Relaxed);
        entry.output.store(target.output.0, Ordering::Relaxed);
        entry.gpa.store(target.gpa.0, Ordering::Relaxed);
    }

    #[inline]
    fn entry(&self, page: u64) -> &Entry {
        const { assert!(IOTLB_ENTRIES.is_power_of_two()) };
        // The remainder fits, whatever the width of usize.
        let index = (page >> drogher_iommu_types::PAGE_SHIFT) as usize % IOTLB_ENTRIES;
        &self.entries[index]
    }
}
