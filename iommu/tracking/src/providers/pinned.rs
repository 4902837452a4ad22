//! Provider `pinned`: what a device has pinned for writing.

use std::sync::Arc;

use drogher_iommu_types::Rid;

use crate::page_size::TrackingPageSize;
use crate::pins::PinBoard;
use crate::provider::{
    Class, Coverage, HarvestStats, Provider, ProviderError, ProviderKind, Switch,
};
use crate::sink::Sink;

/// A [`PinBoard`] as a provider, for the device that pins on it.
pub struct PinnedProvider {
    rid: Rid,
    board: Arc<PinBoard>,
    page_size: TrackingPageSize,
    switch: Switch,
}

impl PinnedProvider {
    /// Off.
    #[must_use]
    pub fn new(rid: Rid, board: Arc<PinBoard>, page_size: TrackingPageSize) -> Self {
        Self { rid, board, page_size, switch: Switch::off(ProviderKind::Pinned) }
    }
}

impl Provider for PinnedProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Pinned
    }

    fn class(&self) -> Class {
        Class::Pinned
    }

    fn covers(&self) -> Coverage {
        Coverage::Device(self.rid)
    }

    fn page_size(&self) -> TrackingPageSize {
        self.page_size
    }

    fn can_change_page_size(&self) -> bool {
        true
    }

    fn set_page_size(&mut self, size: TrackingPageSize) -> bool {
        self.page_size = size;
        true
    }

    fn start(&mut self) -> Result<(), ProviderError> {
        self.switch.start(|| Ok(self.board.start_recording()?))
    }

    fn harvest(&mut self, sink: &Sink<'_>) -> Result<HarvestStats, ProviderError> {
        self.switch.check()?;
        if self.page_size == TrackingPageSize::K4 {
            return Ok(self.board.harvest(sink.range(), sink.bitmap())?.into());
        }
        sink.widened(self.page_size, |range, bitmap| {
            Ok(self.board.harvest(range, bitmap).map(drop)?)
        })
    }

    fn stop(&mut self) -> Result<(), ProviderError> {
        self.switch.stop()?;
        self.board.stop_recording();
        Ok(())
    }
}

impl Drop for PinnedProvider {
    fn drop(&mut self) {
        if self.switch.check().is_ok() {
            self.board.stop_recording();
        }
    }
}
