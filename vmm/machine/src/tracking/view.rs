//! How tracking stands, for people and tools.

use drogher_tracking::{Class, Plan, ProviderKind, Refusal, TrackingPageSize};
use serde::{Deserialize, Serialize};

/// One tracker that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TrackerView {
    /// The provider.
    pub provider: ProviderKind,
    /// The device as `bb:dd.f`, if it sees one alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What its reports are worth.
    pub class: Class,
    /// The tracking page size.
    pub page_size: TrackingPageSize,
    /// Pages of 4 KiB that it has reported.
    pub pages: u64,
}

/// One address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct SpaceTracking {
    /// What it is called.
    pub space: String,
    /// What a harvest would be worth now.
    pub class: Class,
    /// Said if devices could write anywhere and nothing tells where: everything mapped is sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The trackers.
    pub trackers: Vec<TrackerView>,
    /// Devices that could write anywhere now.
    pub unlimited: u64,
    /// Pages that trackers have reported, those that have ended included.
    pub tracked_pages: u64,
    /// Pages reported because a device could write anywhere, or a tracker had failed.
    pub wide_pages: u64,
    /// Pages carried over from narrowings and failures.
    pub carried_pages: u64,
    /// Failures of trackers.
    pub failures: u64,
    /// The last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceTracking {
    /// Its address on the PCI bus.
    pub slot: String,
    /// What the user calls it, or its address.
    pub device: String,
    /// Its address space.
    pub space: String,
    /// What covers it, or would.
    pub provider: Option<ProviderKind>,
    /// The tracking page size.
    pub page_size: TrackingPageSize,
    /// What reports about it are worth.
    pub class: Class,
    /// Why this provider.
    pub reason: String,
    /// It enters NDMA when the rounds begin.
    pub early_ndma: bool,
    /// How long it has stood in early NDMA in this or the last migration, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stood_us: Option<u64>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct TrackingStatus {
    /// True while trackers run.
    pub active: bool,
    /// Address spaces that have devices; in a report as they were at the end. Empty before the
    /// first migration.
    pub spaces: Vec<SpaceTracking>,
    /// Devices, by address space.
    pub devices: Vec<DeviceTracking>,
    /// What stands against tracking, if it could not start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<Refusal>,
}

impl DeviceTracking {
    /// What `plans` have for the devices; `stood_us` is left empty.
    pub(super) fn of(plans: &[Plan]) -> Vec<Self> {
        let of_plan = |plan: &Plan| {
            let space = plan.space.clone();
            let device = move |device: &drogher_tracking::DevicePlan| Self {
                slot: device.rid.to_string(),
                device: device.label.clone(),
                space: space.clone(),
                provider: device.provider,
                page_size: device.page_size,
                class: device.class,
                reason: device.reason.to_string(),
                early_ndma: device.early_ndma,
                stood_us: None,
            };
            plan.devices.iter().map(device).collect::<Vec<_>>()
        };
        plans.iter().flat_map(of_plan).collect()
    }
}
