//! Dirty tracking of a domain: start, harvest, stop.

use std::ops::Range;

use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PageCount, mutant};

use crate::domain::Domain;
use crate::error::DomainError;
use crate::log::DirtyLog;
use crate::range;
use crate::space::Space;
use crate::sync::lock;

/// What one harvest found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HarvestStats {
    /// Pages whose D bit was taken, from leaves and from the log of unmapped pages.
    pub pages: PageCount,
    /// Of these, pages whose bit was not yet set in the caller's bitmap.
    pub fresh: PageCount,
    /// Of `pages`, those that had been unmapped meanwhile.
    pub unmapped: PageCount,
    /// How often the drain had to sleep for an access in flight.
    pub drain_sleeps: u64,
}

impl Domain {
    /// Begins to record which pages DMA writes to. From the return on each write is recorded;
    /// one that was in flight has ended. So: start, then copy everything, then harvest.
    ///
    /// # Errors
    /// `AlreadyTracking`. `Drain`: tracking is off again.
    pub fn start_tracking(&self) -> Result<(), DomainError> {
        let space = &*self.0;
        let mut upkeep = lock(&space.upkeep);
        if Space::tracks(space.state()) {
            return Err(DomainError::AlreadyTracking);
        }
        space.table.take_dirty(&(Gpa(0)..Gpa(space.end_of_width())), |_, _| {});
        upkeep.log.clear();
        space.advance(Some(true));
        if let Err(error) = space.drain(&mut upkeep) {
            space.advance(Some(false));
            return Err(error.into());
        }
        Ok(())
    }

    /// Stops recording and forgets what was not harvested. Idempotent.
    pub fn stop_tracking(&self) {
        let mut upkeep = lock(&self.0.upkeep);
        if Space::tracks(self.0.state()) {
            self.0.advance(Some(false));
            upkeep.log.clear();
        }
    }

    /// True between [`Self::start_tracking`] and [`Self::stop_tracking`].
    #[must_use]
    pub fn is_tracking(&self) -> bool {
        Space::tracks(self.0.state())
    }

    /// Takes the dirty state of `range`: clears its D bits and ORs the pages into `bitmap`, of
    /// which it clears nothing.
    ///
    /// Every write that ended before the call is in this harvest or an earlier one. When this
    /// returns `Ok`, every write to a page reported by now has either ended, so that a copy made
    /// from now on has it, or will be reported again.
    ///
    /// # Errors
    /// `Range`, `Bitmap`, `NotTracking`; then nothing changed. `Drain`: the pages are in the
    /// bitmap, but must not be copied before a later harvest has succeeded, of any range.
    pub fn read_and_clear_dirty(
        &self,
        range: Range<Gpa>,
        bitmap: &DirtyBitmap,
    ) -> Result<HarvestStats, DomainError> {
        let space = &*self.0;
        range::check(&range, space.config.address_bits)?;
        let mut upkeep = lock(&space.upkeep);
        if !Space::tracks(space.state()) {
            return Err(DomainError::NotTracking);
        }
        // Before any bit is cleared: what is cleared must have a place to go.
        check_covered(&range, bitmap)?;

        let upkeep = &mut *upkeep;
        let mut stats = HarvestStats::default();
        let mut refused = None;
        let mut put_back = DirtyLog::default();
        let mut report = |first: Gpa, bits: u64| {
            let pages = PageCount(u64::from(bits.count_ones()));
            match bitmap.or_mask(first, bits) {
                Ok(fresh) => {
                    stats.pages += pages;
                    stats.fresh += PageCount(fresh);
                    pages
                }
                Err(error) => {
                    put_back.set_mask(first, bits);
                    refused = Some(error);
                    PageCount(0)
                }
            }
        };
        space.table.take_dirty(&range, |first, bits| {
            report(first, bits);
        });
        let mut unmapped = PageCount(0);
        upkeep.log.take(&range, |first, bits| unmapped += report(first, bits));
        stats.unmapped = unmapped;
        if let Some(error) = refused {
            upkeep.log.append(put_back);
            upkeep.drain_owed = true;
            return Err(error.into());
        }

        // Nothing taken: no page's copy depends on an access in flight now. One that sets a D bit
        // from here on is in the next harvest, which waits for it.
        if stats.pages != PageCount(0) || upkeep.drain_owed {
            if !mutant!("iotlb-stale") {
                space.advance(None);
            }
            if !mutant!("copy-before-drain") {
                stats.drain_sleeps = space.drain(upkeep)?;
            }
        }
        Ok(stats)
    }

    /// Marks the mapped pages of `range` dirty, as a write by DMA would. Unmapped ones are left
    /// out. Does nothing unless tracking is on.
    ///
    /// # Errors
    /// `Range`.
    pub fn mark_dirty(&self, range: Range<Gpa>) -> Result<(), DomainError> {
        let space = &*self.0;
        range::check(&range, space.config.address_bits)?;
        let _upkeep = lock(&space.upkeep);
        if Space::tracks(space.state()) {
            space.table.mark_dirty(&range);
        }
        Ok(())
    }
}

/// Refuses a bitmap in which a page of the range would have no bit.
fn check_covered(range: &Range<Gpa>, bitmap: &DirtyBitmap) -> Result<(), DomainError> {
    if bitmap.covers(range) {
        return Ok(());
    }
    let covered = bitmap.range();
    Err(DomainError::Bitmap(BitmapError::Outside {
        start: range.start,
        end: range.end,
        covered_start: covered.start,
        covered_end: covered.end,
    }))
}
