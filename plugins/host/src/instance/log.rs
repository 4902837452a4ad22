//! The device's own log: started, harvested and stopped under the rules of any call.

use super::line::{Control, Line};
use crate::instance_error::InstanceError;
use crate::raw::Start;
use crate::shared_bitmap::{SharedBitmap, runs};
use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa};
use drogher_plugin_abi as abi;
use drogher_tracking::log_ranges::{self, LogRangesError};
use drogher_tracking::{DeviceLog, LogCaps, LogFailure, TrackingPageSize};
use std::ops::Range;
use std::sync::Arc;

/// Pages asked for in one call.
const PIECE_PAGES: u64 = 1 << 20;

/// Why a device's log did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Started twice.
    #[error("The log of device {instance} runs already; stop it first")]
    Started {
        /// The instance.
        instance: String,
    },
    /// Not started, stopped already, or ended by a reset.
    #[error(
        "The log of device {instance} does not run: it was not started, or a stop or a reset ended it"
    )]
    NotStarted {
        /// The instance.
        instance: String,
    },
    /// The ranges are none that it takes.
    #[error("The log of device {instance} does not take these ranges")]
    Ranges {
        /// The instance.
        instance: String,
        /// Which rule they break.
        #[source]
        source: LogRangesError,
    },
    /// A range ends beyond the address width.
    #[error("Range {start}..{end} is beyond the {bits} address bits of device {instance}")]
    Width {
        /// The instance.
        instance: String,
        /// First byte.
        start: Gpa,
        /// One past the last.
        end: Gpa,
        /// Of its domain.
        bits: u32,
    },
    /// Asked for in another page size than it logs in.
    #[error("The log of device {instance} has pages of {chosen}, not {asked}")]
    PageSize {
        /// The instance.
        instance: String,
        /// As chosen at the start.
        chosen: TrackingPageSize,
        /// As asked for.
        asked: TrackingPageSize,
    },
    /// The range to report is empty, or not of whole tracking pages.
    #[error(
        "The log of device {instance} cannot report {start}..{end}: whole pages of {page_size} only"
    )]
    Misaligned {
        /// The instance.
        instance: String,
        /// First byte.
        start: Gpa,
        /// One past the last.
        end: Gpa,
        /// Of the log.
        page_size: TrackingPageSize,
    },
    /// The bitmap does not cover what is to be reported.
    #[error("A report of device {instance} does not fit")]
    Bitmap {
        /// The instance.
        instance: String,
        /// What is not covered.
        #[source]
        source: BitmapError,
    },
    /// The bitmap that it is to set bits in could not be made.
    #[error("No bitmap to share with device {instance}")]
    Shared {
        /// The instance.
        instance: String,
        /// The kernel's answer.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The call failed.
    #[error(transparent)]
    Call(#[from] InstanceError),
}

/// A log that runs.
pub(super) struct Logging {
    ranges: Vec<Range<Gpa>>,
    page_size: TrackingPageSize,
    shared: Option<Arc<SharedBitmap>>,
}

impl Logging {
    /// Leaves the bitmap mapped for ever: the plugin may still set bits.
    pub(super) fn leak(self) {
        std::mem::forget(self.shared);
    }
}

/// A plugin's log.
pub(super) struct PluginLog {
    line: Arc<Line>,
    caps: LogCaps,
}

impl PluginLog {
    pub(super) fn new(line: Arc<Line>, caps: LogCaps) -> Self {
        Self { line, caps }
    }

    fn name(&self) -> String {
        self.line.name.clone()
    }

    fn begin(
        &self,
        ranges: &[Range<Gpa>],
        wish: TrackingPageSize,
    ) -> Result<TrackingPageSize, LogError> {
        let line = &*self.line;
        let mut control = line.control()?;
        if control.log.is_some() {
            return Err(LogError::Started { instance: self.name() });
        }
        // Of whole pages as asked for, and as the log has them.
        self.check(ranges, wish)?;
        let wish = wish.clamp(self.caps.min_page_size, self.caps.max_page_size);
        self.check(ranges, wish)?;
        let entry = |range: &Range<Gpa>| abi::GpaRange {
            gpa: range.start.0,
            len: range.end.0 - range.start.0,
        };
        let raw: Vec<_> = ranges.iter().map(entry).collect();
        let is_shared = self.is_shared(&mut control)?;
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else {
            return Err(self.ranges(LogRangesError::None));
        };
        let shared = match is_shared {
            false => None,
            true => {
                let made = SharedBitmap::new(&(first.start..last.end), wish);
                Some(Arc::new(made.map_err(|source| LogError::Shared {
                    instance: self.name(),
                    source: Arc::new(source),
                })?))
            }
        };
        let (theirs, first_gpa) = (shared.clone(), first.start.0);
        let result = line.call(&mut control, line.deadlines.call, move |device| {
            let bitmap = theirs.as_deref().map(|bitmap| (bitmap, first_gpa));
            device.log_start(&Start { ranges: &raw, page_size: wish.bytes(), bitmap })
        });
        let logging = |page_size| Logging { ranges: ranges.to_vec(), page_size, shared };
        let chosen = match result {
            Ok(chosen) => chosen,
            Err(error @ InstanceError::Refused { .. }) => return Err(error.into()),
            // Who knows what it has begun.
            Err(error) => {
                logging(wish).leak();
                return Err(error.into());
            }
        };
        let caps = self.caps.min_page_size..=self.caps.max_page_size;
        let fits = |size: &TrackingPageSize| caps.contains(size) && (!is_shared || *size == wish);
        match TrackingPageSize::new(chosen).ok().filter(fits) {
            Some(page_size) => {
                control.log = Some(logging(page_size));
                Ok(page_size)
            }
            None => {
                logging(wish).leak();
                let what = format!("a tracking page of {chosen} bytes, which it does not offer");
                Err(line.lied("dma-log.start", what).into())
            }
        }
    }

    fn check(&self, ranges: &[Range<Gpa>], page_size: TrackingPageSize) -> Result<(), LogError> {
        log_ranges::check(ranges, page_size).map_err(|source| self.ranges(source))?;
        let (count, max) = (ranges.len(), self.caps.max_ranges);
        if count > max {
            return Err(self.ranges(LogRangesError::TooMany { count, max }));
        }
        let device = self.line.context.device.as_ref();
        let bits = device.map_or(0, |device| device.requester.domain().address_bits());
        for Range { start, end } in ranges.iter().cloned() {
            if end.0 > 1 << bits {
                return Err(LogError::Width { instance: self.name(), start, end, bits });
            }
        }
        Ok(())
    }

    fn ranges(&self, source: LogRangesError) -> LogError {
        LogError::Ranges { instance: self.name(), source }
    }

    /// Asked of the table that the device has.
    fn is_shared(&self, control: &mut Control) -> Result<bool, LogError> {
        let device = crate::context::lock(&control.device);
        let table = device.as_ref().and_then(|device| device.log);
        let table = table.ok_or_else(|| InstanceError::Gone { instance: self.name() })?;
        Ok(table.flags & abi::DROGHER_DMA_LOG_SHARED != 0)
    }

    fn take(
        &self,
        range: &Range<Gpa>,
        asked: TrackingPageSize,
        into: &DirtyBitmap,
    ) -> Result<(), LogError> {
        let mut control = self.line.control()?;
        let Some(logging) = &control.log else {
            return Err(LogError::NotStarted { instance: self.name() });
        };
        let page_size = logging.page_size;
        if page_size != asked {
            let (instance, chosen) = (self.name(), page_size);
            return Err(LogError::PageSize { instance, chosen, asked });
        }
        let Range { start, end } = *range;
        // A page is taken whole: what lies behind the end of a part of it would be lost, if there is
        // room for it.
        let whole = page_size.is_aligned(end) || end == into.range().end;
        if range.is_empty() || !page_size.is_aligned(start) || !whole {
            return Err(LogError::Misaligned { instance: self.name(), start, end, page_size });
        }
        if !into.covers(range) {
            let own = into.range();
            let (covered_start, covered_end) = (own.start, own.end);
            return Err(self.bitmap(BitmapError::Outside {
                start,
                end,
                covered_start,
                covered_end,
            }));
        }
        let mark = |run: Range<Gpa>| {
            let run = run.start.max(start)..run.end.min(end);
            if run.is_empty() { Ok(()) } else { into.set_range(run).map_err(|e| self.bitmap(e)) }
        };
        // What was started, in whole pages; nothing else is asked for.
        let everything = Gpa(0)..Gpa(!(page_size.bytes() - 1));
        let (ranges, shared) = (logging.ranges.clone(), logging.shared.clone());
        for one in ranges.iter().map(|one| page_size.grow(one, &everything)) {
            let (mut at, stop) = (one.start.max(start), one.end.min(end));
            if let Some(shared) = &shared {
                if at < stop {
                    shared.take(&(at..stop), mark)?;
                }
                continue;
            }
            let stop = Gpa(stop.0.next_multiple_of(page_size.bytes()));
            while at < stop {
                let pages = ((stop.0 - at.0) / page_size.bytes()).min(PIECE_PAGES);
                self.piece(&mut control, at, pages, page_size, mark)?;
                at = Gpa(at.0 + pages * page_size.bytes());
            }
        }
        Ok(())
    }

    /// One call: `pages` tracking pages from `at` on.
    fn piece(
        &self,
        control: &mut Control,
        at: Gpa,
        pages: u64,
        page_size: TrackingPageSize,
        mark: impl Fn(Range<Gpa>) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let line = &*self.line;
        let mut words = std::mem::take(&mut control.words);
        words.clear();
        // At most PIECE_PAGES.
        words.resize(pages.div_ceil(64) as usize, 0);
        let len = pages * page_size.bytes();
        let words = line.call(control, line.deadlines.call, move |device| {
            device.log_report(at.0, len, &mut words)?;
            Ok(words)
        })?;
        let beyond = pages % 64;
        if beyond != 0 && words.last().is_some_and(|last| last >> beyond != 0) {
            let what = format!("bits beyond the {pages} pages asked for");
            return Err(line.lied("dma-log.report", what).into());
        }
        for (index, word) in (0u64..).zip(&words) {
            for (bit, count) in runs(*word) {
                let first = at.0 + (index * 64 + bit) * page_size.bytes();
                mark(Gpa(first)..Gpa(first + count * page_size.bytes()))?;
            }
        }
        control.words = words;
        Ok(())
    }

    fn bitmap(&self, source: BitmapError) -> LogError {
        LogError::Bitmap { instance: self.name(), source }
    }

    fn end(&self) -> Result<(), LogError> {
        let line = &*self.line;
        let mut control = line.control()?;
        let Some(logging) = control.log.take() else {
            return Err(LogError::NotStarted { instance: self.name() });
        };
        let result = line.call(&mut control, line.deadlines.call, |device| device.log_stop());
        if result.is_err() {
            logging.leak();
        }
        Ok(result?)
    }
}

impl DeviceLog for PluginLog {
    fn start(
        &self,
        ranges: &[Range<Gpa>],
        page_size: TrackingPageSize,
    ) -> Result<TrackingPageSize, LogFailure> {
        Ok(self.begin(ranges, page_size)?)
    }

    fn report(
        &self,
        range: &Range<Gpa>,
        page_size: TrackingPageSize,
        into: &DirtyBitmap,
    ) -> Result<(), LogFailure> {
        Ok(self.take(range, page_size, into)?)
    }

    fn stop(&self) -> Result<(), LogFailure> {
        Ok(self.end()?)
    }
}
