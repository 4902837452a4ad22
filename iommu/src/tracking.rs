//! Dirty tracking of a domain: start, harvest, stop.

use std::ops::Range;

use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PageCount, mutant};

use crate::dirty::{Forget, Report};
use crate::domain::Domain;
use crate::error::DomainError;
use crate::log::DirtyLog;
use crate::range;
use crate::retire::pages;
use crate::space::Space;
use crate::state;
use crate::sync::lock;
use crate::tree::with;

/// How a write is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrackMode {
    /// The walk sets the leaf's D bit, as hardware does.
    #[default]
    DBits,
    /// Clean leaves are protected; the first write to one faults, and the fault's handler records
    /// it and allows writing. Same result, one fault a page and harvest.
    WriteFault,
}

/// What tracking does about large leaves, of which any write would dirty the whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SplitPolicy {
    /// Splits all of them at the start, and maps none while it is on.
    #[default]
    Eager,
    /// The first write to one splits it. If no table is to be had in time the leaf stays, and all
    /// of it counts as written ([`TrackStats::coarse`]).
    OnFirstWrite,
    /// Leaves them: a write to one is reported as a write to all of it.
    Never,
}

/// How to track.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackConfig {
    /// How a write is recorded.
    pub mode: TrackMode,
    /// What becomes of large leaves.
    pub split: SplitPolicy,
    /// Tables made ready at the start and after each harvest, so that a write that splits need not
    /// wait for memory. Only for [`SplitPolicy::OnFirstWrite`].
    pub reserve: u32,
}

impl Default for TrackConfig {
    /// D bits, split at the start.
    fn default() -> Self {
        Self { mode: TrackMode::default(), split: SplitPolicy::default(), reserve: RESERVE }
    }
}

const RESERVE: u32 = 64;

impl TrackConfig {
    fn state(self) -> u64 {
        let mode = match self.mode {
            TrackMode::DBits => 0,
            TrackMode::WriteFault => state::PROTECTS,
        };
        let split = match self.split {
            SplitPolicy::Eager => state::SPLITS | state::SMALL,
            SplitPolicy::OnFirstWrite => state::SPLITS,
            SplitPolicy::Never => 0,
        };
        state::TRACKING | mode | split
    }
}

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

/// What tracking has cost since it was last started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackStats {
    /// Harvests.
    pub harvests: u64,
    /// Pages that they reported.
    pub pages: PageCount,
    /// Entries that they looked at.
    pub entries: u64,
    /// First writes to a protected leaf. 0 with [`TrackMode::DBits`].
    pub faults: u64,
    /// Large leaves split, one level each.
    pub splits: u64,
    /// Of these, those that a write had to wait for.
    pub splits_on_write: u64,
    /// Tables merged to a large leaf.
    pub merges: u64,
    /// Large leaves marked dirty whole although they were to be split: no table was to be had.
    pub coarse: u64,
}

impl Domain {
    /// [`Self::start_tracking_with`] the default: D bits, exact to 4 KiB.
    ///
    /// # Errors
    /// As there.
    pub fn start_tracking(&self) -> Result<(), DomainError> {
        self.start_tracking_with(TrackConfig::default())
    }

    /// Begins to record which pages DMA writes to. From the return on each write is recorded;
    /// one that was in flight has ended. So: start, then copy everything, then harvest.
    ///
    /// # Errors
    /// `AlreadyTracking`. `SplitLimit`, `Drain`: tracking is off.
    pub fn start_tracking_with(&self, config: TrackConfig) -> Result<(), DomainError> {
        let space = &*self.0;
        let everything = space.everything();
        let _held = space.hold(&everything);
        if space.state().tracks() {
            return Err(DomainError::AlreadyTracking);
        }
        if space.debts.is_waiting() {
            space.settle()?;
        }
        let protect = config.mode == TrackMode::WriteFault;
        with!(space.tree, stage => {
            stage.tally.reset();
            if config.split == SplitPolicy::Eager {
                stage.split_all(&everything).map_err(|leaf| {
                    self.merge_later();
                    DomainError::SplitLimit { leaf, limit: stage.arena.limit() }
                })?;
            }
            if config.split == SplitPolicy::OnFirstWrite {
                stage.arena.reserve(config.reserve);
            }
            let mut at = everything.start.0;
            while let Some((unit, part)) = stage.next_unit(at, everything.end.0) {
                at = part.end;
                stage.take_dirty(&unit, part, false, &mut Forget);
            }
            if protect {
                stage.set_protection(&everything, true);
            }
        });
        lock(&space.log).clear();
        space.reserve.store(u64::from(config.reserve));
        space.set_mode(config.state());
        if let Err(error) = space.settle() {
            space.set_mode(0);
            self.end_tracking(protect);
            return Err(error.into());
        }
        Ok(())
    }

    /// Stops recording and forgets what was not harvested. What was split is merged again, as far
    /// as it can be. Idempotent. Waits for no access in flight.
    pub fn stop_tracking(&self) {
        let space = &*self.0;
        let _held = space.hold(&space.everything());
        let state = space.state();
        if state.tracks() {
            space.set_mode(0);
            self.end_tracking(state.protects());
        }
    }

    /// With everything held, tracking off.
    fn end_tracking(&self, protected: bool) {
        let space = &*self.0;
        if protected {
            with!(space.tree, stage => stage.set_protection(&space.everything(), false));
        }
        lock(&space.log).clear();
        self.merge_later();
    }

    /// Merges everything; the next drain gives the tables back. With everything held.
    fn merge_later(&self) {
        let space = &*self.0;
        let rules = space.merge_rules();
        let retired = with!(space.tree, stage => stage.merge_all(&space.everything(), rules));
        space.debts.owe(retired, None);
    }

    /// Changes how writes are recorded while tracking is on. Loses nothing, and what is dirty stays
    /// dirty.
    ///
    /// # Errors
    /// `NotTracking`.
    pub fn set_track_mode(&self, mode: TrackMode) -> Result<(), DomainError> {
        let space = &*self.0;
        let everything = space.everything();
        let _held = space.hold(&everything);
        let state = space.state();
        if !state.tracks() {
            return Err(DomainError::NotTracking);
        }
        let protect = mode == TrackMode::WriteFault;
        if state.protects() != protect {
            // Nothing hangs on the order: a write records by what it finds in the leaf.
            space.set_mode((state.0 & state::MODE) ^ state::PROTECTS);
            with!(space.tree, stage => stage.set_protection(&everything, protect));
        }
        Ok(())
    }

    /// True between [`Self::start_tracking`] and [`Self::stop_tracking`].
    #[must_use]
    pub fn is_tracking(&self) -> bool {
        self.0.state().tracks()
    }

    /// What tracking has cost so far. Waits for nothing.
    #[must_use]
    pub fn track_stats(&self) -> TrackStats {
        let tally = with!(self.0.tree, stage => &stage.tally);
        TrackStats {
            harvests: tally.harvests.get(),
            pages: PageCount(tally.pages.get()),
            entries: tally.entries.get(),
            faults: tally.faults.get(),
            splits: tally.splits.get(),
            splits_on_write: tally.splits_on_write.get(),
            merges: tally.merges.get(),
            coarse: tally.coarse.get(),
        }
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
