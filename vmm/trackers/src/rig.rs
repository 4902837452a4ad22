//! An address space with one software device, tracked in one way: what is measured with.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use drogher_iommu::{Domain, DomainConfig, HeapMemory, Memory, Perm, Requester};
use drogher_iommu_types::{DirtyBitmap, Gpa, Iova, Oa, PageCount, Rid};
use drogher_tracking::{
    Choice, Costs, Device, DeviceCaps, DeviceLog, Dma, Inputs, LogCaps, PinAccess, PinBoard, Pins,
    Plan, Policy, ProviderKind, Quirks, SpaceCaps, TrackedSpace, TrackingPageSize, planner,
};

use crate::error::TrackersError;
use crate::settings::Fixed;
use crate::soft_log::SoftLog;

/// Nothing is waited for longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The software device.
pub(crate) const DEVICE: Rid = Rid(8);

/// The device writes through the second stage, then logs if it has a log; or past it, to memory
/// that it has pinned.
pub(crate) struct Rig {
    pub(crate) fixed: Fixed,
    pub(crate) memory: Arc<HeapMemory>,
    pub(crate) domain: Domain,
    pub(crate) requester: Requester,
    pub(crate) tracked: TrackedSpace,
    pub(crate) ram: Range<Gpa>,
    plan: Plan,
    log: Option<Arc<SoftLog>>,
    pins: Arc<PinBoard>,
    /// What a harvest reports into.
    report: DirtyBitmap,
}

impl Rig {
    /// `bytes` of RAM, all mapped; beyond the length of `memory` to its beginning again. Tracking
    /// is off.
    pub(crate) fn new(
        memory: Arc<HeapMemory>,
        bytes: u64,
        fixed: Fixed,
    ) -> Result<Self, TrackersError> {
        let config = DomainConfig { drain_deadline: PATIENCE, ..DomainConfig::default() };
        let domain = Domain::new(memory.clone(), config)?;
        let ram = Gpa(0)..Gpa(bytes);
        let mut at = 0;
        while at < bytes {
            let end = bytes.min(at + memory.len());
            domain.map(Gpa(at)..Gpa(end), Oa(0), Perm::READ_WRITE)?;
            at = end;
        }
        let requester = domain.attach(DEVICE)?;
        let space = Arc::new(domain.clone());
        let caps = caps(fixed.provider);
        let plan = plan(&SpaceCaps::of("measured", "drogher", space.as_ref()), &caps, fixed)?;
        let tracked = TrackedSpace::new("measured", space, std::slice::from_ref(&ram))?;
        let log = match caps.log {
            Some(_) => Some(Arc::new(SoftLog::new(ram.clone())?)),
            None => None,
        };
        let pins = Arc::new(PinBoard::new(ram.clone()));
        tracked.attach(Device {
            log: log.clone().map(|log| log as Arc<dyn DeviceLog>),
            pins: (caps.pins != Pins::None).then(|| pins.clone()),
            caps,
        })?;
        let report = DirtyBitmap::new(ram.clone())?;
        Ok(Self { fixed, memory, domain, requester, tracked, ram, plan, log, pins, report })
    }

    /// Pages of RAM.
    pub(crate) fn pages(&self) -> PageCount {
        self.report.pages()
    }

    /// True if the device writes to what it has pinned.
    pub(crate) fn pins(&self) -> bool {
        self.fixed.provider == ProviderKind::Pinned
    }

    /// The device writes.
    #[inline]
    pub(crate) fn write(&self, at: u64, data: &[u8]) -> Result<(), TrackersError> {
        if self.pins() {
            return Ok(self.memory.write(Oa(at % self.memory.len()), data)?);
        }
        self.requester.write(Iova(at), data)?;
        if let Some(log) = &self.log {
            log.mark(Gpa(at), data.len() as u64)?;
        }
        Ok(())
    }

    pub(crate) fn pin(&self, range: Range<Gpa>) -> Result<(), TrackersError> {
        Ok(self.pins.pin(range, PinAccess::Write)?)
    }

    pub(crate) fn unpin(&self, range: Range<Gpa>) -> Result<(), TrackersError> {
        Ok(self.pins.unpin(range, PinAccess::Write)?)
    }

    pub(crate) fn start(&self) -> Result<(), TrackersError> {
        self.tracked.start(&self.plan)?;
        Ok(())
    }

    /// Harvests everything, and forgets it.
    pub(crate) fn harvest(&self) -> Result<(), TrackersError> {
        self.tracked.harvest(self.ram.clone(), &self.report)?;
        Ok(())
    }

    /// Pages in the harvests since the last call.
    pub(crate) fn reported(&self) -> PageCount {
        let mut pages = 0;
        self.report.take_words(|_, bits| pages += u64::from(bits.count_ones()));
        PageCount(pages)
    }

    pub(crate) fn stop(&self) -> Result<(), TrackersError> {
        self.tracked.stop()?;
        Ok(())
    }
}

/// What the device has for its tracking by `provider`.
fn caps(provider: ProviderKind) -> DeviceCaps {
    let log = LogCaps {
        min_page_size: TrackingPageSize::K4,
        max_page_size: TrackingPageSize::M2,
        max_ranges: 256,
    };
    DeviceCaps {
        rid: DEVICE,
        label: "device".into(),
        plugin: "drogher.measured".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        dma: Dma::ThroughIommu,
        log: (provider == ProviderKind::Device).then_some(log),
        pins: if provider == ProviderKind::Pinned { Pins::All } else { Pins::None },
        ndma: true,
        migratable: true,
        preference: None,
    }
}

fn plan(space: &SpaceCaps, device: &DeviceCaps, fixed: Fixed) -> Result<Plan, TrackersError> {
    let global = Choice {
        provider: Some(fixed.provider.into()),
        page_size: Some(fixed.page_size),
        ..Choice::default()
    };
    let policy = Policy { global, devices: Vec::new() };
    let inputs = Inputs { policy: &policy, quirks: &Quirks::default(), costs: &Costs::default() };
    let refused = |refusals: Vec<drogher_tracking::Refusal>| {
        let texts: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        TrackersError::Plan(texts.join("; "))
    };
    let plans = planner::plan(&[(space.clone(), vec![device.clone()])], inputs);
    let none = || TrackersError::Plan("the planner has made none".into());
    plans.map_err(refused)?.pop().ok_or_else(none)
}
