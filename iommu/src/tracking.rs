//! Dirty tracking of a domain: start, stop, and how.

use drogher_iommu_types::PageCount;

use crate::dirty::Forget;
use crate::domain::Domain;
use crate::error::DomainError;
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
}
