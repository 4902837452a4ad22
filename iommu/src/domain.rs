//! One address space: its second stage and its requesters.

use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Duration;

use drogher_iommu_types::{Gpa, Oa, PAGE_SHIFT, PAGE_SIZE, PageCount, Rid, mutant};

use crate::drain::DrainError;
use crate::error::DomainError;
use crate::fault::FaultSummary;
use crate::log::DirtyLog;
use crate::memory::Memory;
use crate::range;
use crate::requester::{DRAIN_DEADLINE, Requester};
use crate::space::Space;
use crate::spec::{Format, Perm, TableFormat};
use crate::stage1::{Bypass, Stage1};
use crate::sync::{Ordering, lock};
use crate::table::SecondStage;
use crate::tree::with;
use crate::unmap::Taken;

/// What a domain may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// Layout of the second stage's entries.
    pub format: TableFormat,
    /// Address width of GPA in bits, 13 to that of the format, which is 48 for the real ones.
    pub address_bits: u32,
    /// Bytes of the largest leaf that a mapping gets where it is aligned to it and long enough:
    /// 4096 or more. Sizes that the format does not have count as the next smaller.
    pub largest_leaf: u64,
    /// Tables of 4 KiB that the second stage may have. One of small leaves holds 2 MiB of GPA.
    pub table_limit: u32,
    /// How long one operation waits for accesses in flight, and an access for a free slot.
    pub drain_deadline: Duration,
    /// Faults kept in the log.
    pub fault_log: usize,
}

impl Default for DomainConfig {
    /// VT-d second stage, 48 bits, leaves up to 1 GiB, tables for 512 GiB of GPA in small leaves,
    /// 2 s, 256 faults.
    fn default() -> Self {
        Self {
            format: TableFormat::default(),
            address_bits: TableFormat::default().width(),
            largest_leaf: 1 << 30,
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
    /// Tables in use, the root included, and those that still wait for a drain.
    pub tables: u64,
    /// Changes that made every cached translation stale.
    pub generation: u64,
    /// Times that any drain slept for an access in flight, counted when it goes to sleep.
    pub drain_sleeps: u64,
}

/// What an unmap does with a large leaf of which only a part is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnmapMode {
    /// Nothing: it is an error that names the leaf.
    Refuse,
    /// Splits it, and takes exactly what was asked for.
    Split,
}

/// An address space that devices are attached to. A clone is another handle to the same one.
///
/// Any thread may call anything. What `map`, `unmap`, a harvest and the like do to one unit (1 GiB;
/// what one entry of level 3 stands for) excludes what others do to the same unit, first come,
/// first served; on different units they run side by side. DMA runs beside all of them. Whoever
/// waits does so for at most the configured deadline (once for each operation queued before it).
#[derive(Clone)]
pub struct Domain(pub(crate) Arc<Space>);

impl Domain {
    /// An empty domain over `memory`.
    ///
    /// # Errors
    /// `Width`, `LargestLeaf`, `BadTableLimit`.
    pub fn new(memory: Arc<dyn Memory>, config: DomainConfig) -> Result<Self, DomainError> {
        let (bits, max) = (config.address_bits, config.format.width());
        if !(13..=max).contains(&bits) {
            return Err(DomainError::Width { bits, max });
        }
        if config.largest_leaf < PAGE_SIZE {
            return Err(DomainError::LargestLeaf { bytes: config.largest_leaf });
        }
        let limit = config.table_limit;
        if !(4..=1 << 28).contains(&limit) {
            return Err(DomainError::BadTableLimit { limit });
        }
        Ok(Self(Arc::new(Space::new(memory, config))))
    }

    /// Maps `gpa`, in which nothing may be mapped yet, to memory from `oa` on, with the largest
    /// leaves that fit and that tracking leaves room for.
    ///
    /// A new mapping is not dirty: dirty state is about writes by DMA. An empty range is allowed.
    /// Waits for no access in flight unless it fails with `TableLimit`.
    ///
    /// # Errors
    /// `Range`, `NoPermission`, `OutputMisaligned`, `OutputBeyondMemory`, `Overlap`; then nothing
    /// changed. `TableLimit`: likewise, what was mapped before it is unmapped again. `Drain`, if
    /// that last step could not be drained.
    pub fn map(&self, gpa: Range<Gpa>, oa: Oa, perm: Perm) -> Result<(), DomainError> {
        fn output_end<F: Format>(_: &SecondStage<F>) -> u64 {
            F::OUTPUT_END
        }
        let space = &*self.0;
        range::check(&gpa, space.config.address_bits)?;
        if !perm.read && !perm.write {
            return Err(DomainError::NoPermission { gpa: gpa.start });
        }
        if !oa.is_page_aligned() {
            return Err(DomainError::OutputMisaligned { oa });
        }
        let (len, size) = (gpa.end.0 - gpa.start.0, space.memory.len());
        let output_end = with!(space.tree, stage => output_end(stage));
        if oa.checked_add(len).is_none_or(|end| end.0 > size.min(output_end)) {
            return Err(DomainError::OutputBeyondMemory { oa, len, size });
        }
        let _held = space.hold(&gpa);
        with!(space.tree, stage => {
            if let Some((gpa, oa)) = stage.first_mapped(&gpa) {
                return Err(DomainError::Overlap { gpa, oa });
            }
            let Err(failed) = stage.map(&gpa, oa, perm, space.rules()) else {
                space.mapped.fetch_add(len, Ordering::Relaxed);
                return Ok(());
            };
            // DMA may have used the first part already, so it goes the way of any unmap.
            let limit = stage.arena.limit();
            self.take(&(gpa.start..failed)).1?;
            Err(DomainError::TableLimit { gpa: failed, limit })
        })
    }

