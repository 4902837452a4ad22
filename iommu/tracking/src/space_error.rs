//! What can go wrong in an operation on a tracked address space.

use std::sync::Arc;

use drogher_iommu_types::{BitmapError, Gpa, Rid};

use crate::address_space::AddressSpaceError;
use crate::caps::DeviceCaps;
use crate::provider::{Class, ProviderError, ProviderKind};

/// Why an operation was refused. Unless a variant says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpaceError {
    /// The guest's memory is not given as sorted ranges of whole pages, apart.
    #[error("RAM at {start}..{end} is not whole pages, or comes before or inside the range before")]
    Ram {
        /// First byte.
        start: Gpa,
        /// One past the last byte.
        end: Gpa,
    },
    /// The range to harvest is not inside RAM's ends, or not of whole pages.
    #[error("Range {start}..{end} to harvest is not whole pages within {span_start}..{span_end}")]
    Range {
        /// First byte.
        start: Gpa,
        /// One past the last byte.
        end: Gpa,
        /// First byte of RAM.
        span_start: Gpa,
        /// One past the last.
        span_end: Gpa,
    },
    /// The caller's bitmap does not cover the range, or one cannot be made.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// Tracking is off.
    #[error("Tracking is off; start it first")]
    NotTracking,
    /// Tracking is on.
    #[error("Tracking is on already; stop it, or switch to another plan")]
    AlreadyTracking,
    /// No such device here.
    #[error("Device {rid} is not attached here")]
    NoDevice {
        /// As given.
        rid: Rid,
    },
    /// A device with this id is attached already.
    #[error("Device {rid} is attached already")]
    Attached {
        /// As given.
        rid: Rid,
    },
    /// The plan is made for other devices than these.
    #[error("The plan is not made for the devices of address space {space}: {device}; plan again")]
    Plan {
        /// The address space.
        space: String,
        /// The first device that is in one of them only, or not as planned.
        device: String,
    },
    /// The plan wants a source that was not attached with the device.
    #[error("Device {device} was attached without what provider {provider} needs")]
    NoSource {
        /// The device.
        device: String,
        /// The provider.
        provider: ProviderKind,
    },
    /// The device reaches memory past every IOMMU, and nothing tracks it.
    #[error("Device {device} reaches memory past every IOMMU and has no tracker; unplug it")]
    Raw {
        /// Label and id.
        device: String,
    },
    /// It is there already.
    #[error("Device {rid} is in NDMA already")]
    InNdma {
        /// The device.
        rid: Rid,
    },
    /// It is not.
    #[error("Device {rid} is not in NDMA")]
    NotInNdma {
        /// The device.
        rid: Rid,
    },
    /// The device has no NDMA.
    #[error("Device {rid} has no NDMA")]
    NoNdma {
        /// The device.
        rid: Rid,
    },
    /// A provider could not be started. After a failed switch the old trackers
    /// go on; what could not, reports everything mapped.
    #[error("Address space {space}: provider {provider} could not be started")]
    Start {
        /// The address space.
        space: String,
        /// The provider.
        provider: ProviderKind,
        /// Why.
        #[source]
        source: ProviderError,
    },
    /// A provider did not stop as it should. It is stopped for us all the same.
    #[error("Address space {space}: provider {provider} did not stop as it should")]
    Stop {
        /// The address space.
        space: String,
        /// The provider.
        provider: ProviderKind,
        /// Why.
        #[source]
        source: ProviderError,
    },
    /// A tracker failed in a harvest, and an exact report is required. What there is to report is
    /// in the caller's bitmap: all RAM.
    #[error("Address space {space}: a tracker failed, and require=exact allows no other report")]
    Failed {
        /// The address space.
        space: String,
        /// Why.
        #[source]
        source: Arc<ProviderError>,
    },
    /// The report is not exact, and that is required. It is in the caller's bitmap.
    #[error("Address space {space}: the report is {class} because of {devices}; require=exact")]
    NotExact {
        /// The address space.
        space: String,
        /// What it is worth.
        class: Class,
        /// The devices that make it so.
        devices: String,
    },
    /// The address space refused.
    #[error(transparent)]
    AddressSpace(#[from] AddressSpaceError),
}

impl SpaceError {
    pub(crate) fn raw(device: &DeviceCaps) -> Self {
        Self::Raw { device: format!("{} ({})", device.label, device.rid) }
    }
}
