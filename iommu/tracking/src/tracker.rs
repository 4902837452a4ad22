//! A provider that runs, and what it was made from.

use std::ops::Range;
use std::sync::Arc;

use drogher_iommu_types::{Gpa, PageCount, Rid};

use crate::address_space::AddressSpace;
use crate::log_ranges;
use crate::members::Members;
use crate::page_size::TrackingPageSize;
use crate::plan::Plan;
use crate::provider::{Provider, ProviderKind};
use crate::providers::{DeviceProvider, FaultProvider, IommuProvider, PinnedProvider};
use crate::space::Started;
use crate::space_error::SpaceError;

/// What a plan asks to run, except everything mapped, which needs no running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spec {
    pub(crate) kind: ProviderKind,
    pub(crate) device: Option<Rid>,
    pub(crate) page_size: TrackingPageSize,
}

/// What only one provider can use at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resource {
    Recorder,
    Log(Option<Rid>),
    Pins(Option<Rid>),
    Nothing,
}

impl Spec {
    pub(crate) fn resource(&self) -> Resource {
        match self.kind {
            ProviderKind::Iommu | ProviderKind::Fault => Resource::Recorder,
            ProviderKind::Device => Resource::Log(self.device),
            ProviderKind::Pinned => Resource::Pins(self.device),
            ProviderKind::All => Resource::Nothing,
        }
    }

    /// The same but for the page size.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.kind == other.kind && self.device == other.device
    }

    /// What a plan asks for.
    pub(crate) fn of(plan: &Plan) -> Vec<Self> {
        let recorder =
            plan.recorder().map(|(kind, page_size)| Self { kind, device: None, page_size });
        let devices = plan.devices.iter().flat_map(|device| {
            let spec = |kind| Self { kind, device: Some(device.rid), page_size: device.page_size };
            let log = device.provider == Some(ProviderKind::Device);
            let log = log.then(|| spec(ProviderKind::Device));
            [log, device.pins.then(|| spec(ProviderKind::Pinned))].into_iter().flatten()
        });
        recorder.into_iter().chain(devices).collect()
    }
}

/// A provider and its specification.
pub(crate) struct Tracker {
    pub(crate) spec: Spec,
    pub(crate) provider: Box<dyn Provider>,
    /// What it has reported since it started.
    pub(crate) pages: PageCount,
}

impl Tracker {
    /// Off.
    pub(crate) fn new(
        spec: Spec,
        space: &Arc<dyn AddressSpace>,
        ram: &[Range<Gpa>],
        members: &Members,
    ) -> Result<Self, SpaceError> {
        let page_size = spec.page_size;
        let provider: Box<dyn Provider> = match (spec.kind, spec.device) {
            (ProviderKind::Iommu, _) => Box::new(IommuProvider::new(space.clone(), page_size)),
            (ProviderKind::Fault, _) => Box::new(FaultProvider::new(space.clone(), page_size)),
            (kind, Some(rid)) => {
                let device = &members.get(rid)?.device;
                let missing =
                    || SpaceError::NoSource { device: device.caps.label.clone(), provider: kind };
                if kind == ProviderKind::Device {
                    let log = device.log.clone().ok_or_else(missing)?;
                    let max = device.caps.log.ok_or_else(missing)?.max_ranges;
                    let max = max.min(log_ranges::MAX_LOG_RANGES);
                    let ranges = log_ranges::cover(ram, page_size, max);
                    Box::new(DeviceProvider::new(rid, log, ranges, page_size))
                } else {
                    let pins = device.pins.clone().ok_or_else(missing)?;
                    Box::new(PinnedProvider::new(rid, pins, page_size))
                }
            }
            (kind, None) => {
                return Err(SpaceError::NoSource { device: "none".into(), provider: kind });
            }
        };
        Ok(Self { spec, provider, pages: PageCount(0) })
    }

    pub(crate) fn device(&self) -> Option<Rid> {
        self.spec.device
    }

    pub(crate) fn set_page_size(&mut self, size: TrackingPageSize) {
        if self.spec.page_size != size && self.provider.set_page_size(size) {
            self.spec.page_size = size;
        }
    }

    pub(crate) fn started(&self) -> Started {
        Started {
            provider: self.spec.kind,
            device: self.spec.device,
            class: self.provider.class(),
            page_size: self.provider.page_size(),
            pages: self.pages,
        }
    }
}
