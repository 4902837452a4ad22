//! Provider `iommu`: D bits.

use std::sync::Arc;

use super::recorder::{Recorder, recording_provider};
use crate::address_space::{AddressSpace, TrackMode};
use crate::page_size::TrackingPageSize;
use crate::provider::{Class, Coverage, HarvestStats, Provider, ProviderError, ProviderKind};
use crate::sink::Sink;

recording_provider! {
    /// The D bits of the second stage. Exact to the leaf, for every device behind it.
    IommuProvider, ProviderKind::Iommu, TrackMode::DBits
}
