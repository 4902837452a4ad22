//! Helpers of the integration tests.
#![allow(dead_code, reason = "each test file uses a part")]

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use drogher_iommu::{Domain, DomainConfig, HeapMemory, Memory, Oa, Perm, Requester};
use drogher_iommu_types::{DirtyBitmap, Gpa, Iova, PAGE_SIZE, PageCount, Rid};
use drogher_tracking::{
    AddressSpace, AddressSpaceError, Costs, Device, DeviceCaps, DeviceLog, DeviceRule, Dma,
    HarvestStats, Inputs, LogCaps, LogFailure, PinAccess, PinBoard, Pins, Plan, Policy, Quirks,
    SpaceCaps, TrackMode, TrackedSpace, TrackingPageSize, planner,
};

pub fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

pub fn pages(range: Range<u64>) -> Range<Gpa> {
    page(range.start)..page(range.end)
}

pub fn dirty_pages(bitmap: &DirtyBitmap) -> Vec<u64> {
    bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect()
}

type Hook = Box<dyn FnOnce() + Send>;

/// A domain that says it has both modes, and can be made to fail or to be disturbed.
///
/// Until a domain has write faults, they are D bits here: the same pages, which is all that a
/// switch between the two can depend on.
pub struct Space {
    pub domain: Domain,
    pub before_start: Mutex<Option<Hook>>,
    pub fail_start: AtomicBool,
    pub fail_harvest: AtomicBool,
    pub fail_drain: AtomicBool,
}

fn refuse(when: &AtomicBool) -> Result<(), AddressSpaceError> {
    if when.load(Ordering::SeqCst) {
        return Err(AddressSpaceError::Mode { mode: TrackMode::WriteFault });
    }
    Ok(())
}

impl AddressSpace for Space {
    fn supports(&self, _: TrackMode) -> bool {
        true
    }
    fn start_tracking(&self, mode: TrackMode) -> Result<(), AddressSpaceError> {
        refuse(&self.fail_start)?;
        let hook = self.before_start.lock().expect("no panic").take();
        hook.into_iter().for_each(|hook| hook());
        AddressSpace::start_tracking(&self.domain, mode)
    }
    fn stop_tracking(&self) {
        AddressSpace::stop_tracking(&self.domain);
    }
    fn read_and_clear_dirty(
        &self,
        range: &Range<Gpa>,
        into: &DirtyBitmap,
    ) -> Result<HarvestStats, AddressSpaceError> {
        let stats = AddressSpace::read_and_clear_dirty(&self.domain, range, into)?;
        if self.fail_harvest.load(Ordering::SeqCst) {
            // As bad as a failure may be: what was taken is lost.
            into.clear_range(range.clone())?;
        }
        refuse(&self.fail_harvest).map(|()| stats)
    }
    fn mapped_writable(
        &self,
        range: &Range<Gpa>,
        into: &DirtyBitmap,
    ) -> Result<PageCount, AddressSpaceError> {
        AddressSpace::mapped_writable(&self.domain, range, into)
    }
    fn unmap(&self, range: &Range<Gpa>) -> Result<PageCount, AddressSpaceError> {
        AddressSpace::unmap(&self.domain, range)
    }
    fn drain(&self) -> Result<(), AddressSpaceError> {
        refuse(&self.fail_drain)?;
        AddressSpace::drain(&self.domain)
    }
}

/// A device's own log as a plugin would keep it: bits are set after the store.
pub struct SoftLog {
    on: AtomicBool,
    bits: DirtyBitmap,
    pub fails: AtomicBool,
}

impl SoftLog {
    pub fn new(span: Range<Gpa>) -> Arc<Self> {
        let bits = DirtyBitmap::new(span).expect("aligned");
        Arc::new(Self { on: AtomicBool::new(false), bits, fails: AtomicBool::new(false) })
    }

    pub fn mark(&self, range: Range<Gpa>) {
        if self.on.load(Ordering::SeqCst) {
            self.bits.set_range(range).expect("inside");
        }
    }
}

impl DeviceLog for SoftLog {
    fn start(
        &self,
        _: &[Range<Gpa>],
        page_size: TrackingPageSize,
    ) -> Result<TrackingPageSize, LogFailure> {
        let _ = self.bits.take();
        if self.on.swap(true, Ordering::SeqCst) { Err("twice".into()) } else { Ok(page_size) }
    }

    /// One bit a tracking page, as hardware logs have it.
    fn report(
        &self,
        range: &Range<Gpa>,
        page_size: TrackingPageSize,
        into: &DirtyBitmap,
    ) -> Result<(), LogFailure> {
        if !self.on.load(Ordering::SeqCst) {
            return Err("it does not run: not started, stopped, or ended by a reset".into());
        }
        // Page by page, so that nothing is allocated here.
        for number in range.start.page()..range.end.page() {
            if !self.bits.test(page(number)) {
                continue;
            }
            self.bits.clear_range(pages(number..number + 1))?;
            let first = number / page_size.pages() * page_size.pages();
            into.set(page(first.max(into.range().start.page())))?;
        }
        if self.fails.load(Ordering::SeqCst) {
            Err("the log has overflowed".into())
        } else {
            Ok(())
        }
    }

    fn stop(&self) -> Result<(), LogFailure> {
        if self.on.swap(false, Ordering::SeqCst) { Ok(()) } else { Err("twice".into()) }
    }
}

