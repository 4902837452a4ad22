//! What a short measurement at start has found.

use serde::{Deserialize, Serialize};

use crate::page_size::TrackingPageSize;
use crate::provider::ProviderKind;

/// What one round costs with one provider, as measured: all of it, so that totals of providers of
/// different classes can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// The provider.
    pub provider: ProviderKind,
    /// The tracking page size.
    pub page_size: TrackingPageSize,
    /// CPU time of tracking: one harvest, and its share of starting and stopping, in ns.
    pub harvest_ns: u64,
    /// What the round's DMA took longer than without tracking, in ns.
    pub dma_ns: u64,
    /// What it takes to send again the pages that it reports, in ns.
    pub resend_ns: u64,
}

impl Measured {
    /// All of it, in ns; saturates.
    #[must_use]
    pub const fn total_ns(&self) -> u64 {
        self.harvest_ns.saturating_add(self.dma_ns).saturating_add(self.resend_ns)
    }
}

/// What costs at most this part more than the cheapest counts as cheap as it: a tenth.
const NEAR: u64 = 10;

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

    /// The cheapest by `total`, in ns, which is `None` for what is not to be had. Of those that cost
    /// at most a tenth more the narrowest class: a measurement is no better than that, and what
    /// reports less goes on being cheap when the load changes.
    pub fn best(&self, total: impl Fn(&Measured) -> Option<u64>) -> Option<&Measured> {
        let priced = || self.measured.iter().filter_map(|cost| Some((total(cost)?, cost)));
        let least = priced().map(|(ns, _)| ns).min()?;
        let near = priced().filter(|(ns, _)| ns.saturating_sub(least) <= least / NEAR);
        near.min_by_key(|(ns, cost)| (cost.provider.class(), *ns)).map(|(_, cost)| cost)
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

#[cfg(test)]
#[path = "costs_test.rs"]
mod tests;
