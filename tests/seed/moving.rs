//! Moving memory by reports alone, as a migration does: everything once, then round by round what
//! was reported, and at the end the copy has to equal the memory.

use drogher_iommu::Oa;
use drogher_iommu_types::{DirtyBitmap, PAGE_SIZE, PageCount};
use drogher_tracking::{Plan, SpaceHarvest};

use crate::common::{Bench, Random, TestDevice};

/// A copy of a bench's memory that knows only what was reported.
pub struct Copy<'a> {
    bench: &'a Bench,
    pages: Vec<u8>,
    /// Pages sent, the first pass left out.
    pub resent: u64,
    /// The last harvest.
    pub last: Option<SpaceHarvest>,
}

impl<'a> Copy<'a> {
    /// Starts to track by `plan`, then takes everything.
    pub fn begin(bench: &'a Bench, plan: &Plan) -> Self {
        bench.tracked.start(plan).expect("started");
        let all = bench.bitmap();
        all.set_range(all.range()).expect("inside");
        let bytes = usize::try_from(bench.count * PAGE_SIZE).expect("small");
        let mut copy = Self { bench, pages: vec![0; bytes], resent: 0, last: None };
        copy.take(&all);
        copy.resent = 0;
        copy
    }

    /// Takes what a harvest reports; returns how many pages that were.
    pub fn round(&mut self) -> PageCount {
        let into = self.bench.bitmap();
        let harvest = self.bench.tracked.harvest(into.range(), &into).expect("harvested");
        self.last = Some(harvest);
        self.take(&into);
        into.count()
    }

    fn take(&mut self, dirty: &DirtyBitmap) {
        for run in dirty.runs() {
            let (from, to) = (run.start.0 as usize, run.end.0 as usize);
            self.bench.memory.read(Oa(run.start.0), &mut self.pages[from..to]).expect("inside");
            self.resent += (run.end.0 - run.start.0) / PAGE_SIZE;
        }
    }

    /// Compares, once all devices rest and the last round is taken; stops tracking.
    pub fn end(mut self) -> u64 {
        self.round();
        let mut memory = vec![0; self.pages.len()];
        self.bench.memory.read(Oa(0), &mut memory).expect("inside");
        let differs = |number: &usize| {
            let page = number * PAGE_SIZE as usize..(number + 1) * PAGE_SIZE as usize;
            memory[page.clone()] != self.pages[page]
        };
        let differing: Vec<_> = (0..self.bench.count as usize).filter(differs).collect();
        assert_eq!(differing, [0usize; 0], "pages differ that nobody reported");
        self.bench.tracked.stop().expect("it runs");
        self.resent
    }
}

/// A thousand writes of up to 5000 bytes, most of them to a few places; the same for the same seed.
pub fn write_somewhere(device: &TestDevice, count: u64, seed: u64) {
    let mut random = Random(seed);
    for _ in 0..1000 {
        let span = if random.below(4) == 0 { count } else { count / 8 };
        let at = random.below((span - 2) * PAGE_SIZE);
        let len = usize::try_from(1 + random.below(5000)).expect("small");
        device.write(at, &vec![random.next() as u8; len]);
    }
}

/// Moves a bench's memory by `plan` while `devices` write; returns the pages sent again.
pub fn move_under_load(bench: &Bench, devices: &[&TestDevice], plan: &Plan) -> u64 {
    let mut copy = Copy::begin(bench, plan);
    for round in 0..5 {
        for (seed, device) in (0..).zip(devices) {
            write_somewhere(device, bench.count, round * 16 + seed);
        }
        copy.round();
    }
    for device in devices {
        write_somewhere(device, bench.count, 99);
    }
    copy.end()
}
