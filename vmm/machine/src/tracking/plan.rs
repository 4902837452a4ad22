//! From a machine's devices to plans, and from refusals to what a migration calls blockers.

use std::fmt;
use std::sync::Arc;

use drogher_migrate::{Blocker, BlockerCode};
use drogher_tracking::planner::{self, SpaceDevices};
use drogher_tracking::{Costs, Inputs, Plan, Policy, Quirks, Refusal, RefusalCode, SpaceCaps};

use super::spaces::{Space, Spaces};
use crate::device::DeviceSet;

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

/// The address spaces that have devices.
pub(super) fn used(devices: &DeviceSet, spaces: &Spaces) -> Vec<Arc<Space>> {
    let mut all = spaces.all();
    let has = |space: &Arc<Space>| devices.devices().iter().any(|d| Arc::ptr_eq(d.space(), space));
    all.retain(has);
    all
}

/// Those, as the planner sees them.
fn described(devices: &DeviceSet, spaces: &Spaces) -> Vec<SpaceDevices> {
    let describe = |space: &Arc<Space>| {
        let caps = SpaceCaps::of(space.label(), IOMMU_MODEL, space.domain());
        let own = devices.devices().iter().filter(|device| Arc::ptr_eq(device.space(), space));
        (caps, own.map(|device| device.caps()).collect())
    };
    used(devices, spaces).iter().map(describe).collect()
}

/// A plan for each address space that has devices, in the order of [`used`].
pub(super) fn plan(
    devices: &DeviceSet,
    spaces: &Spaces,
    policy: &Policy,
    costs: &Costs,
) -> Result<Vec<Plan>, Vec<Refusal>> {
    let quirks = Quirks::default();
    planner::plan(&described(devices, spaces), Inputs { policy, quirks: &quirks, costs })
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
