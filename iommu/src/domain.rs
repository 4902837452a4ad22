//! One address space: its second stage, its requesters, its dirty state.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, Oa, PageCount, Rid, mutant};

use crate::arena::Allocation;
use crate::drain::{DrainError, drain};
use crate::error::DomainError;
use crate::fault::{FaultLog, FaultSummary};
use crate::log::DirtyLog;
use crate::memory::Memory;
use crate::range;
use crate::requester::{DRAIN_DEADLINE, Requester, Shared};
use crate::spec::{Perm, second_stage as spec};
use crate::stage1::{Bypass, Stage1};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crate::table::SecondStage;

/// Bit 0 of the state word: D bits are recorded. The bits above are the generation.
const TRACKING: u64 = 1;
const GENERATION: u64 = 2;

/// What a domain may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// Address width of GPA in bits, 13 to 48.
    pub address_bits: u32,
    /// Tables of 4 KiB that the second stage may have. One holds 2 MiB of GPA.
    pub table_limit: u32,
    /// How long one operation waits for accesses in flight, and an access for a free slot.
    pub drain_deadline: Duration,
    /// Faults kept in the log.
    pub fault_log: usize,
}

impl Default for DomainConfig {
    /// 48 bits, tables for 512 GiB of GPA, 2 s, 256 faults.
    fn default() -> Self {
        Self {
            address_bits: spec::WIDTH,
            table_limit: 1 << 18,
            drain_deadline: DRAIN_DEADLINE,
            fault_log: 256,
        }
    }
}

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

/// What a domain holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainStats {
    /// Pages mapped.
    pub mapped: PageCount,
    /// Tables in use, the root included.
    pub tables: u64,
    /// Changes that made every cached translation stale.
    pub generation: u64,
    /// Times that any drain slept for an access in flight, counted when it goes to sleep.
    pub drain_sleeps: u64,
}

/// An address space that devices are attached to. A clone is another handle to the same one.
///
/// Any thread may call anything. `map`, `unmap`, `invalidate`, tracking and harvest exclude one
/// another; DMA runs beside all of them. Whoever waits does so for at most the configured deadline
/// (once for each operation queued before it).
#[derive(Clone)]
pub struct Domain(pub(crate) Arc<Space>);

/// What a domain's handles and requesters share.
pub(crate) struct Space {
    table: SecondStage,
    state: AtomicU64,
    drain_sleeps: AtomicU64,
    memory: Arc<dyn Memory>,
    faults: FaultLog,
    config: DomainConfig,
    upkeep: Mutex<Upkeep>,
    requesters: Mutex<Vec<Weak<Shared>>>,
}

/// What only one thread at a time may change.
struct Upkeep {
    allocation: Allocation,
    /// Dirty pages whose leaf an unmap took.
    log: DirtyLog,
    mapped: u64,
    /// A drain failed: what it was to wait for may still be in flight.
    drain_owed: bool,
}

impl Domain {
    /// An empty domain over `memory`.
    ///
    /// # Errors
    /// `Width`, `BadTableLimit`.
    pub fn new(memory: Arc<dyn Memory>, config: DomainConfig) -> Result<Self, DomainError> {
        let bits = config.address_bits;
        if !(13..=spec::WIDTH).contains(&bits) {
            return Err(DomainError::Width { bits });
        }
        let limit = config.table_limit;
        if !(4..=1 << 28).contains(&limit) {
            return Err(DomainError::BadTableLimit { limit });
        }
        let mut allocation = Allocation::default();
        let table = SecondStage::new(limit, &mut allocation);
        Ok(Self(Arc::new(Space {
            table,
            // Not 0, which is what an empty IOTLB entry holds.
            state: AtomicU64::new(GENERATION),
            drain_sleeps: AtomicU64::new(0),
            memory,
            faults: FaultLog::new(config.fault_log),
            config,
            upkeep: Mutex::new(Upkeep {
                allocation,
                log: DirtyLog::default(),
                mapped: 0,
                drain_owed: false,
            }),
            requesters: Mutex::new(Vec::new()),
        })))
    }