    /// Unmaps what is mapped in `gpa`, holes allowed, and returns how many pages that were. When
    /// this returns `Ok`, no access uses them any more, and those that were dirty are in the log
    /// that the next harvest takes. Large leaves are split where they have to be.
    ///
    /// # Errors
    /// `Range`. `SplitLimit`; then nothing was unmapped. `Drain`: the entries are gone, but an
    /// access in flight may still use one.
    pub fn unmap(&self, gpa: Range<Gpa>) -> Result<PageCount, DomainError> {
        self.unmap_with(gpa, UnmapMode::Split)
    }

    /// As [`Self::unmap`], with a say in what happens to a large leaf at either end.
    ///
    /// # Errors
    /// As `unmap`; `PartialLeaf` with [`UnmapMode::Refuse`], and then nothing changed.
    pub fn unmap_with(&self, gpa: Range<Gpa>, mode: UnmapMode) -> Result<PageCount, DomainError> {
        let space = &*self.0;
        range::check(&gpa, space.config.address_bits)?;
        let _held = space.hold(&gpa);
        with!(space.tree, stage => match mode {
            UnmapMode::Refuse => {
                if let Some(leaf) = stage.partial_leaf(&gpa) {
                    let leaf_bytes = leaf.end.0 - leaf.start.0;
                    return Err(DomainError::PartialLeaf { leaf: leaf.start, leaf_bytes });
                }
            }
            UnmapMode::Split => stage.cut(&gpa).map_err(|leaf| {
                DomainError::SplitLimit { leaf, limit: stage.arena.limit() }
            })?,
        });
        let (bytes, drained) = self.take(&gpa);
        space.mapped.fetch_sub(bytes, Ordering::Relaxed);
        drained?;
        Ok(PageCount(bytes >> PAGE_SHIFT))
    }

    /// Takes what is mapped in a range that is held, and returns how many bytes that were.
    fn take(&self, gpa: &Range<Gpa>) -> (u64, Result<(), DrainError>) {
        let space = &*self.0;
        let mut log = DirtyLog::default();
        let mut dirty = |first: Gpa, bits: u64| log.set_mask(first, bits);
        let mut taken = Taken { bytes: 0, retired: Vec::new(), dirty: &mut dirty };
        with!(space.tree, stage => stage.unmap(gpa, &mut taken));
        let (mut bytes, retired) = (taken.bytes, taken.retired);
        let mut drained = Ok(());
        if bytes != 0 || !retired.is_empty() {
            let settled = space.drain(retired, &mut |first, bits| {
                if !mutant!("unmap-drops-dirty") {
                    log.set_mask(first, bits);
                }
            });
            bytes += settled.bytes;
            drained = settled.drained.map(|_| ());
        }
        space.log_dirty(log);
        (bytes, drained)
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
        if requesters.iter().filter_map(Weak::upgrade).any(|other| other.rid() == rid) {
            return Err(DomainError::Attached { rid });
        }
        let requester = Requester::new(rid, self.0.clone(), stage1);
        let live = requesters.iter().filter(|other| other.strong_count() > 0).cloned();
        *requesters = live.chain([Arc::downgrade(&requester.0)]).collect();
        Ok(requester)
    }

    /// The ids of the devices attached.
    #[must_use]
    pub fn attached(&self) -> Vec<Rid> {
        self.0
            .requesters()
            .iter()
            .filter_map(Weak::upgrade)
            .map(|requester| requester.rid())
            .collect()
    }

    /// Makes every cached translation stale and waits for accesses that may still use one. To be
    /// called after stage 1 answers have changed.
    ///
    /// # Errors
    /// The requester whose access did not end in time.
    pub fn invalidate(&self) -> Result<(), DrainError> {
        self.0.settle().map(|_| ())
    }

    /// Where the byte at `gpa` goes, and what is allowed there.
    #[must_use]
    pub fn resolve(&self, gpa: Gpa) -> Option<(Oa, Perm)> {
        let space = &*self.0;
        if gpa.0 >= space.end_of_width() {
            return None;
        }
        let _held = space.hold(&(gpa..Gpa(gpa.0 + 1)));
        with!(space.tree, stage => stage.resolve(gpa))
    }

    /// The ends of what is mapped now, rounded outwards to whole units (1 GiB); empty if nothing is.
    #[must_use]
    pub fn span(&self) -> Range<Gpa> {
        let space = &*self.0;
        let everything = space.everything();
        let _held = space.hold(&everything);
        let mut span = Gpa(0)..Gpa(0);
        with!(space.tree, stage => {
            while let Some((unit, part)) = stage.next_unit(span.end.0, everything.end.0) {
                if span.is_empty() {
                    span.start = Gpa(unit.base);
                }
                span.end = Gpa(part.end);
            }
        });
        span
    }

    /// Address width of GPA in bits.
    #[must_use]
    pub fn address_bits(&self) -> u32 {
        self.0.config.address_bits
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

    /// What the domain holds now. Waits for nothing.
    #[must_use]
    pub fn stats(&self) -> DomainStats {
        let space = &*self.0;
        DomainStats {
            mapped: PageCount(space.mapped.load(Ordering::Relaxed) >> PAGE_SHIFT),
            tables: with!(space.tree, stage => stage.arena.in_use()),
            generation: space.state().generation(),
            drain_sleeps: self.drain_sleeps(),
        }
    }

    /// [`DomainStats::drain_sleeps`] alone.
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
