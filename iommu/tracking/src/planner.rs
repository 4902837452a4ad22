//! From devices, policy, quirks and measurements to a plan for each address space, or to refusals.

mod device;
mod space;

use std::collections::BTreeSet;

use drogher_iommu_types::plugin::is_called;

use crate::caps::{DeviceCaps, SpaceCaps};
use crate::costs::Costs;
use crate::plan::{Plan, Refusal, RefusalCode};
use crate::policy::{Policy, Quirks};

/// One address space and its devices.
pub type SpaceDevices = (SpaceCaps, Vec<DeviceCaps>);

/// What decides, beside the devices themselves.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// What the operator says.
    pub policy: &'a Policy,
    /// What is known of plugins and IOMMU models.
    pub quirks: &'a Quirks,
    /// What was measured.
    pub costs: &'a Costs,
}

/// A plan for each address space, in their order. Starts nothing.
///
/// # Errors
/// Every reason against starting, of all devices of all address spaces.
pub fn plan(spaces: &[SpaceDevices], inputs: Inputs<'_>) -> Result<Vec<Plan>, Vec<Refusal>> {
    let mut refusals = rules_about_nobody(spaces, inputs.policy);
    let mut plans = Vec::new();
    for (space, devices) in spaces {
        match space::plan(space, devices, inputs) {
            Ok(plan) => plans.push(plan),
            Err(more) => refusals.extend(more),
        }
    }
    if refusals.is_empty() { Ok(plans) } else { Err(refusals) }
}

/// A mistyped name must not silently leave a device to its defaults.
fn rules_about_nobody(spaces: &[SpaceDevices], policy: &Policy) -> Vec<Refusal> {
    let devices = || spaces.iter().flat_map(|(_, devices)| devices);
    let idle = policy.devices.iter().filter(|rule| !devices().any(|device| rule.is_about(device)));
    idle.map(|rule| {
        let meant = devices().map(|device| device.plugin.as_str());
        let meant: BTreeSet<_> = meant.filter(|plugin| is_called(plugin, &rule.device)).collect();
        let known: Vec<_> = devices().map(|device| device.label.as_str()).collect();
        let (reason, hint) = match (meant.len(), known.is_empty()) {
            (2.., _) => {
                let meant: Vec<_> = meant.into_iter().collect();
                ("several plugins are called", format!("name one of {}", meant.join(", ")))
            }
            (_, true) => ("no device is called", "there are none; drop the rule".to_owned()),
            _ => {
                let hint = format!("name one of {}, a bb:dd.f, or a plugin", known.join(", "));
                ("no device is called", hint)
            }
        };
        let reason = format!("A rule is about {:?}, and {reason} so", rule.device);
        Refusal { code: RefusalCode::NoSuchDevice, device: None, reason, hint }
    })
    .collect()
}

pub(crate) fn refusal(
    code: RefusalCode,
    device: &DeviceCaps,
    reason: impl Into<String>,
    hint: impl Into<String>,
) -> Refusal {
    let DeviceCaps { rid, label, plugin, .. } = device;
    // Who has no name is called by its id.
    let named = *label != rid.to_string();
    let label = if named { format!("{label}, ") } else { String::new() };
    Refusal {
        code,
        device: Some(format!("{label}{rid}, {plugin}")),
        reason: reason.into(),
        hint: hint.into(),
    }
}

#[cfg(test)]
mod planner_test;
