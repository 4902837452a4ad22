//! The harvest: what writes have dirtied goes to the caller's bitmap.

use std::ops::Range;

use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PageCount, mutant};

use crate::dirty::Report;
use crate::domain::Domain;
use crate::error::DomainError;
use crate::log::DirtyLog;
use crate::range;
use crate::retire::pages;
use crate::space::Space;
use crate::sync::lock;
use crate::tree::with;

/// What one harvest found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HarvestStats {
    /// Pages whose D bit was taken, from leaves and from the log of unmapped pages.
    pub pages: PageCount,
    /// Of these, pages whose bit was not yet set in the caller's bitmap.
    pub fresh: PageCount,
    /// Of `pages`, those whose leaf had been unmapped or merged meanwhile.
    pub unmapped: PageCount,
    /// Of `pages`, those reported because they share a large leaf with a page written to.
    pub large: PageCount,
    /// Entries looked at.
    pub entries: u64,
    /// How often the drain had to sleep for an access in flight.
    pub drain_sleeps: u64,
}

impl Domain {
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
        // The store that clears a D bit is a plain one: it needs the lock.
        let _held = (!mutant!("clear-plain-store")).then(|| space.hold(&range));
        if !space.state().tracks() {
            return Err(DomainError::NotTracking);
        }
        // Before any bit is cleared: what is cleared must have a place to go.
        check_covered(&range, bitmap)?;
        let mut stats = HarvestStats::default();
        if space.debts.is_owed() {
            stats.drain_sleeps += space.settle()?;
        }
        if mutant!("harvest-before-invalidate") {
            space.settle()?;
        }
        take(space, &range, bitmap, &mut stats)?;

        // Nothing taken: no page's copy depends on an access in flight now. One that sets a D bit
        // from here on is in the next harvest, which waits for it.
        if stats.pages != PageCount(0) && !mutant!("harvest-before-invalidate") {
            if mutant!("copy-before-drain") {
                space.advance();
            } else if mutant!("iotlb-stale") {
                stats.drain_sleeps += space.wait_for_accesses()?;
            } else {
                stats.drain_sleeps += space.settle()?;
            }
        }
        with!(space.tree, stage => {
            stage.tally.harvests.add(1);
            stage.tally.pages.add(stats.pages.0);
            stage.tally.entries.add(stats.entries);
            if stage.tally.splits_on_write.get() != 0 {
                stage.arena.reserve(u32::try_from(space.reserve.get()).unwrap_or(0));
            }
        });
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
        let _held = space.hold(&range);
        let state = space.state();
        if state.tracks() {
            with!(space.tree, stage => {
                if state.splits() && stage.cut(&range).is_err() {
                    stage.tally.coarse.add(1);
                }
                stage.mark_dirty(&range);
            });
        }
        Ok(())
    }

    /// ORs every mapped page of `range` that a device may write to into `bitmap`, whether anyone
    /// tracks or not: what has to be taken for dirty where nothing records writes. Returns how many
    /// pages that are.
    ///
    /// # Errors
    /// `Range`, `Bitmap`; then no bit was set.
    pub fn mapped_writable(
        &self,
        range: Range<Gpa>,
        bitmap: &DirtyBitmap,
    ) -> Result<PageCount, DomainError> {
        let space = &*self.0;
        range::check(&range, space.config.address_bits)?;
        check_covered(&range, bitmap)?;
        let _held = space.hold(&range);
        let (mut pages, mut refused) = (0, Ok(0));
        with!(space.tree, stage => stage.writable(&range, &mut |first, bits| {
            pages += u64::from(bits.count_ones());
            refused = refused.and(bitmap.or_mask(first, bits));
        }));
        refused?;
        Ok(PageCount(pages))
    }
}

/// Moves the dirty state of a range that is held to the bitmap.
fn take(
    space: &Space,
    range: &Range<Gpa>,
    bitmap: &DirtyBitmap,
    stats: &mut HarvestStats,
) -> Result<(), DomainError> {
    let mut into = Target { bitmap, stats, refused: None, log: DirtyLog::default() };
    let protect = space.state().protects();
    with!(space.tree, stage => {
        let mut at = range.start.0;
        while let Some((unit, part)) = stage.next_unit(at, range.end.0) {
            at = part.end;
            stage.take_dirty(&unit, part, protect, &mut into);
        }
    });
    lock(&space.log).take(range, |first, bits| {
        into.stats.unmapped += PageCount(u64::from(bits.count_ones()));
        into.pages(first, bits);
    });
    let Target { refused, log, .. } = into;
    space.log_dirty(log);
    if let Some(error) = refused {
        // What is in the bitmap must not be copied yet.
        space.settle()?;
        return Err(error.into());
    }
    Ok(())
}

/// The caller's bitmap, and what has no place there.
struct Target<'a> {
    bitmap: &'a DirtyBitmap,
    stats: &'a mut HarvestStats,
    refused: Option<BitmapError>,
    /// Pages that the next harvest is to take.
    log: DirtyLog,
}

impl Target<'_> {
    fn took(&mut self, pages: u64, fresh: u64) {
        self.stats.pages += PageCount(pages);
        self.stats.fresh += PageCount(fresh);
    }

    fn keep(&mut self, first: u64, bytes: u64) {
        pages(first, bytes, &mut |first, bits| self.log.set_mask(first, bits));
    }
}

impl Report for Target<'_> {
    fn pages(&mut self, first: Gpa, bits: u64) {
        match self.bitmap.or_mask(first, bits) {
            Ok(fresh) => self.took(u64::from(bits.count_ones()), fresh),
            Err(error) => {
                self.log.set_mask(first, bits);
                self.refused = Some(error);
            }
        }
    }

    fn leaf(&mut self, part: Range<Gpa>, whole: Range<Gpa>) {
        // Pages of the leaf that were not asked for are somebody else's to take.
        self.keep(whole.start.0, part.start.0 - whole.start.0);
        self.keep(part.end.0, whole.end.0 - part.end.0);
        match self.bitmap.or_range(part.clone()) {
            Ok(fresh) => {
                let pages = part.end.page() - part.start.page();
                self.stats.large += PageCount(pages);
                self.took(pages, fresh);
            }
            Err(error) => {
                self.keep(part.start.0, part.end.0 - part.start.0);
                self.refused = Some(error);
            }
        }
    }

    fn looked_at(&mut self, entries: u64) {
        self.stats.entries += entries;
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
