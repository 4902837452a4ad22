//! What a domain's handles and requesters share: the tree, the state word, locks and log.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use drogher_iommu_types::{Gpa, PAGE_SIZE};

use crate::domain::DomainConfig;
use crate::drain::{DrainError, drain};
use crate::fault::{Access, FaultLog, FaultReason};
use crate::log::DirtyLog;
use crate::memory::Memory;
use crate::range_lock::{Held, RangeLock};
use crate::requester::Shared;
use crate::retire::{Debts, Retired};
use crate::spec::Format;
use crate::state::{GENERATION, MODE, State};
use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crate::table::{LeafRules, SecondStage, UNIT};
use crate::tally::Counter;
use crate::tree::{Tree, with};
use crate::walk::Walked;

/// What a domain's handles and requesters share.
///
/// Lock order: a range, then at most one of the others; each of those is held for a few steps.
pub(crate) struct Space {
    pub(crate) tree: Tree,
    state: AtomicU64,
    pub(crate) ranges: RangeLock,
    /// Dirty pages whose leaf was taken.
    pub(crate) log: Mutex<DirtyLog>,
    pub(crate) debts: Debts,
    /// Tables to have ready for writes that split.
    pub(crate) reserve: Counter,
    /// Bytes mapped.
    pub(crate) mapped: AtomicU64,
    pub(crate) drain_sleeps: AtomicU64,
    pub(crate) memory: Arc<dyn Memory>,
    pub(crate) faults: FaultLog,
    pub(crate) config: DomainConfig,
    /// Replaced as a whole when one comes, so that a drain can go through it without the lock and
    /// without memory of its own.
    pub(crate) requesters: Mutex<Arc<[Weak<Shared>]>>,
}

/// What a drain, and what it gave back, came to.
pub(crate) struct Settled {
    /// Bytes that the retired tables had mapped.
    pub(crate) bytes: u64,
    /// How often the drain slept.
    pub(crate) drained: Result<u64, DrainError>,
}

impl Space {
    pub(crate) fn new(memory: Arc<dyn Memory>, config: DomainConfig) -> Self {
        Self {
            tree: Tree::new(config.format, config.table_limit),
            // Not 0, which is what an empty IOTLB entry holds.
            state: AtomicU64::new(GENERATION),
            ranges: RangeLock::default(),
            log: Mutex::new(DirtyLog::default()),
            debts: Debts::default(),
            reserve: Counter::default(),
            mapped: AtomicU64::new(0),
            drain_sleeps: AtomicU64::new(0),
            memory,
            faults: FaultLog::new(config.fault_log),
            config,
            requesters: Mutex::new(Arc::from([])),
        }
    }

    /// The state word.
    #[inline]
    pub(crate) fn state(&self) -> State {
        State(self.state.load(Ordering::SeqCst))
    }

    /// One walk, on an IOTLB miss.
    pub(crate) fn walk(
        &self,
        gpa: Gpa,
        access: Access,
        state: State,
    ) -> Result<Walked, FaultReason> {
        with!(self.tree, stage => stage.walk(gpa, access, state))
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

    /// All that can be mapped.
    pub(crate) fn everything(&self) -> Range<Gpa> {
        Gpa(0)..Gpa(self.end_of_width())
    }

    pub(crate) fn count_drain_sleep(&self) {
        self.drain_sleeps.fetch_add(1, Ordering::Relaxed);
    }

    /// The requesters of this moment; some may be gone.
    pub(crate) fn requesters(&self) -> Arc<[Weak<Shared>]> {
        Arc::clone(&lock(&self.requesters))
    }

    /// Keeps out every other operation on the units that `range` meets.
    pub(crate) fn hold(&self, range: &Range<Gpa>) -> Held<'_> {
        fn unit<F: Format>(_: &SecondStage<F>) -> u64 {
            F::span(UNIT)
        }
        let unit = with!(self.tree, stage => unit(stage));
        let (start, end) = (range.start.0 & !(unit - 1), range.end.0.div_ceil(unit) * unit);
        self.ranges.lock(start..end)
    }

    /// How new leaves are made now. With a range held.
    pub(crate) fn rules(&self) -> LeafRules {
        let state = self.state();
        let largest = if state.maps_small() { PAGE_SIZE } else { self.config.largest_leaf };
        LeafRules { largest, protect: state.protects() }
    }

    /// How leaves are made by a merge, which is asked for.
    pub(crate) fn merge_rules(&self) -> LeafRules {
        LeafRules { largest: self.config.largest_leaf, ..self.rules() }
    }

    /// The next generation; every cached translation is stale from here on.
    pub(crate) fn advance(&self) {
        self.state.fetch_add(GENERATION, Ordering::SeqCst);
    }

    /// Changes how writes are recorded, and the generation with it. With everything held.
    pub(crate) fn set_mode(&self, mode: u64) {
        let mut old = self.state.load(Ordering::SeqCst);
        loop {
            let new = (old & !MODE).wrapping_add(GENERATION) | mode;
            match self.state.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return,
                Err(now) => old = now,
            }
        }
    }

    /// Makes every cached translation stale and waits for the accesses that may still use one.
    /// Then reads what was retired, with its D bits to `dirty`, and has its tables used again. If
    /// the drain fails, the next that succeeds does that.
    pub(crate) fn drain(&self, retired: Vec<Retired>, dirty: &mut impl FnMut(Gpa, u64)) -> Settled {
        // What this drain pays for was unlinked before the clock, so before the generation.
        let clock = self.debts.begin();
        self.advance();
        let drained = self.wait_for_accesses();
        let (mut bytes, mut tables) = (0, Vec::new());
        with!(self.tree, stage => {
            for table in retired.iter().copied() {
                bytes += stage.read_retired(table, dirty, &mut tables);
            }
            if let Err(error) = &drained {
                self.debts.owe(retired, Some(error));
                return Settled { bytes, drained };
            }
            let mut late = DirtyLog::default();
            for table in self.debts.pay(clock) {
                stage.read_retired(table, &mut |page, bits| late.set_mask(page, bits), &mut tables);
            }
            self.log_dirty(late);
            if !tables.is_empty() {
                stage.arena.recycle(&tables);
            }
        });
        Settled { bytes, drained }
    }

    /// Waits for every access that has not seen the state word as it is now.
    pub(crate) fn wait_for_accesses(&self) -> Result<u64, DrainError> {
        let requesters = self.requesters();
        drain(requesters.iter().filter_map(Weak::upgrade), self.config.drain_deadline)
    }

    /// Pages whose leaf is gone, for the next harvest.
    pub(crate) fn log_dirty(&self, pages: DirtyLog) {
        if !pages.is_empty() && self.state().tracks() {
            lock(&self.log).append(pages);
        }
    }

    /// Makes every cached translation stale and waits for those in use.
    pub(crate) fn settle(&self) -> Result<u64, DrainError> {
        self.drain(Vec::new(), &mut |_, _| {}).drained
    }
}
