//! What the models share: a memory of one cell a page, and a migration's view of it.

use std::ops::Range;
use std::sync::Arc;

use drogher_iommu_types::{DirtyBitmap, Gpa, Iova, Oa, PAGE_SIZE, Rid};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::atomic::{AtomicU64, Ordering};
use shuttle::{Config, Runner};

use crate::domain::{Domain, DomainConfig};
use crate::memory::{Memory, MemoryError};
use crate::requester::Requester;
use crate::spec::{Perm, TableFormat};
use crate::tracking::TrackConfig;

/// Pages of the memory. All but the last can be mapped by `World::new`.
pub(crate) const PAGES: u64 = 5;

/// A large leaf, the smallest of the mock format.
pub(crate) const LARGE: Range<Gpa> = Gpa(0)..Gpa(4 * PAGE_SIZE);

/// Memory with one value a page, so that a store is one step.
struct Cells(Vec<AtomicU64>);

impl Cells {
    fn at(&self, oa: Oa) -> &AtomicU64 {
        &self.0[usize::try_from(oa.page()).expect("small")]
    }
}

impl Memory for Cells {
    fn len(&self) -> u64 {
        PAGES * PAGE_SIZE
    }
    fn read(&self, oa: Oa, data: &mut [u8]) -> Result<(), MemoryError> {
        data.copy_from_slice(&self.at(oa).load(Ordering::SeqCst).to_le_bytes());
        Ok(())
    }
    fn write(&self, oa: Oa, data: &[u8]) -> Result<(), MemoryError> {
        let value = u64::from_le_bytes(data.try_into().expect("the models write 8 bytes"));
        self.at(oa).store(value, Ordering::SeqCst);
        Ok(())
    }
    fn fill(&self, oa: Oa, byte: u8, _len: u64) -> Result<(), MemoryError> {
        self.write(oa, &[byte; 8])
    }
    fn fetch_add_u32(&self, oa: Oa, _value: u32) -> Result<u32, MemoryError> {
        Err(MemoryError::Misaligned { oa, size: 4 })
    }
    fn fetch_add_u64(&self, oa: Oa, value: u64) -> Result<u64, MemoryError> {
        Ok(self.at(oa).fetch_add(value, Ordering::SeqCst))
    }
    fn compare_swap_u32(&self, oa: Oa, _old: u32, _new: u32) -> Result<u32, MemoryError> {
        Err(MemoryError::Misaligned { oa, size: 4 })
    }
    fn compare_swap_u64(&self, oa: Oa, old: u64, new: u64) -> Result<u64, MemoryError> {
        match self.at(oa).compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(was) | Err(was) => Ok(was),
        }
    }
}

/// A domain with a device, and the destination's copy of its memory.
pub(crate) struct World {
    pub(crate) domain: Domain,
    pub(crate) device: Requester,
    pub(crate) bitmap: DirtyBitmap,
    pub(crate) copy: Vec<u64>,
}

pub(crate) fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

/// Writes `value` to a page by DMA; true unless it faulted.
pub(crate) fn write(device: &Requester, number: u64, value: u64) -> bool {
    device.write(Iova(number * PAGE_SIZE), &value.to_le_bytes()).is_ok()
}

impl World {
    /// Pages 0 and 1 are mapped one to one; tracking is off.
    pub(crate) fn new() -> Self {
        Self::of(page(0)..page(2))
    }

    /// One large leaf is mapped one to one, and tracked as told.
    pub(crate) fn large(config: TrackConfig) -> Self {
        let world = Self::of(LARGE);
        world.domain.start_tracking_with(config).expect("no access in flight for ever");
        world
    }

    /// Tables are those of the mock format: small, so that a model's steps are those that matter.
    fn of(mapped: Range<Gpa>) -> Self {
        let cells = Cells((0..PAGES).map(|_| AtomicU64::new(0)).collect());
        let format = TableFormat::Mock;
        let config = DomainConfig {
            format,
            address_bits: format.width(),
            table_limit: 8,
            ..DomainConfig::default()
        };
        let domain = Domain::new(Arc::new(cells), config).expect("valid");
        domain.map(mapped, Oa(0), Perm::READ_WRITE).expect("free");
        let device = domain.attach(Rid(8)).expect("first");
        let bitmap = DirtyBitmap::new(page(0)..page(PAGES)).expect("aligned");
        Self { domain, device, bitmap, copy: vec![0; usize::try_from(PAGES).expect("small")] }
    }

    pub(crate) fn tracked() -> Self {
        let world = Self::new();
        world.domain.start_tracking().expect("no access in flight for ever");
        world
    }

    /// What memory holds, behind every table.
    pub(crate) fn memory(&self, number: u64) -> u64 {
        let mut bytes = [0; 8];
        self.domain.memory().read(Oa(number * PAGE_SIZE), &mut bytes).expect("in bounds");
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn harvest(&self) {
        let range = page(0)..page(PAGES);
        self.domain.read_and_clear_dirty(range, &self.bitmap).expect("drained");
    }

    /// Copies every page, as the first pass of a migration.
    pub(crate) fn copy_all(&mut self) {
        for number in 0..PAGES {
            self.copy[usize::try_from(number).expect("small")] = self.memory(number);
        }
    }

    /// A round: harvest, then copy what it reported.
    pub(crate) fn round(&mut self) {
        self.harvest();
        self.copy_reported();
    }

    /// Copies what harvests have reported so far.
    pub(crate) fn copy_reported(&mut self) {
        for run in self.bitmap.take().runs() {
            for number in run.start.page()..run.end.page() {
                self.copy[usize::try_from(number).expect("small")] = self.memory(number);
            }
        }
    }

    /// The last round, all devices at rest: nothing may differ after it.
    pub(crate) fn last_round(&mut self) {
        self.round();
        for number in 0..PAGES {
            let copied = self.copy[usize::try_from(number).expect("small")];
            assert_eq!(copied, self.memory(number), "page {number}: a write was lost");
        }
    }
}

/// Runs a model under two schedulers: one that preempts anywhere, one that preempts seldom but at
/// the worst moments.
pub(crate) fn check(iterations: usize, model: fn()) {
    let config = || {
        let mut config = Config::default();
        config.stack_size = 1 << 18;
        config.silence_warnings = true;
        config
    };
    Runner::new(RandomScheduler::new(iterations), config()).run(model);
    Runner::new(PctScheduler::new(4, iterations), config()).run(model);
}
