//! What is known about devices and address spaces before anything starts.

use drogher_iommu_types::Rid;
use serde::{Deserialize, Serialize};

use crate::address_space::{AddressSpace, TrackMode};
use crate::page_size::TrackingPageSize;
use crate::provider::ProviderKind;
use crate::rid_text;

/// How a device gets at guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dma {
    /// Through the second stage of its address space.
    ThroughIommu,
    /// Past every IOMMU: nothing bounds it, and no page table knows of it.
    Raw,
    /// Not at all.
    None,
}

/// Which of its writes a device makes to memory that it has pinned, past the second stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pins {
    /// None: it never pins.
    #[default]
    None,
    /// Some; the others go through the second stage. Its pins are harvested beside the tracker.
    Some,
    /// All: what it has not pinned it does not write to. The pins alone cover it.
    All,
}

/// What a device's own log can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogCaps {
    /// The smallest tracking page size.
    pub min_page_size: TrackingPageSize,
    /// The largest.
    pub max_page_size: TrackingPageSize,
    /// How many ranges it takes, at most 256.
    pub max_ranges: usize,
}

/// What a plugin says suits its device best.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preference {
    /// By which provider.
    pub provider: ProviderKind,
    /// In which page size, if it minds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<TrackingPageSize>,
    /// What one harvest round costs by its account, in ns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_hint_ns: Option<u64>,
    /// Why, in a few words.
    pub reason: String,
}

/// One device, as tracking sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceCaps {
    /// Its requester id.
    #[serde(with = "rid_text")]
    pub rid: Rid,
    /// What the user calls it.
    pub label: String,
    /// The plugin's id.
    pub plugin: String,
    /// The plugin's version.
    pub version: String,
    /// How it gets at memory.
    pub dma: Dma,
    /// Its own log, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogCaps>,
    /// Whether it pins.
    #[serde(default)]
    pub pins: Pins,
    /// True if it can be put in NDMA.
    #[serde(default)]
    pub ndma: bool,
    /// True if its state can be saved and loaded.
    pub migratable: bool,
    /// What its plugin prefers, if it minds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<Preference>,
}

/// One address space, as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpaceCaps {
    /// What logs and messages call it.
    pub label: String,
    /// The IOMMU model, for quirks.
    pub iommu_model: String,
    /// True if it has D bits.
    pub d_bits: bool,
    /// True if it can write-protect.
    pub write_fault: bool,
}

impl SpaceCaps {
    /// Asks `space` what it can do.
    #[must_use]
    pub fn of(label: &str, iommu_model: &str, space: &dyn AddressSpace) -> Self {
        Self {
            label: label.to_owned(),
            iommu_model: iommu_model.to_owned(),
            d_bits: space.supports(TrackMode::DBits),
            write_fault: space.supports(TrackMode::WriteFault),
        }
    }
}
