//! What a short measurement at start has found.

use serde::{Deserialize, Serialize};

use crate::page_size::TrackingPageSize;
use crate::provider::ProviderKind;

/// What one round costs with one provider, as measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The provider.
    pub provider: ProviderKind,
    /// The tracking page size.
    pub page_size: TrackingPageSize,
    /// One harvest, in ns.
    pub harvest_ns: u64,
    /// What the round's DMA took longer than without tracking, in ns.
    pub dma_ns: u64,
    /// What it takes to send again the pages that it reports and that need not be, in ns.
    pub resend_ns: u64,
}

impl Measured {
    /// All of it, in ns; saturates.
    #[must_use]
    pub const fn total_ns(&self) -> u64 {
        self.harvest_ns.saturating_add(self.dma_ns).saturating_add(self.resend_ns)
    }
}

/// Measurements, given from outside: this crate has no clock. May be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Costs {
    /// In any order; of two for the same provider and size the first counts.
    pub measured: Vec<Measured>,
}

impl Costs {
    /// The measurement for this provider and size.
    #[must_use]
    pub fn get(&self, provider: ProviderKind, page_size: TrackingPageSize) -> Option<&Measured> {
        self.measured.iter().find(|cost| cost.provider == provider && cost.page_size == page_size)
    }

    /// The cheapest size of this provider for which `usable` holds.
    pub(crate) fn cheapest(
        &self,
        provider: ProviderKind,
        usable: impl Fn(TrackingPageSize) -> bool,
    ) -> Option<&Measured> {
        let own = self.measured.iter().filter(|cost| cost.provider == provider);
        own.filter(|cost| usable(cost.page_size)).min_by_key(|cost| cost.total_ns())
    }
}
