//! What a domain's handles and requesters share: the table, the state word, the upkeep.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use drogher_iommu_types::Gpa;

use crate::arena::Allocation;
use crate::domain::DomainConfig;
use crate::drain::{DrainError, drain};
use crate::fault::FaultLog;
use crate::log::DirtyLog;
use crate::memory::Memory;
use crate::requester::Shared;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};
use crate::table::SecondStage;

/// Bit 0 of the state word: D bits are recorded. The bits above are the generation.
const TRACKING: u64 = 1;
const GENERATION: u64 = 2;

/// What a domain's handles and requesters share.
pub(crate) struct Space {
    pub(crate) table: SecondStage,
    state: AtomicU64,
    pub(crate) drain_sleeps: AtomicU64,
    pub(crate) memory: Arc<dyn Memory>,
    pub(crate) faults: FaultLog,
    pub(crate) config: DomainConfig,
    pub(crate) upkeep: Mutex<Upkeep>,
    pub(crate) requesters: Mutex<Vec<Weak<Shared>>>,
}

/// What only one thread at a time may change.
pub(crate) struct Upkeep {
    pub(crate) allocation: Allocation,
    /// Dirty pages whose leaf an unmap took.
    pub(crate) log: DirtyLog,
    pub(crate) mapped: u64,
    /// A drain failed: what it was to wait for may still be in flight.
    pub(crate) drain_owed: bool,
}

impl Upkeep {
    pub(crate) fn unmap(&mut self, space: &Space, gpa: &Range<Gpa>) -> u64 {
        space.table.unmap(&mut self.allocation, &mut self.log, gpa)
    }
}

impl Space {
    pub(crate) fn new(memory: Arc<dyn Memory>, config: DomainConfig) -> Self {
        let mut allocation = Allocation::default();
        let table = SecondStage::new(config.table_limit, &mut allocation);
        let log = DirtyLog::default();
        Self {
            table,
            // Not 0, which is what an empty IOTLB entry holds.
            state: AtomicU64::new(GENERATION),
            drain_sleeps: AtomicU64::new(0),
            memory,
            faults: FaultLog::new(config.fault_log),
            config,
            upkeep: Mutex::new(Upkeep { allocation, log, mapped: 0, drain_owed: false }),
            requesters: Mutex::new(Vec::new()),
        }
    }

    /// How often the state word has changed.
    pub(crate) fn generation(&self) -> u64 {
        self.state() / GENERATION
    }

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

    pub(crate) fn live_requesters(&self) -> Vec<Arc<Shared>> {
        lock(&self.requesters).iter().filter_map(Weak::upgrade).collect()
    }

    /// The next generation; every cached translation is stale from here on. Under the lock.
    pub(crate) fn advance(&self, tracking: Option<bool>) {
        let old = self.state.load(Ordering::Relaxed);
        let tracking = tracking.map_or(old & TRACKING, u64::from);
        let new = (old & !TRACKING).wrapping_add(GENERATION) | tracking;
        self.state.swap(new, Ordering::SeqCst);
    }

    /// Waits for the accesses in flight; then unlinked tables can be used again.
    pub(crate) fn drain(&self, upkeep: &mut Upkeep) -> Result<u64, DrainError> {
        let result = drain(&self.live_requesters(), self.config.drain_deadline);
        upkeep.drain_owed = result.is_err();
        if result.is_ok() {
            upkeep.allocation.recycle();
        }
        result
    }

    pub(crate) fn settle(&self, upkeep: &mut Upkeep) -> Result<(), DrainError> {
        self.advance(None);
        self.drain(upkeep).map(|_| ())
    }
}
