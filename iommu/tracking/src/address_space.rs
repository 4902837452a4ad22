//! What tracking needs of an address space.

use std::ops::Range;

use drogher_iommu::{Domain, DomainError};
use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PAGE_SIZE, PageCount};

use crate::provider::HarvestStats;

/// How a domain records writes. It has one way at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackMode {
    /// The walk sets the leaf's D bit.
    DBits,
    /// Leaves are write-protected; the first write after a clear takes the slow path.
    WriteFault,
}

/// Why an address space did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddressSpaceError {
    /// This address space cannot record that way.
    #[error("The address space cannot record writes by {mode:?}")]
    Mode {
        /// As asked for.
        mode: TrackMode,
    },
    /// The domain refused.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// The bitmap has no place for a page.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
}

/// The second stage that the devices of one address space share.
///
/// Any thread may call anything. Whatever waits does so for a bounded time.
pub trait AddressSpace: Send + Sync {
    /// True if it can record that way.
    fn supports(&self, mode: TrackMode) -> bool;

    /// Begins to record: from the return on every write is recorded, and one that was in flight
    /// has ended.
    ///
    /// # Errors
    /// `Mode`, or it records already; then nothing changed.
    fn start_tracking(&self, mode: TrackMode) -> Result<(), AddressSpaceError>;

    /// Ends recording and forgets what was not harvested. Idempotent.
    fn stop_tracking(&self);

    /// Takes what was written in `range` and ORs it into `into`. When this returns `Ok`, the writes
    /// that it reports have ended.
    ///
    /// # Errors
    /// Bits may have been lost, and reported writes may still be in flight.
    fn read_and_clear_dirty(
        &self,
        range: &Range<Gpa>,
        into: &DirtyBitmap,
    ) -> Result<HarvestStats, AddressSpaceError>;

    /// ORs every page of `range` that is mapped and that devices may write to into `into`; returns
    /// how many those are.
    ///
    /// # Errors
    /// Pages may be missing.
    fn mapped_writable(
        &self,
        range: &Range<Gpa>,
        into: &DirtyBitmap,
    ) -> Result<PageCount, AddressSpaceError>;

    /// Unmaps; when this returns `Ok`, no write to the range is in flight.
    ///
    /// # Errors
    /// The range, or an access that did not end.
    fn unmap(&self, range: &Range<Gpa>) -> Result<PageCount, AddressSpaceError>;

    /// Waits until every access that is in flight now has ended.
    ///
    /// # Errors
    /// One did not, in its time.
    fn drain(&self) -> Result<(), AddressSpaceError>;
}

impl AddressSpace for Domain {
    fn supports(&self, mode: TrackMode) -> bool {
        mode == TrackMode::DBits
    }

    fn start_tracking(&self, mode: TrackMode) -> Result<(), AddressSpaceError> {
        match mode {
            TrackMode::DBits => Ok(Self::start_tracking(self)?),
            TrackMode::WriteFault => Err(AddressSpaceError::Mode { mode }),
        }
    }

    fn stop_tracking(&self) {
        Self::stop_tracking(self);
    }

    fn read_and_clear_dirty(
        &self,
        range: &Range<Gpa>,
        into: &DirtyBitmap,
    ) -> Result<HarvestStats, AddressSpaceError> {
        let stats = Self::read_and_clear_dirty(self, range.clone(), into)?;
        Ok(HarvestStats { pages: stats.pages, drain_sleeps: stats.drain_sleeps })
    }

    fn mapped_writable(
        &self,
        range: &Range<Gpa>,
        into: &DirtyBitmap,
    ) -> Result<PageCount, AddressSpaceError> {
        let mut pages = PageCount(0);
        let mut at = range.start;
        while at < range.end {
            let mut mask = 0;
            for bit in 0..64 {
                let page = Gpa(at.0 + bit * PAGE_SIZE);
                let inside = page < range.end;
                if inside && self.resolve(page).is_some_and(|(_, perm)| perm.write) {
                    mask |= 1 << bit;
                }
            }
            into.or_mask(at, mask)?;
            pages += PageCount(mask.count_ones().into());
            at = Gpa(at.0 + 64 * PAGE_SIZE);
        }
        Ok(pages)
    }

    fn unmap(&self, range: &Range<Gpa>) -> Result<PageCount, AddressSpaceError> {
        Ok(Self::unmap(self, range.clone())?)
    }

    fn drain(&self) -> Result<(), AddressSpaceError> {
        Ok(self.invalidate().map_err(DomainError::from)?)
    }
}
