//! Provider `all`: everything mapped and writable.

use std::sync::Arc;

use drogher_iommu_types::PageCount;

use crate::address_space::AddressSpace;
use crate::page_size::TrackingPageSize;
use crate::provider::{
    Class, Coverage, HarvestStats, Provider, ProviderError, ProviderKind, Switch,
};
use crate::sink::Sink;

/// Reports every page that devices may write to, at every harvest. Always possible for devices
/// behind the second stage, and never converges.
pub struct AllProvider {
    space: Arc<dyn AddressSpace>,
    switch: Switch,
}

impl AllProvider {
    /// Off, over the address space that the devices share.
    #[must_use]
    pub fn new(space: Arc<dyn AddressSpace>) -> Self {
        Self { space, switch: Switch::off(ProviderKind::All) }
    }

    /// One report, whether it is started or not: there is nothing to record.
    pub(crate) fn report(&self, sink: &Sink<'_>) -> Result<PageCount, ProviderError> {
        Ok(self.space.mapped_writable(sink.range(), sink.bitmap())?)
    }
}

impl Provider for AllProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::All
    }

    fn class(&self) -> Class {
        Class::AllMapped
    }

    fn covers(&self) -> Coverage {
        Coverage::Space
    }

    fn page_size(&self) -> TrackingPageSize {
        TrackingPageSize::K4
    }

    /// It records nothing: what is written after its last report is in none.
    fn last_read_is_complete(&self) -> bool {
        false
    }

    fn start(&mut self) -> Result<(), ProviderError> {
        self.switch.start(|| Ok(()))
    }

    fn harvest(&mut self, sink: &Sink<'_>) -> Result<HarvestStats, ProviderError> {
        self.switch.check()?;
        Ok(self.report(sink)?.into())
    }

    fn stop(&mut self) -> Result<(), ProviderError> {
        self.switch.stop()
    }
}
