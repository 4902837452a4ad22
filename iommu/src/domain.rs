//! One address space: its second stage and its requesters.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use drogher_iommu_types::{Gpa, Oa, PageCount, Rid};

use crate::drain::DrainError;
use crate::error::DomainError;
use crate::fault::FaultSummary;
use crate::memory::Memory;
use crate::range;
use crate::requester::{DRAIN_DEADLINE, Requester};
use crate::space::Space;
use crate::spec::{Perm, second_stage as spec};
use crate::stage1::{Bypass, Stage1};
use crate::sync::{Ordering, lock};

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
        Ok(Self(Arc::new(Space::new(memory, config))))
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
            generation: self.0.generation(),
            drain_sleeps,
        }
    }

    /// [`DomainStats::drain_sleeps`], without waiting for an operation under way.
    #[must_use]
    pub fn drain_sleeps(&self) -> u64 {
        self.0.drain_sleeps.load(Ordering::Relaxed)
    }
}

impl std::fmt::Debug for Domain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Domain").field("config", &self.0.config).finish_non_exhaustive()
    }
}
