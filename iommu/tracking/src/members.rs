//! The devices of an address space, and how many of them could write anywhere.

use std::sync::Arc;

use drogher_iommu_types::{Rid, mutant};

use crate::caps::{DeviceCaps, Dma, Pins};
use crate::pins::PinBoard;
use crate::plan::{DevicePlan, Plan};
use crate::provider::{Class, ProviderKind};
use crate::providers::DeviceLog;
use crate::space_error::SpaceError;

/// A device, and what it brings for its tracking.
#[derive(Clone)]
pub struct Device {
    /// What it can do.
    pub caps: DeviceCaps,
    /// Its own log, if it has one.
    pub log: Option<Arc<dyn DeviceLog>>,
    /// The board that it pins on, if it pins.
    pub pins: Option<Arc<PinBoard>>,
}

impl Device {
    /// A device with neither.
    #[must_use]
    pub fn new(caps: DeviceCaps) -> Self {
        Self { caps, log: None, pins: None }
    }
}

/// What covers a device's writes; `None` if it does none, or tracking is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cover {
    pub(crate) kind: Option<ProviderKind>,
    pub(crate) class: Class,
}

impl Cover {
    pub(crate) const fn none() -> Self {
        Self { kind: None, class: Class::Exact }
    }

    pub(crate) const fn everything() -> Self {
        Self { kind: Some(ProviderKind::All), class: Class::AllMapped }
    }

    pub(crate) fn planned(plan: &DevicePlan) -> Self {
        Self { kind: plan.provider, class: plan.class }
    }

    /// For a device that comes while tracking is on; `None` if nothing covers it.
    pub(crate) fn of_newcomer(caps: &DeviceCaps, recorder: Option<ProviderKind>) -> Option<Self> {
        match (caps.dma, recorder) {
            (Dma::None, _) => Some(Self::none()),
            (Dma::Raw, _) => None,
            (Dma::ThroughIommu, Some(_)) if caps.pins == Pins::None => {
                Some(Self { kind: recorder, class: Class::Exact })
            }
            (Dma::ThroughIommu, _) => Some(Self::everything()),
        }
    }

    fn unlimited(self) -> bool {
        self.kind == Some(ProviderKind::All)
    }
}

pub(crate) struct Member {
    pub(crate) device: Device,
    pub(crate) cover: Cover,
    ndma: bool,
}

impl Member {
    /// Counts towards `n_unlimited`.
    fn counts(&self) -> bool {
        self.cover.unlimited() && !self.ndma
    }
}

/// The devices. `n_unlimited` is the counter of the seed: devices that nothing but everything
/// mapped covers, less those in NDMA.
#[derive(Default)]
pub(crate) struct Members {
    members: Vec<Member>,
    n_unlimited: u64,
}

impl Members {
    pub(crate) fn n_unlimited(&self) -> u64 {
        self.n_unlimited
    }

    /// What a report about those that do DMA now is worth.
    pub(crate) fn class(&self) -> Class {
        let active = self.members.iter().filter(|member| !member.ndma);
        active.map(|member| member.cover.class).max().unwrap_or(Class::Exact)
    }

    pub(crate) fn worse_than_exact(&self) -> String {
        let worse = self.members.iter().filter(|m| !m.ndma && m.cover.class != Class::Exact);
        worse.map(|member| member.device.caps.label.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// True if a device is there whose reach no page table knows.
    pub(crate) fn any_raw(&self) -> bool {
        self.members.iter().any(|member| member.device.caps.dma == Dma::Raw)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.members.iter()
    }

    pub(crate) fn get(&self, rid: Rid) -> Result<&Member, SpaceError> {
        let found = self.members.iter().find(|member| member.device.caps.rid == rid);
        found.ok_or(SpaceError::NoDevice { rid })
    }

    pub(crate) fn add(&mut self, device: Device, cover: Cover) -> Result<(), SpaceError> {
        let rid = device.caps.rid;
        if self.get(rid).is_ok() {
            return Err(SpaceError::Attached { rid });
        }
        let member = Member { device, cover, ndma: false };
        self.n_unlimited += u64::from(member.counts());
        self.members.push(member);
        Ok(())
    }

    pub(crate) fn remove(&mut self, rid: Rid) {
        let at = self.members.iter().position(|member| member.device.caps.rid == rid);
        if let Some(at) = at {
            let gone = self.members.remove(at);
            self.n_unlimited = self.n_unlimited.saturating_sub(gone.counts().into());
        }
    }

    pub(crate) fn is_in_ndma(&self, rid: Rid) -> bool {
        self.get(rid).is_ok_and(|member| member.ndma)
    }

    pub(crate) fn is_unlimited(&self, rid: Rid) -> bool {
        self.get(rid).is_ok_and(Member::counts)
    }

    /// Gives each device its cover, and counts again.
    pub(crate) fn cover(&mut self, mut cover: impl FnMut(&Member) -> Cover) {
        for member in &mut self.members {
            member.cover = cover(member);
        }
        self.n_unlimited = self.members.iter().map(|member| u64::from(member.counts())).sum();
    }

    /// Not if it does no DMA already.
    pub(crate) fn may_be_silent(&self, rid: Rid) -> Result<(), SpaceError> {
        if self.get(rid)?.ndma && !mutant!("ndma-underflow") {
            return Err(SpaceError::InNdma { rid });
        }
        Ok(())
    }

    pub(crate) fn may_enter_ndma(&self, rid: Rid) -> Result<(), SpaceError> {
        self.may_be_silent(rid)?;
        let member = self.get(rid)?;
        if !member.device.caps.ndma {
            return Err(SpaceError::NoNdma { rid });
        }
        Ok(())
    }

    /// After [`Self::may_enter_ndma`].
    pub(crate) fn enter_ndma(&mut self, rid: Rid) {
        if let Some(member) = self.members.iter_mut().find(|m| m.device.caps.rid == rid) {
            member.ndma = true;
            let counted = member.cover.unlimited();
            self.n_unlimited = self.n_unlimited.saturating_sub(counted.into());
        }
    }

    pub(crate) fn leave_ndma(&mut self, rid: Rid) -> Result<(), SpaceError> {
        let member = self.members.iter_mut().find(|m| m.device.caps.rid == rid);
        let member = member.ok_or(SpaceError::NoDevice { rid })?;
        if !member.ndma {
            return Err(SpaceError::NotInNdma { rid });
        }
        member.ndma = false;
        self.n_unlimited += u64::from(member.counts());
        Ok(())
    }

    /// The device that the plan does not fit, if there is one.
    pub(crate) fn misfit(&self, plan: &Plan) -> Option<String> {
        let planned = |rid| plan.devices.iter().filter(move |device| device.rid == rid).count();
        let unplanned = self.members.iter().find(|m| planned(m.device.caps.rid) != 1);
        let absent = plan.devices.iter().find(|device| self.get(device.rid).is_err());
        unplanned
            .map(|member| format!("{} is attached", member.device.caps.label))
            .or_else(|| absent.map(|device| format!("{} is not attached", device.label)))
    }
}
