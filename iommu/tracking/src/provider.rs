//! What a source of dirty pages is.

use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;

use drogher_iommu_types::{BitmapError, PageCount, Rid};
use serde::{Deserialize, Serialize};

use crate::address_space::AddressSpaceError;
use crate::log_ranges::LogRangesError;
use crate::page_size::TrackingPageSize;
use crate::providers::LogFailure;
use crate::sink::Sink;

/// How close a report comes to what was written. A greater class reports more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The tracking pages that were written, once.
    Exact,
    /// What is pinned for writing, at every harvest.
    Pinned,
    /// Everything that is mapped and writable, at every harvest: never fewer pages than that.
    AllMapped,
}

impl Class {
    /// The name in JSON and text.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Pinned => "pinned",
            Self::AllMapped => "all-mapped",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The providers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProviderKind {
    /// D bits of the second stage.
    Iommu,
    /// The device's own log.
    Device,
    /// What the device has pinned.
    Pinned,
    /// The second stage write-protected: the first write after a clear takes the slow path.
    Fault,
    /// Everything mapped and writable, for ever.
    All,
}

impl ProviderKind {
    /// All of them; the earlier is taken where nothing else decides.
    pub const EACH: [Self; 5] = [Self::Iommu, Self::Device, Self::Fault, Self::Pinned, Self::All];

    /// The name in JSON, options and text.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Iommu => "iommu",
            Self::Device => "device",
            Self::Pinned => "pinned",
            Self::Fault => "fault",
            Self::All => "all",
        }
    }

    /// What its reports are worth.
    #[must_use]
    pub const fn class(self) -> Class {
        match self {
            Self::Iommu | Self::Device | Self::Fault => Class::Exact,
            Self::Pinned => Class::Pinned,
            Self::All => Class::AllMapped,
        }
    }

    /// True for the two that are modes of the domain's own recording, of which it has one at a time.
    #[must_use]
    pub const fn is_recorder(self) -> bool {
        matches!(self, Self::Iommu | Self::Fault)
    }
}

impl fmt::Display for ProviderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no provider.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no provider; use iommu, device, pinned, fault or all")]
pub struct UnknownProvider(pub String);

impl FromStr for ProviderKind {
    type Err = UnknownProvider;

    fn from_str(text: &str) -> Result<Self, UnknownProvider> {
        let found = Self::EACH.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| UnknownProvider(text.to_owned()))
    }
}

/// Whose writes a provider sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// Those of every device of the address space that go through its second stage.
    Space,
    /// Those of this device.
    Device(Rid),
}

/// What one harvest of one provider found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HarvestStats {
    /// Pages of 4 KiB reported.
    pub pages: PageCount,
    /// How often it had to sleep for an access in flight.
    pub drain_sleeps: u64,
}

impl From<PageCount> for HarvestStats {
    fn from(pages: PageCount) -> Self {
        Self { pages, drain_sleeps: 0 }
    }
}

impl AddAssign for HarvestStats {
    fn add_assign(&mut self, other: Self) {
        self.pages += other.pages;
        self.drain_sleeps += other.drain_sleeps;
    }
}

/// Why a provider did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// Started twice.
    #[error("Provider {provider} is started already; stop it first")]
    AlreadyStarted {
        /// Which.
        provider: ProviderKind,
    },
    /// Stopped twice, or harvested while it was off.
    #[error("Provider {provider} is not started")]
    NotStarted {
        /// Which.
        provider: ProviderKind,
    },
    /// The domain refused.
    #[error("The address space's own tracking failed")]
    AddressSpace(#[from] AddressSpaceError),
    /// The device's log refused.
    #[error("The log of device {rid} failed to {action}")]
    DeviceLog {
        /// The device.
        rid: Rid,
        /// start, report or stop.
        action: &'static str,
        /// What its owner said.
        #[source]
        source: LogFailure,
    },
    /// The ranges are none that a device's log takes.
    #[error("The log of device {rid} cannot be started over these ranges")]
    LogRanges {
        /// The device.
        rid: Rid,
        /// Which rule they break.
        #[source]
        source: LogRangesError,
    },
    /// A bitmap could not be made, or has no place for a page.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
}

/// A source of dirty pages. Its owner calls it from one thread at a time.
///
/// From the return of `start` on, every write of what it covers is in a later harvest, and no wait
/// is without a deadline. After an error of `harvest` its owner takes everything for dirty, at once
/// and once more at the next harvest: bits may have been lost, and a write that the failed harvest
/// has reported may still land.
pub trait Provider: Send {
    /// Which it is.
    fn kind(&self) -> ProviderKind;

    /// What its reports are worth.
    fn class(&self) -> Class;

    /// Whose writes it sees.
    fn covers(&self) -> Coverage;

    /// The page size that it works with: as asked for until it is started, then as chosen.
    fn page_size(&self) -> TrackingPageSize;

    /// True if [`Self::set_page_size`] works.
    fn can_change_page_size(&self) -> bool {
        false
    }

    /// Takes another page size while it runs; true if it did, and nothing is lost by it.
    fn set_page_size(&mut self, _size: TrackingPageSize) -> bool {
        false
    }

    /// True if a harvest that begins now has every write that has ended by now, however its device
    /// goes on: such a provider can be left after one last harvest.
    fn last_read_is_complete(&self) -> bool {
        true
    }

    /// Begins to record.
    ///
    /// # Errors
    /// `AlreadyStarted`, or what the source itself says; then it is off.
    fn start(&mut self) -> Result<(), ProviderError>;

    /// ORs what was written in the sink's range since the last harvest into the sink.
    ///
    /// # Errors
    /// `NotStarted`, or what the source itself says; see above.
    fn harvest(&mut self, sink: &Sink<'_>) -> Result<HarvestStats, ProviderError>;

    /// Ends recording, and forgets what was not harvested.
    ///
    /// # Errors
    /// `NotStarted`, or what the source itself says; then it is off all the same.
    fn stop(&mut self) -> Result<(), ProviderError>;
}

/// Whether a provider runs; the checks that all of them share.
#[derive(Debug)]
pub(crate) struct Switch {
    provider: ProviderKind,
    on: bool,
}

impl Switch {
    pub(crate) fn off(provider: ProviderKind) -> Self {
        Self { provider, on: false }
    }

    /// Turns it on if `start` succeeds.
    pub(crate) fn start<T>(
        &mut self,
        start: impl FnOnce() -> Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        if self.on {
            return Err(ProviderError::AlreadyStarted { provider: self.provider });
        }
        let started = start()?;
        self.on = true;
        Ok(started)
    }

    pub(crate) fn check(&self) -> Result<(), ProviderError> {
        if self.on { Ok(()) } else { Err(ProviderError::NotStarted { provider: self.provider }) }
    }

    pub(crate) fn stop(&mut self) -> Result<(), ProviderError> {
        self.check()?;
        self.on = false;
        Ok(())
    }
}
