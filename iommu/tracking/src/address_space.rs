//! What tracking needs of an address space.

use std::ops::Range;

use drogher_iommu::{Domain, DomainError, TrackConfig};
use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PageCount};

use crate::provider::HarvestStats;

pub use drogher_iommu::TrackMode;

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
    fn supports(&self, _: TrackMode) -> bool {
        true
    }

    fn start_tracking(&self, mode: TrackMode) -> Result<(), AddressSpaceError> {
        Ok(self.start_tracking_with(TrackConfig { mode, ..TrackConfig::default() })?)
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
        Ok(Self::mapped_writable(self, range.clone(), into)?)
    }

    fn unmap(&self, range: &Range<Gpa>) -> Result<PageCount, AddressSpaceError> {
        Ok(Self::unmap(self, range.clone())?)
    }

    fn drain(&self) -> Result<(), AddressSpaceError> {
        Ok(self.invalidate().map_err(DomainError::from)?)
    }
}