    /// Maps `gpa`, in which nothing may be mapped yet, to memory from `oa` on.
    ///
    /// A new mapping is not dirty: dirty state is about writes by DMA. An empty range is allowed.
    ///
    /// # Errors
    /// `Range`, `NoPermission`, `OutputMisaligned`, `OutputBeyondMemory`, `Overlap`; then nothing
    /// changed. `TableLimit`: likewise, what was mapped before it is unmapped again. `Drain`, if
    /// that last step could not be drained.
    pub fn map(&self, gpa: Range<Gpa>, oa: Oa, perm: Perm) -> Result<(), DomainError> {
        let space = &*self.0;
        range::check(&gpa, space.config.address_bits)?;
        if !perm.read && !perm.write {
            return Err(DomainError::NoPermission { gpa: gpa.start });
        }
        if !oa.is_page_aligned() {
            return Err(DomainError::OutputMisaligned { oa });
        }
        let (len, size) = (gpa.end.0 - gpa.start.0, space.memory.len());
        if oa.checked_add(len).is_none_or(|end| end.0 > size.min(spec::OUTPUT_END)) {
            return Err(DomainError::OutputBeyondMemory { oa, len, size });
        }
        let mut upkeep = lock(&space.upkeep);
        if let Some((gpa, leaf)) = space.table.first_mapped(&gpa) {
            return Err(DomainError::Overlap { gpa, oa: spec::output(leaf) });
        }
        let upkeep = &mut *upkeep;
        match space.table.map(&mut upkeep.allocation, &gpa, oa, perm) {
            Ok(()) => {
                upkeep.mapped += PageCount::covering(len).0;
                Ok(())
            }
            Err(failed) => {
                // DMA may have used the first part already, so it goes the way of any unmap.
                upkeep.unmap(space, &(gpa.start..failed));
                space.settle(upkeep)?;
                Err(DomainError::TableLimit { gpa: failed, limit: space.table.limit() })
            }
        }
    }

    /// Unmaps what is mapped in `gpa`, holes allowed, and returns how many pages that were. When
    /// this returns `Ok`, no access uses them any more, and those that were dirty are in the log
    /// that the next harvest takes.
    ///
    /// # Errors
    /// `Range`. `Drain`: the entries are gone, but an access in flight may still use one.
    pub fn unmap(&self, gpa: Range<Gpa>) -> Result<PageCount, DomainError> {
        let space = &*self.0;
        range::check(&gpa, space.config.address_bits)?;
        let mut upkeep = lock(&space.upkeep);
        let pages = upkeep.unmap(space, &gpa);
        if pages != 0 {
            upkeep.mapped = upkeep.mapped.saturating_sub(pages);
            space.settle(&mut upkeep)?;
        }
        Ok(PageCount(pages))
    }

    /// Attaches a device whose IOVA are GPA.
    ///
    /// # Errors
    /// `Attached`.
    pub fn attach(&self, rid: Rid) -> Result<Requester, DomainError> {
        self.attach_with(rid, Arc::new(Bypass))
    }

    /// Attaches a device behind a stage 1 of the guest's.
    ///
    /// # Errors
    /// `Attached`.
    pub fn attach_with(&self, rid: Rid, stage1: Arc<dyn Stage1>) -> Result<Requester, DomainError> {
        let mut requesters = lock(&self.0.requesters);
        requesters.retain(|requester| requester.strong_count() > 0);
        if requesters.iter().filter_map(Weak::upgrade).any(|other| other.rid() == rid) {
            return Err(DomainError::Attached { rid });
        }
        let requester = Requester::new(rid, self.0.clone(), stage1);
        requesters.push(Arc::downgrade(&requester.0));
        Ok(requester)
    }

    /// The ids of the devices attached.
    #[must_use]
    pub fn attached(&self) -> Vec<Rid> {
        self.0.live_requesters().iter().map(|requester| requester.rid()).collect()
    }

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

