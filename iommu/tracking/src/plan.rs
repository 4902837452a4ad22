//! What the planner decides, as data.

use std::fmt;

use drogher_iommu_types::Rid;
use serde::{Deserialize, Serialize};

use crate::page_size::TrackingPageSize;
use crate::provider::{Class, ProviderKind};
use crate::rid_text;

/// Who decided something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decider {
    /// There was no choice, or nobody minded.
    Default,
    /// The cheapest by measurement.
    Measured,
    /// The plugin's preference.
    Preference,
    /// The quirk table.
    Quirk,
    /// The operator.
    Operator,
}

/// Why something was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reason {
    /// Who decided.
    pub by: Decider,
    /// The same with the grounds, for people.
    pub text: String,
}

impl Reason {
    pub(crate) fn new(by: Decider, text: impl Into<String>) -> Self {
        Self { by, text: text.into() }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// What is decided for one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicePlan {
    /// Its requester id.
    #[serde(with = "rid_text")]
    pub rid: Rid,
    /// What the user calls it.
    pub label: String,
    /// What covers its writes; `None` if it does no DMA.
    pub provider: Option<ProviderKind>,
    /// True if its pins are harvested, be it beside the provider or as it.
    pub pins: bool,
    /// The tracking page size.
    pub page_size: TrackingPageSize,
    /// What the reports about it are worth.
    pub class: Class,
    /// True if it is put in NDMA as soon as tracking runs.
    pub early_ndma: bool,
    /// Why this provider.
    pub reason: Reason,
    /// Why this page size.
    pub page_size_reason: Reason,
    /// Why early NDMA, or not.
    pub ndma_reason: Reason,
}

/// One provider that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderPlan {
    /// Which.
    pub provider: ProviderKind,
    /// The labels of the devices whose writes it sees. Two providers may see the same device: what
    /// they report is ORed.
    pub covers: Vec<String>,
    /// What its reports are worth.
    pub class: Class,
    /// The tracking page size.
    pub page_size: TrackingPageSize,
    /// What one round costs, in ns, if anyone knows.
    pub expected_ns: Option<u64>,
    /// Why it runs.
    pub reason: Reason,
}

/// What is decided for one address space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The address space.
    pub space: String,
    /// Its devices.
    pub devices: Vec<DevicePlan>,
    /// The providers that run.
    pub providers: Vec<ProviderPlan>,
    /// What its reports are worth: the worst of its devices, before any is in NDMA.
    pub class: Class,
    /// The same once the devices chosen for early NDMA are in it.
    pub class_after_ndma: Class,
    /// True if a harvest that is not exact has to fail.
    pub require_exact: bool,
}

impl Plan {
    /// The domain's own recorder, if one runs, and its page size.
    #[must_use]
    pub fn recorder(&self) -> Option<(ProviderKind, TrackingPageSize)> {
        let found = self.providers.iter().find(|plan| plan.provider.is_recorder());
        found.map(|plan| (plan.provider, plan.page_size))
    }

    /// The decision for one device.
    #[must_use]
    pub fn device(&self, rid: Rid) -> Option<&DevicePlan> {
        self.devices.iter().find(|device| device.rid == rid)
    }
}

/// What kind of refusal it is; stable, for tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefusalCode {
    /// The device's state cannot be saved and loaded.
    NotMigratable,
    /// The device reaches memory past every IOMMU, and nothing tracks it.
    RawDevice,
    /// An exact report was required and is not to be had.
    NotExact,
    /// The provider asked for does not cover the device.
    NoProvider,
    /// Early NDMA was asked for of a device that cannot.
    NoNdma,
    /// Two devices of an address space were given recorders that exclude each other.
    Conflict,
    /// A rule of the policy names no device.
    NoSuchDevice,
}

impl RefusalCode {
    /// The name in JSON and text.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotMigratable => "not-migratable",
            Self::RawDevice => "raw-device",
            Self::NotExact => "not-exact",
            Self::NoProvider => "no-provider",
            Self::NoNdma => "no-ndma",
            Self::Conflict => "conflict",
            Self::NoSuchDevice => "no-such-device",
        }
    }
}

/// One reason against starting, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refusal {
    /// The kind.
    pub code: RefusalCode,
    /// The device, by label, id and plugin, if it is about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What is wrong.
    pub reason: String,
    /// What the user can do.
    pub hint: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code.name())?;
        if let Some(device) = &self.device {
            write!(f, " ({device})")?;
        }
        write!(f, ": {}; {}", self.reason, self.hint)
    }
}
