//! From a machine's devices to plans, and from refusals to what a migration calls blockers.

use std::fmt;
use std::sync::Arc;

use drogher_iommu_types::Rid;
use drogher_migrate::{Blocker, BlockerCode};
use drogher_tracking::planner::{self, SpaceDevices};
use drogher_tracking::{
    Choice, Costs, DeviceCaps, Dma, Explanation, Inputs, Plan, Refusal, RefusalCode, SpaceCaps,
};

use super::operator::{Operator, Wishes};
use super::spaces::{Space, Spaces, space_label};
use crate::device::{DeviceKeys, DeviceSet, Shape, Tracking};

/// What quirks call the IOMMU of this machine.
pub const IOMMU_MODEL: &str = "drogher";

/// Every reason against tracking, one a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusalList(pub Vec<Refusal>);

impl fmt::Display for RefusalList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

/// A device as the planner sees it, and what the operator has said of it when it was made.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What it can do.
    pub caps: DeviceCaps,
    /// Its address space.
    pub space: String,
    /// How it is to be tracked, by its keys.
    pub choice: Choice,
}

impl Subject {
    /// A device with these keys, as it and its plugin say.
    pub(crate) fn new(rid: Rid, keys: &DeviceKeys, shape: &Shape, tracking: Tracking) -> Self {
        let caps = DeviceCaps {
            rid,
            label: keys.name.clone().unwrap_or_else(|| rid.to_string()),
            plugin: shape.plugin.id.clone(),
            version: shape.plugin.version.clone(),
            dma: if keys.is_raw() { Dma::Raw } else { Dma::ThroughIommu },
            log: tracking.log.map(|(caps, _)| caps),
            pins: tracking.pins,
            ndma: shape.ndma,
            migratable: shape.migration.is_some(),
            preference: tracking.preference,
        };
        Self { caps, space: space_label(keys, rid), choice: keys.tracking }
    }
}

/// The devices of a machine.
pub(super) fn subjects(devices: &DeviceSet) -> Vec<Subject> {
    devices.devices().iter().map(|device| device.subject()).collect()
}

/// The address spaces that have devices, in the order of their plans.
pub(super) fn used(subjects: &[Subject], spaces: &Spaces) -> Vec<Arc<Space>> {
    let all = spaces.all();
    let named = labels(subjects);
    let find = |label: &&str| all.iter().find(|space| space.label() == *label).cloned();
    named.iter().filter_map(find).collect()
}

/// The names of the address spaces, in the order of the first device of each.
fn labels(subjects: &[Subject]) -> Vec<&str> {
    let mut labels: Vec<&str> = Vec::new();
    for subject in subjects {
        if !labels.contains(&subject.space.as_str()) {
            labels.push(&subject.space);
        }
    }
    labels
}

/// A plan for each address space that has devices, in the order of [`used`].
pub(super) fn plan(
    subjects: &[Subject],
    operator: &Operator,
    costs: &Costs,
) -> Result<Vec<Plan>, Vec<Refusal>> {
    let describe = |label: &str| -> SpaceDevices {
        // A domain of the virtual IOMMU records in both ways.
        let caps = SpaceCaps {
            label: label.to_owned(),
            iommu_model: IOMMU_MODEL.to_owned(),
            d_bits: true,
            write_fault: true,
        };
        let own = subjects.iter().filter(|subject| subject.space == label);
        (caps, own.map(|subject| subject.caps.clone()).collect())
    };
    let spaces: Vec<_> = labels(subjects).into_iter().map(describe).collect();
    let policy = operator.policy(subjects);
    planner::plan(&spaces, Inputs { policy: &policy, quirks: operator.quirks(), costs })
}

/// What would track devices that are not there yet, and why; see [`trial`](crate::device::trial).
#[must_use]
pub fn explain(subjects: &[Subject], wishes: &Wishes) -> Explanation {
    plan(subjects, &Operator::of(wishes), &super::measure::typical()).into()
}

/// Everything that stands against moving a machine away: its devices themselves, and their tracking.
#[must_use]
pub fn blockers(devices: &DeviceSet, refusals: &[Refusal]) -> Vec<Blocker> {
    // That a device cannot be moved at all the devices say themselves.
    let tracking = refusals.iter().filter(|refusal| refusal.code != RefusalCode::NotMigratable);
    let tracking = tracking.map(|refusal| {
        let Refusal { code, device, reason, hint } = refusal;
        let reason = format!("{}: {reason}", code.name());
        let blocker = Blocker::new(BlockerCode::Tracking, reason, hint.clone());
        match device {
            Some(device) => blocker.about(device.clone()),
            None => blocker,
        }
    });
    devices.blockers().into_iter().chain(tracking).collect()
}