    /// Makes every cached translation stale and waits for accesses that may still use one. To be
    /// called after stage 1 answers have changed.
    ///
    /// # Errors
    /// The requester whose access did not end in time.
    pub fn invalidate(&self) -> Result<(), DrainError> {
        let mut upkeep = lock(&self.0.upkeep);
        self.0.settle(&mut upkeep)
    }

    /// Where the page that holds `gpa` goes, and what is allowed there.
    #[must_use]
    pub fn resolve(&self, gpa: Gpa) -> Option<(Oa, Perm)> {
        if gpa.0 >= self.0.end_of_width() {
            return None;
        }
        let _upkeep = lock(&self.0.upkeep);
        let table = self.0.table.table_at(gpa.0, 1)?;
        let leaf = table.entry(spec::index(gpa.0, 1)).load(Ordering::Relaxed);
        spec::is_present(leaf)
            .then(|| (Oa(spec::output(leaf).0 + gpa.page_offset()), spec::perm(leaf)))
    }

    /// The faults of all requesters.
    #[must_use]
    pub fn faults(&self) -> FaultSummary {
        self.0.faults.summary()
    }

    /// The memory below.
    #[must_use]
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.0.memory
    }

    /// What the domain holds now.
    #[must_use]
    pub fn stats(&self) -> DomainStats {
        let drain_sleeps = self.0.drain_sleeps.load(Ordering::Relaxed);
        let upkeep = lock(&self.0.upkeep);
        DomainStats {
            mapped: PageCount(upkeep.mapped),
            tables: upkeep.allocation.in_use(),
            generation: self.0.state() / GENERATION,
            drain_sleeps,
        }
    }

    /// [`DomainStats::drain_sleeps`], without waiting for an operation under way.
    #[must_use]
    pub fn drain_sleeps(&self) -> u64 {
        self.0.drain_sleeps.load(Ordering::Relaxed)
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

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Domain").field("config", &self.0.config).finish_non_exhaustive()
    }
}

impl Upkeep {
    fn unmap(&mut self, space: &Space, gpa: &Range<Gpa>) -> u64 {
        space.table.unmap(&mut self.allocation, &mut self.log, gpa)
    }
}

impl Space {
    /// The state word: generation and whether D bits are recorded.
    #[inline]
    pub(crate) fn state(&self) -> u64 {
        self.state.load(Ordering::SeqCst)
    }

    #[inline]
    pub(crate) fn tracks(state: u64) -> bool {
        state & TRACKING != 0
    }

    #[inline]
    pub(crate) fn table(&self) -> &SecondStage {
        &self.table
    }

    #[inline]
    pub(crate) fn memory(&self) -> &Arc<dyn Memory> {
        &self.memory
    }

    pub(crate) fn faults(&self) -> &FaultLog {
        &self.faults
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.config.drain_deadline
    }

    /// One past the last byte of GPA that can be mapped.
    pub(crate) fn end_of_width(&self) -> u64 {
        1 << self.config.address_bits
    }

    pub(crate) fn count_drain_sleep(&self) {
        self.drain_sleeps.fetch_add(1, Ordering::Relaxed);
    }

    fn live_requesters(&self) -> Vec<Arc<Shared>> {
        lock(&self.requesters).iter().filter_map(Weak::upgrade).collect()
    }

    /// The next generation; every cached translation is stale from here on. Under the lock.
    fn advance(&self, tracking: Option<bool>) {
        let old = self.state.load(Ordering::Relaxed);
        let tracking = tracking.map_or(old & TRACKING, u64::from);
        let new = (old & !TRACKING).wrapping_add(GENERATION) | tracking;
        self.state.swap(new, Ordering::SeqCst);
    }

    /// Waits for the accesses in flight; then unlinked tables can be used again.
    fn drain(&self, upkeep: &mut Upkeep) -> Result<u64, DrainError> {
        let result = drain(&self.live_requesters(), self.config.drain_deadline);
        upkeep.drain_owed = result.is_err();
        if result.is_ok() {
            upkeep.allocation.recycle();
        }
        result
    }

    fn settle(&self, upkeep: &mut Upkeep) -> Result<(), DrainError> {
        self.advance(None);
        self.drain(upkeep).map(|_| ())
    }
}
