//! What the operator says, and the quirks that are consulted where the operator says nothing.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::caps::{DeviceCaps, SpaceCaps};
use crate::page_size::{PageSizeError, TrackingPageSize};
use crate::provider::{ProviderKind, UnknownProvider};

/// Which provider the operator wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// Whichever is best: quirks, the plugin's preference and measurements decide.
    #[default]
    Auto,
    /// D bits.
    Iommu,
    /// The device's own log.
    Device,
    /// Its pins.
    Pinned,
    /// Write faults.
    Fault,
    /// Everything mapped.
    All,
}

impl Wish {
    /// The provider named; `None` for `auto`.
    #[must_use]
    pub const fn provider(self) -> Option<ProviderKind> {
        match self {
            Self::Auto => None,
            Self::Iommu => Some(ProviderKind::Iommu),
            Self::Device => Some(ProviderKind::Device),
            Self::Pinned => Some(ProviderKind::Pinned),
            Self::Fault => Some(ProviderKind::Fault),
            Self::All => Some(ProviderKind::All),
        }
    }
}

impl From<ProviderKind> for Wish {
    fn from(kind: ProviderKind) -> Self {
        match kind {
            ProviderKind::Iommu => Self::Iommu,
            ProviderKind::Device => Self::Device,
            ProviderKind::Pinned => Self::Pinned,
            ProviderKind::Fault => Self::Fault,
            ProviderKind::All => Self::All,
        }
    }
}

/// Which devices are put in NDMA when tracking starts, long before the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EarlyNdma {
    /// None.
    #[default]
    Off,
    /// Those that can, and that only everything mapped would cover.
    Untracked,
    /// Each that this is said of; for all devices at once, those that can.
    On,
}

/// One set of wishes. What is not given is left to the next, wider one.
///
/// As text: `provider=device,page-size=64K,require=exact,early-ndma=on`, any part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Choice {
    /// The provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Wish>,
    /// The tracking page size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_size: Option<TrackingPageSize>,
    /// Refuse to start if the address space's reports would not be exact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_exact: Option<bool>,
    /// Early NDMA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub early_ndma: Option<EarlyNdma>,
}

impl Choice {
    /// This, completed by what `wider` says.
    #[must_use]
    pub fn or(self, wider: Self) -> Self {
        Self {
            provider: self.provider.or(wider.provider),
            page_size: self.page_size.or(wider.page_size),
            require_exact: self.require_exact.or(wider.require_exact),
            early_ndma: self.early_ndma.or(wider.early_ndma),
        }
    }
}

/// Why a text is no [`Choice`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChoiceError {
    /// Not `key=value`.
    #[error("{0:?} is not written as key=value")]
    NoValue(String),
    /// No such key.
    #[error("{0:?} is no tracking option; use provider, page-size, require or early-ndma")]
    UnknownKey(String),
    /// The same key twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// A value that the key does not have.
    #[error("{key}={value} is not possible; use {allowed}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// As given.
        value: String,
        /// What there is.
        allowed: &'static str,
    },
    /// The provider.
    #[error("provider: {source}, or auto")]
    Provider {
        /// What is wrong with it.
        #[from]
        source: UnknownProvider,
    },
    /// The page size.
    #[error("page-size: {source}")]
    PageSize {
        /// What is wrong with it.
        #[from]
        source: PageSizeError,
    },
}

impl FromStr for Choice {
    type Err = ChoiceError;

    fn from_str(text: &str) -> Result<Self, ChoiceError> {
        let mut choice = Self::default();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (key, value) =
                part.split_once('=').ok_or_else(|| ChoiceError::NoValue(part.to_owned()))?;
            let bad =
                |key, allowed| ChoiceError::BadValue { key, value: value.to_owned(), allowed };
            let twice = match key {
                "provider" if value == "auto" => choice.provider.replace(Wish::Auto).is_some(),
                "provider" => {
                    choice.provider.replace(value.parse::<ProviderKind>()?.into()).is_some()
                }
                "page-size" => choice.page_size.replace(value.parse()?).is_some(),
                "require" => {
                    let exact = match value {
                        "exact" => true,
                        "any" => false,
                        _ => return Err(bad("require", "exact or any")),
                    };
                    choice.require_exact.replace(exact).is_some()
                }
                "early-ndma" => {
                    let early = match value {
                        "off" => EarlyNdma::Off,
                        "untracked" => EarlyNdma::Untracked,
                        "on" => EarlyNdma::On,
                        _ => return Err(bad("early-ndma", "off, untracked or on")),
                    };
                    choice.early_ndma.replace(early).is_some()
                }
                _ => return Err(ChoiceError::UnknownKey(key.to_owned())),
            };
            if twice {
                return Err(ChoiceError::Twice(key.to_owned()));
            }
        }
        Ok(choice)
    }
}

/// Wishes for some devices.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DeviceRule {
    /// Which: a label, a requester id as `bb:dd.f`, or a plugin's id.
    pub device: String,
    /// What is wished for them.
    pub choice: Choice,
}

impl DeviceRule {
    /// True if it speaks of this device.
    #[must_use]
    pub fn is_about(&self, device: &DeviceCaps) -> bool {
        [&device.label, &device.plugin, &device.rid.to_string()].contains(&&self.device)
    }
}

/// What the operator says. Of several rules for a device the later overrides the earlier, field by
/// field, and all of them override what is said for every device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// For every device.
    #[serde(default)]
    pub global: Choice,
    /// For some.
    #[serde(default)]
    pub devices: Vec<DeviceRule>,
}

impl Policy {
    /// What rules name this device say, without the global part.
    #[must_use]
    pub fn named(&self, device: &DeviceCaps) -> Choice {
        let rules = self.devices.iter().filter(|rule| rule.is_about(device));
        rules.fold(Choice::default(), |earlier, rule| rule.choice.or(earlier))
    }

    /// What is said of this device in the end.
    #[must_use]
    pub fn of(&self, device: &DeviceCaps) -> Choice {
        self.named(device).or(self.global)
    }
}

/// What is known of one plugin on one IOMMU model. Consulted only where the operator says nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Quirk {
    /// The plugin's id, all of it.
    pub plugin: String,
    /// The IOMMU model; `None` for any.
    #[serde(default)]
    pub iommu_model: Option<String>,
    /// What to use.
    pub provider: ProviderKind,
    /// In which page size.
    #[serde(default)]
    pub page_size: Option<TrackingPageSize>,
    /// What is wrong with what would be used else.
    pub reason: String,
}

/// The quirks; the first that fits counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quirks(pub Vec<Quirk>);

impl Quirks {
    /// The quirk for this device there.
    #[must_use]
    pub fn find(&self, device: &DeviceCaps, space: &SpaceCaps) -> Option<&Quirk> {
        self.0.iter().find(|quirk| {
            let model = quirk.iommu_model.as_ref();
            quirk.plugin == device.plugin && model.is_none_or(|model| *model == space.iommu_model)
        })
    }
}
