//! Helpers of the integration tests.
#![allow(dead_code, reason = "each test file uses a part")]

use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use drogher_iommu::{
    DirtyBitmap, Domain, DomainConfig, Gpa, HeapMemory, Iova, Memory, MemoryError, Oa, PAGE_SIZE,
    Perm, Requester, Rid, TableFormat,
};

pub fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

pub fn pages(range: Range<u64>) -> Range<Gpa> {
    page(range.start)..page(range.end)
}

/// A domain with its first `count` pages mapped one to one, and a device.
pub struct Bench {
    pub domain: Domain,
    pub device: Requester,
    pub bitmap: DirtyBitmap,
    pub count: u64,
}

impl Bench {
    pub fn new(count: u64) -> Self {
        Self::over(Arc::new(HeapMemory::new(count * PAGE_SIZE)), DomainConfig::default())
    }

    pub fn over(memory: Arc<dyn Memory>, config: DomainConfig) -> Self {
        let count = memory.len() / PAGE_SIZE;
        let domain = Domain::new(memory, config).expect("valid configuration");
        domain.map(pages(0..count), Oa(0), Perm::READ_WRITE).expect("nothing is mapped yet");
        let device = domain.attach(Rid(0x0008)).expect("the first");
        let bitmap = DirtyBitmap::new(pages(0..count)).expect("aligned");
        Self { domain, device, bitmap, count }
    }

    pub fn tracked(count: u64) -> Self {
        let bench = Self::new(count);
        bench.domain.start_tracking().expect("nothing is in flight");
        bench
    }

    pub fn write(&self, number: u64, bytes: &[u8]) {
        self.device.write(Iova(number * PAGE_SIZE), bytes).expect("mapped and writable");
    }

    /// Harvests everything; returns the dirty pages and leaves the bitmap clean.
    pub fn harvest(&self) -> Vec<u64> {
        let range = pages(0..self.count);
        self.domain.read_and_clear_dirty(range, &self.bitmap).expect("drained");
        dirty_pages(&self.bitmap.take())
    }
}

pub fn dirty_pages(bitmap: &DirtyBitmap) -> Vec<u64> {
    bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect()
}

/// A configuration of this format.
pub fn config(format: TableFormat) -> DomainConfig {
    DomainConfig {
        format,
        address_bits: format.width(),
        drain_deadline: PATIENCE,
        ..DomainConfig::default()
    }
}

/// Memory of any length that holds nothing: for tests of what is translated and reported.
pub struct Nothing(pub u64);

impl Memory for Nothing {
    fn len(&self) -> u64 {
        self.0
    }
    fn read(&self, _oa: Oa, _data: &mut [u8]) -> Result<(), MemoryError> {
        Ok(())
    }
    fn write(&self, _oa: Oa, _data: &[u8]) -> Result<(), MemoryError> {
        Ok(())
    }
    fn fill(&self, _oa: Oa, _byte: u8, _len: u64) -> Result<(), MemoryError> {
        Ok(())
    }
    fn fetch_add_u32(&self, _oa: Oa, _value: u32) -> Result<u32, MemoryError> {
        Ok(0)
    }
    fn fetch_add_u64(&self, _oa: Oa, _value: u64) -> Result<u64, MemoryError> {
        Ok(0)
    }
    fn compare_swap_u32(&self, _oa: Oa, _old: u32, _new: u32) -> Result<u32, MemoryError> {
        Ok(0)
    }
    fn compare_swap_u64(&self, _oa: Oa, _old: u64, _new: u64) -> Result<u64, MemoryError> {
        Ok(0)
    }
}

/// Small, seeded, good enough to choose what a test does.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Memory whose writes can be held up half way: translated, guard held, not yet stored.
pub struct Gate {
    inner: HeapMemory,
    state: Mutex<GateState>,
    changed: Condvar,
}

/// A gate that is closed.
pub struct Closed<'a>(&'a Gate);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state.lock().expect("not poisoned").closed = false;
        self.0.changed.notify_all();
    }
}

#[derive(Default)]
struct GateState {
    closed: bool,
    waiting: u32,
}

/// No test waits longer than this.
pub const PATIENCE: Duration = Duration::from_secs(60);

impl Gate {
    pub fn new(count: u64) -> Arc<Self> {
        Arc::new(Self {
            inner: HeapMemory::new(count * PAGE_SIZE),
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Holds writes up until what it returns is dropped, be it by a test that fails.
    #[must_use]
    pub fn close(&self) -> Closed<'_> {
        self.state.lock().expect("not poisoned").closed = true;
        Closed(self)
    }

    /// Waits until a write stands at the closed gate.
    pub fn wait_for_write(&self) {
        let state = self.state.lock().expect("not poisoned");
        let (_state, timeout) = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.waiting == 0)
            .expect("not poisoned");
        assert!(!timeout.timed_out(), "no write came to the gate");
    }

    fn pass(&self) {
        let mut state = self.state.lock().expect("not poisoned");
        state.waiting += 1;
        self.changed.notify_all();
        let (mut state, timeout) = self
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.closed)
            .expect("not poisoned");
        assert!(!timeout.timed_out(), "the gate stayed closed");
        state.waiting -= 1;
    }
}

impl Memory for Gate {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn read(&self, oa: Oa, data: &mut [u8]) -> Result<(), MemoryError> {
        self.inner.read(oa, data)
    }
    fn write(&self, oa: Oa, data: &[u8]) -> Result<(), MemoryError> {
        self.pass();
        self.inner.write(oa, data)
    }
    fn fill(&self, oa: Oa, byte: u8, len: u64) -> Result<(), MemoryError> {
        self.pass();
        self.inner.fill(oa, byte, len)
    }
    fn fetch_add_u32(&self, oa: Oa, value: u32) -> Result<u32, MemoryError> {
        self.inner.fetch_add_u32(oa, value)
    }
    fn fetch_add_u64(&self, oa: Oa, value: u64) -> Result<u64, MemoryError> {
        self.inner.fetch_add_u64(oa, value)
    }
    fn compare_swap_u32(&self, oa: Oa, expected: u32, new: u32) -> Result<u32, MemoryError> {
        self.inner.compare_swap_u32(oa, expected, new)
    }
    fn compare_swap_u64(&self, oa: Oa, expected: u64, new: u64) -> Result<u64, MemoryError> {
        self.inner.compare_swap_u64(oa, expected, new)
    }
}

/// Looks until `done`, without a figure that a busy machine could break.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