/// A device: how it writes, and what it has for its tracking.
pub struct TestDevice {
    pub caps: DeviceCaps,
    pub requester: Requester,
    pub memory: Arc<dyn Memory>,
    pub log: Option<Arc<SoftLog>>,
    pub pins: Option<Arc<PinBoard>>,
}

impl TestDevice {
    /// Writes: past the second stage if it pins, else through it; then it logs, if it has a log.
    pub fn write(&self, at: u64, data: &[u8]) {
        let range = Gpa(at)..Gpa(at + data.len() as u64);
        match &self.pins {
            Some(board) => {
                board.pin(range.clone(), PinAccess::Write).expect("inside");
                self.memory.write(Oa(at), data).expect("inside");
                board.unpin(range.clone(), PinAccess::Write).expect("pinned");
            }
            None => self.requester.write(Iova(at), data).expect("mapped"),
        }
        if let Some(log) = &self.log {
            log.mark(range);
        }
    }

    pub fn write_page(&self, number: u64) {
        self.write(number * PAGE_SIZE, &[7]);
    }

    pub fn device(&self) -> Device {
        Device {
            caps: self.caps.clone(),
            log: self.log.clone().map(|log| log as Arc<dyn DeviceLog>),
            pins: self.pins.clone(),
        }
    }

    pub fn rid(&self) -> Rid {
        self.caps.rid
    }
}

/// No test waits longer than this.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A tracked address space over a real domain, its first `count` pages mapped one to one.
pub struct Bench {
    pub space: Arc<Space>,
    pub tracked: TrackedSpace,
    pub memory: Arc<dyn Memory>,
    pub count: u64,
    pub caps: Mutex<Vec<DeviceCaps>>,
}

impl Bench {
    pub fn new(count: u64) -> Self {
        let bench = Self::unmapped(count);
        bench.space.domain.map(pages(0..count), Oa(0), Perm::READ_WRITE).expect("free");
        bench
    }

    pub fn unmapped(count: u64) -> Self {
        let memory: Arc<dyn Memory> = Arc::new(HeapMemory::new(count * PAGE_SIZE));
        let config = DomainConfig { drain_deadline: PATIENCE, ..DomainConfig::default() };
        let domain = Domain::new(memory.clone(), config).expect("valid");
        let space = Arc::new(Space {
            domain,
            before_start: Mutex::default(),
            fail_start: AtomicBool::new(false),
            fail_harvest: AtomicBool::new(false),
            fail_drain: AtomicBool::new(false),
        });
        let ram = [pages(0..count)];
        let tracked = TrackedSpace::new("s", space.clone(), &ram).expect("good ranges");
        Self { space, tracked, memory, count, caps: Mutex::default() }
    }

    /// A device of the domain that the tracked space does not know yet.
    pub fn make(&self, number: u16) -> TestDevice {
        let rid = Rid(number << 3);
        TestDevice {
            caps: DeviceCaps {
                rid,
                label: format!("dev{number}"),
                plugin: "test".into(),
                version: "1".into(),
                dma: Dma::ThroughIommu,
                log: None,
                pins: Pins::None,
                ndma: true,
                migratable: true,
                preference: None,
            },
            requester: self.space.domain.attach(rid).expect("new"),
            memory: self.memory.clone(),
            log: None,
            pins: None,
        }
    }

    pub fn attach(&self, device: TestDevice) -> TestDevice {
        self.tracked.attach(device.device()).expect("new");
        self.caps.lock().expect("no panic").push(device.caps.clone());
        device
    }

    pub fn plain(&self, number: u16) -> TestDevice {
        self.attach(self.make(number))
    }

    pub fn logging(&self, number: u16) -> TestDevice {
        let mut device = self.make(number);
        device.caps.log = Some(LogCaps {
            min_page_size: TrackingPageSize::K4,
            max_page_size: TrackingPageSize::M2,
            max_ranges: 16,
        });
        device.log = Some(SoftLog::new(pages(0..self.count)));
        self.attach(device)
    }

    pub fn pinning(&self, number: u16) -> TestDevice {
        let mut device = self.make(number);
        device.caps.pins = Pins::All;
        device.pins = Some(Arc::new(PinBoard::new(pages(0..self.count))));
        self.attach(device)
    }

    /// A plan for the devices attached: what is said of all, then of single ones.
    pub fn plan(&self, global: &str, rules: &[(&str, &str)]) -> Plan {
        let policy = Policy {
            global: global.parse().expect("a choice"),
            devices: rules
                .iter()
                .map(|(device, choice)| DeviceRule {
                    device: (*device).into(),
                    choice: choice.parse().expect("a choice"),
                })
                .collect(),
        };
        let spaces = [(
            SpaceCaps::of("s", "test", self.space.as_ref()),
            self.caps.lock().expect("no panic").clone(),
        )];
        let (quirks, costs) = (Quirks::default(), Costs::default());
        let inputs = Inputs { policy: &policy, quirks: &quirks, costs: &costs };
        planner::plan(&spaces, inputs).expect("a plan").remove(0)
    }

    pub fn bitmap(&self) -> DirtyBitmap {
        DirtyBitmap::new(pages(0..self.count)).expect("aligned")
    }

    /// Harvests everything; returns the dirty pages.
    pub fn harvest(&self) -> Vec<u64> {
        let bitmap = self.bitmap();
        self.tracked.harvest(pages(0..self.count), &bitmap).expect("harvested");
        dirty_pages(&bitmap)
    }

    pub fn everything(&self) -> Vec<u64> {
        (0..self.count).collect()
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
