//! Where a provider puts what it found.

use std::ops::Range;

use drogher_iommu_types::{DirtyBitmap, Gpa, PageCount};

use crate::bits::{meet, move_bits};
use crate::page_size::TrackingPageSize;
use crate::provider::{HarvestStats, ProviderError};

/// The bitmaps of one harvest: the caller's, and two of the address space that all its providers
/// share, so that a provider needs none of its own and a harvest allocates nothing.
pub struct Sink<'a> {
    range: Range<Gpa>,
    ram: &'a [Range<Gpa>],
    into: &'a DirtyBitmap,
    rest: &'a DirtyBitmap,
    scratch: &'a DirtyBitmap,
}

impl<'a> Sink<'a> {
    /// For a harvest of `range` into `into`, which covers it. What a tracking page that is only in
    /// part inside `range` says about the other part goes to `rest`, for the next harvest.
    /// `scratch` is clean and stays so; `rest` and `scratch` cover `ram`, which is sorted.
    pub fn new(
        range: Range<Gpa>,
        ram: &'a [Range<Gpa>],
        into: &'a DirtyBitmap,
        rest: &'a DirtyBitmap,
        scratch: &'a DirtyBitmap,
    ) -> Self {
        Self { range, ram, into, rest, scratch }
    }

    /// The range asked for, of whole pages.
    #[must_use]
    pub fn range(&self) -> &Range<Gpa> {
        &self.range
    }

    /// The caller's bitmap, to be ORed into, inside [`Self::range`] only.
    #[must_use]
    pub fn bitmap(&self) -> &'a DirtyBitmap {
        self.into
    }

    /// Takes a report in tracking pages of `size`.
    ///
    /// `read(range, bitmap)` is asked for the range grown to whole tracking pages, and sets at
    /// least one bit of each that is dirty. All the 4 KiB bits of these are reported, as far as
    /// there is RAM. If it fails, what it had set is reported all the same.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn widened(
        &self,
        size: TrackingPageSize,
        read: impl FnOnce(&Range<Gpa>, &DirtyBitmap) -> Result<(), ProviderError>,
    ) -> Result<HarvestStats, ProviderError> {
        let result = read(&size.grow(&self.range, &self.scratch.range()), self.scratch);
        let moved = self.distribute(size);
        // Bits where there is no RAM have no page to be sent.
        self.scratch.clear_range(self.scratch.range())?;
        result.and(moved)
    }

    fn distribute(&self, size: TrackingPageSize) -> Result<HarvestStats, ProviderError> {
        size.widen(self.scratch)?;
        let mut pages = PageCount(0);
        for piece in self.ram {
            pages += move_bits(self.scratch, &meet(piece, &self.range), self.into)?;
            move_bits(self.scratch, piece, self.rest)?;
        }
        Ok(pages.into())
    }
}
