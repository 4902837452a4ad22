//! Provider `device`: the device's own log.

use std::error::Error;
use std::ops::Range;
use std::sync::Arc;

use drogher_iommu_types::{DirtyBitmap, Gpa, Rid, mutant};

use crate::log_ranges;
use crate::page_size::TrackingPageSize;
use crate::provider::{
    Class, Coverage, HarvestStats, Provider, ProviderError, ProviderKind, Switch,
};
use crate::sink::Sink;

/// Whatever the owner of a log says went wrong.
pub type LogFailure = Box<dyn Error + Send + Sync>;

/// A device's own log of the pages that it writes to, by GPA. Implemented over the plugin.
///
/// A log sets its bits after the store, so that a write that a report misses is in the next one.
/// Each call returns within a time of its owner's. Called from one thread at a time.
pub trait DeviceLog: Send + Sync {
    /// Begins to log writes to `ranges`: 1 to 256, sorted, apart, of whole pages of `page_size`.
    /// Returns the page size that the device has chosen, `page_size` being a wish.
    ///
    /// # Errors
    /// Then it does not log.
    fn start(
        &self,
        ranges: &[Range<Gpa>],
        page_size: TrackingPageSize,
    ) -> Result<TrackingPageSize, LogFailure>;

    /// Takes what was written in `range`, of whole pages of `page_size` (the chosen one) except at
    /// the end of `into`, and sets at least one bit in `into` for each such page; clears none.
    ///
    /// # Errors
    /// All memory counts as dirty then; the log is stopped, if it still runs, and started anew.
    fn report(
        &self,
        range: &Range<Gpa>,
        page_size: TrackingPageSize,
        into: &DirtyBitmap,
    ) -> Result<(), LogFailure>;

    /// Ends logging, and forgets what was not reported.
    ///
    /// # Errors
    /// Whatever is left running is not asked again.
    fn stop(&self) -> Result<(), LogFailure>;
}

/// A [`DeviceLog`] as a provider. Exact to the log's page size, for this device alone.
pub struct DeviceProvider {
    rid: Rid,
    log: Arc<dyn DeviceLog>,
    ranges: Vec<Range<Gpa>>,
    /// What the ranges are made of whole pages of.
    wish: TrackingPageSize,
    page_size: TrackingPageSize,
    switch: Switch,
}

impl DeviceProvider {
    /// Off. `ranges` have to be such as a log takes; [`log_ranges::cover`] makes them.
    #[must_use]
    pub fn new(
        rid: Rid,
        log: Arc<dyn DeviceLog>,
        ranges: Vec<Range<Gpa>>,
        page_size: TrackingPageSize,
    ) -> Self {
        let switch = Switch::off(ProviderKind::Device);
        Self { rid, log, ranges, wish: page_size, page_size, switch }
    }

    /// After a report that failed, for which everything counts as dirty now and once more: what a
    /// reset of the device has ended is begun again, or every later report would fail as well. If
    /// that fails too, so does the next report.
    fn begin_anew(&mut self) {
        // It may have ended already.
        let _ = self.log.stop();
        if let Ok(chosen) = self.log.start(&self.ranges, self.wish) {
            self.page_size = chosen;
        }
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(LogFailure) -> ProviderError + use<> {
        let rid = self.rid;
        move |source| ProviderError::DeviceLog { rid, action, source }
    }
}

impl Provider for DeviceProvider {
    fn kind(&self) -> ProviderKind {
        ProviderKind::Device
    }

    fn class(&self) -> Class {
        Class::Exact
    }

    fn covers(&self) -> Coverage {
        Coverage::Device(self.rid)
    }

    fn page_size(&self) -> TrackingPageSize {
        self.page_size
    }

    /// A write whose bit is still to be set is in no report before it.
    fn last_read_is_complete(&self) -> bool {
        false
    }

    fn start(&mut self) -> Result<(), ProviderError> {
        let (rid, failed) = (self.rid, self.failed("start"));
        let chosen = self.switch.start(|| {
            log_ranges::check(&self.ranges, self.wish)
                .map_err(|source| ProviderError::LogRanges { rid, source })?;
            self.log.start(&self.ranges, self.wish).map_err(failed)
        })?;
        self.page_size = chosen;
        Ok(())
    }

    fn harvest(&mut self, sink: &Sink<'_>) -> Result<HarvestStats, ProviderError> {
        self.switch.check()?;
        // Also at 4K: a plugin never gets at the caller's bitmap.
        let report = sink.widened(self.page_size, |range, bitmap| {
            self.log.report(range, self.page_size, bitmap).map_err(self.failed("report"))
        });
        if report.is_err() && !mutant!("ended-log-stays-off") {
            self.begin_anew();
        }
        report
    }

    fn stop(&mut self) -> Result<(), ProviderError> {
        self.switch.stop()?;
        self.log.stop().map_err(self.failed("stop"))
    }
}

impl Drop for DeviceProvider {
    fn drop(&mut self) {
        if self.switch.check().is_ok() {
            // Nobody is left to be told.
            let _ = self.log.stop();
        }
    }
}
