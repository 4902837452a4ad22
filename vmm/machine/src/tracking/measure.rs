//! What the recorders of this build cost on this host: a short measurement, made once, when it is
//! first asked for.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use drogher_iommu::{Domain, DomainConfig, HeapMemory, Iova, Memory, Oa, Perm, Requester};
use drogher_iommu_types::{DirtyBitmap, Gpa, PAGE_SIZE, Rid};
use drogher_tracking::planner;
use drogher_tracking::{
    Choice, Costs, Device, DeviceCaps, Dma, Inputs, Measured, Pins, Policy, ProviderKind, Quirks,
    SpaceCaps, TrackedSpace, TrackingPageSize,
};

/// Pages of the memory that is measured with: 4 MiB.
const PAGES: u64 = 1024;
/// Every so many pages one is written to.
const STRIDE: u64 = 4;
/// Rounds of which the quickest counts: what disturbs makes slower, never quicker.
const ROUNDS: u32 = 5;

/// What is measured. A log and pins are a plugin's, which has its own word for their costs.
const CASES: [(ProviderKind, TrackingPageSize); 5] = [
    (ProviderKind::Iommu, TrackingPageSize::K4),
    (ProviderKind::Iommu, TrackingPageSize::K64),
    (ProviderKind::Fault, TrackingPageSize::K4),
    (ProviderKind::Fault, TrackingPageSize::K64),
    (ProviderKind::All, TrackingPageSize::K4),
];

/// The costs, of a round in which a quarter of 4 MiB is written. Takes a few milliseconds the first
/// time; what cannot be measured is left out.
pub(super) fn costs() -> &'static Costs {
    static COSTS: OnceLock<Costs> = OnceLock::new();
    COSTS.get_or_init(|| {
        let measured = CASES.into_iter().filter_map(|(kind, size)| measure(kind, size));
        Costs { measured: measured.collect() }
    })
}

/// A device and its address space, over memory of their own.
struct Bench {
    memory: Arc<HeapMemory>,
    requester: Requester,
    space: TrackedSpace,
    caps: DeviceCaps,
}

fn span() -> std::ops::Range<Gpa> {
    Gpa(0)..Gpa(PAGES * PAGE_SIZE)
}

impl Bench {
    fn new() -> Option<Self> {
        let memory = Arc::new(HeapMemory::new(PAGES * PAGE_SIZE));
        let domain = Domain::new(Arc::clone(&memory) as _, DomainConfig::default()).ok()?;
        domain.map(span(), Oa(0), Perm::READ_WRITE).ok()?;
        let rid = Rid(8);
        let requester = domain.attach(rid).ok()?;
        let space = TrackedSpace::new("measured", Arc::new(domain), &[span()]).ok()?;
        let caps = DeviceCaps {
            rid,
            label: "measured".into(),
            plugin: "measured".into(),
            version: String::new(),
            dma: Dma::ThroughIommu,
            log: None,
            pins: Pins::None,
            ndma: false,
            migratable: true,
            preference: None,
        };
        space.attach(Device::new(caps.clone())).ok()?;
        Some(Self { memory, requester, space, caps })
    }

    /// One round's writes.
    fn dma(&self) -> Duration {
        let begin = Instant::now();
        for page in (0..PAGES).step_by(usize::try_from(STRIDE).unwrap_or(1)) {
            // All of it is mapped.
            let _ = self.requester.write(Iova(page * PAGE_SIZE), &[1; 64]);
        }
        begin.elapsed()
    }

    /// Starts to track by `kind`.
    fn start(&self, kind: ProviderKind, page_size: TrackingPageSize) -> Option<()> {
        let choice =
            Choice { provider: Some(kind.into()), page_size: Some(page_size), ..Choice::default() };
        let policy = Policy { global: choice, devices: Vec::new() };
        let space = SpaceCaps {
            label: "measured".into(),
            iommu_model: String::new(),
            d_bits: true,
            write_fault: true,
        };
        let inputs =
            Inputs { policy: &policy, quirks: &Quirks::default(), costs: &Costs::default() };
        let plans = planner::plan(&[(space, vec![self.caps.clone()])], inputs).ok()?;
        self.space.start(plans.first()?).ok().map(drop)
    }

    /// What it takes to read one page, as a page that is sent again is read.
    fn copy_ns(&self) -> u64 {
        let mut page = [0; PAGE_SIZE as usize];
        let begin = Instant::now();
        for number in 0..64 {
            let _ = self.memory.read(Oa(number * PAGE_SIZE), &mut page);
        }
        nanos(begin.elapsed()) / 64
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn measure(provider: ProviderKind, page_size: TrackingPageSize) -> Option<Measured> {
    let bench = Bench::new()?;
    let untracked = (0..ROUNDS).map(|_| bench.dma()).min()?;
    bench.start(provider, page_size)?;
    let bitmap = DirtyBitmap::new(span()).ok()?;
    let (mut dma, mut harvest, mut reported) = (Duration::MAX, Duration::MAX, 0);
    for _ in 0..ROUNDS {
        dma = dma.min(bench.dma());
        let begin = Instant::now();
        bench.space.harvest(span(), &bitmap).ok()?;
        harvest = harvest.min(begin.elapsed());
        reported = bitmap.take().count().0;
    }
    bench.space.stop().ok()?;
    let needless = reported.saturating_sub(PAGES / STRIDE);
    Some(Measured {
        provider,
        page_size,
        harvest_ns: nanos(harvest),
        dma_ns: nanos(dma.saturating_sub(untracked)),
        resend_ns: needless.saturating_mul(bench.copy_ns()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_measured_and_more_is_sent_by_what_tells_less_apart() {
        let costs = costs();
        assert_eq!(costs.measured.len(), CASES.len());
        let resend = |kind, size| costs.get(kind, size).expect("measured").resend_ns;
        for kind in [ProviderKind::Iommu, ProviderKind::Fault] {
            assert_eq!(resend(kind, TrackingPageSize::K4), 0);
            assert!(resend(kind, TrackingPageSize::K64) > 0);
        }
        assert!(resend(ProviderKind::All, TrackingPageSize::K4) > 0);
    }
}
