//! What a device says of tracking its DMA, and its own log.

use drogher_plugin_abi as abi;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// What a device's own log can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogCaps {
    /// Smallest tracking page in bytes: a power of two, 4 KiB to 2 MiB.
    pub min_page: u64,
    /// Largest; likewise.
    pub max_page: u64,
    /// Most ranges of one start, 1 to 256.
    pub max_ranges: u32,
    /// It sets its bits in the host's bitmap; there is no `log_report`.
    pub shared: bool,
}

impl LogCaps {
    /// Any page size, any number of ranges; with a report.
    pub const ANY: LogCaps = LogCaps {
        min_page: abi::DROGHER_DMA_LOG_PAGE_MIN,
        max_page: abi::DROGHER_DMA_LOG_PAGE_MAX,
        max_ranges: abi::DROGHER_DMA_LOG_RANGES_MAX,
        shared: false,
    };
}

/// What a log is to do.
#[derive(Debug)]
pub struct LogStart {
    /// GPA: sorted, apart, of whole tracking pages.
    pub ranges: Vec<Range<u64>>,
    /// Bytes of a tracking page, as wished. The device may take another that it offers, if its log is
    /// not shared.
    pub page_size: u64,
    /// The host's bitmap, for a shared log. To be let go when the log stops.
    pub bitmap: Option<SharedBits>,
}

/// The host's bitmap of tracking pages, in a memfd. When the log has stopped it is closed: nothing is
/// marked any more, whoever still has a clone of this.
#[derive(Clone, Debug)]
pub struct SharedBits {
    words: Arc<RwLock<Option<&'static [AtomicU64]>>>,
    first_gpa: u64,
    shift: u32,
    fd: i32,
}

impl SharedBits {
    /// `words` are good until [`Self::close`] returns: promised by the caller.
    pub(crate) fn new(words: &'static [AtomicU64], first_gpa: u64, shift: u32, fd: i32) -> Self {
        SharedBits { words: Arc::new(RwLock::new(Some(words))), first_gpa, shift, fd }
    }

    /// Sets the bits of all tracking pages that a run touches, as far as there are bits. To be called
    /// after the store.
    pub fn mark(&self, run: &Range<u64>) {
        let words = self.words.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(words) = *words {
            mark(words, self.first_gpa, self.shift, run);
        }
    }

    /// From its return on no bit is set. Waits for those who are setting one.
    pub(crate) fn close(&self) {
        *self.words.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The memfd, to be given to a process of the device's; the host's to close.
    pub fn fd(&self) -> i32 {
        self.fd
    }
}

/// A bitmap of the device's own.
#[derive(Debug)]
pub struct OwnBits {
    words: Box<[AtomicU64]>,
    first_gpa: u64,
    shift: u32,
}

impl OwnBits {
    /// Clean, for what `start` asks for, in pages of `page_size` bytes, a power of two.
    pub fn new(start: &LogStart, page_size: u64) -> OwnBits {
        let shift = page_size.trailing_zeros();
        let first_gpa = start.ranges.first().map_or(0, |range| range.start) >> shift << shift;
        let end = start.ranges.last().map_or(0, |range| range.end);
        let pages = end.saturating_sub(first_gpa).div_ceil(page_size);
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        OwnBits { words, first_gpa, shift }
    }

    /// As [`SharedBits::mark`].
    pub fn mark(&self, run: &Range<u64>) {
        mark(&self.words, self.first_gpa, self.shift, run);
    }

    /// Moves the bits of the tracking pages from `gpa` on into `report`.
    pub fn take(&self, gpa: u64, report: &mut LogReport<'_>) {
        let page = gpa.saturating_sub(self.first_gpa) >> self.shift;
        for index in 0..report.pages() {
            let at = page + index;
            let bit = 1 << (at % 64);
            let word = usize::try_from(at / 64).ok().and_then(|at| self.words.get(at));
            let Some(word) = word.filter(|word| word.load(Ordering::Relaxed) & bit != 0) else {
                continue;
            };
            if word.fetch_and(!bit, Ordering::AcqRel) & bit != 0 {
                report.set(index);
            }
        }
    }
}

/// Release order: what was stored before is seen by whoever takes the bit.
fn mark(words: &[AtomicU64], first_gpa: u64, shift: u32, run: &Range<u64>) {
    if run.is_empty() || run.end <= first_gpa {
        return;
    }
    let from = run.start.saturating_sub(first_gpa) >> shift;
    let to = (run.end - 1 - first_gpa) >> shift;
    for index in from / 64..=to / 64 {
        let Some(word) = usize::try_from(index).ok().and_then(|index| words.get(index)) else {
            return;
        };
        let low = from.max(index * 64) % 64;
        let high = to.min(index * 64 + 63) % 64;
        word.fetch_or((u64::MAX << low) & (u64::MAX >> (63 - high)), Ordering::Release);
    }
}

/// A report to be filled in: one bit for each tracking page asked for.
#[derive(Debug)]
pub struct LogReport<'a> {
    words: &'a mut [u64],
    pages: u64,
}

impl<'a> LogReport<'a> {
    /// `words` have room for `pages` bits, all clear.
    pub fn new(words: &'a mut [u64], pages: u64) -> Self {
        let pages = pages.min(words.len() as u64 * 64);
        LogReport { words, pages }
    }

    /// Tracking pages asked for.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Says that page `index`, counted from the first asked for, was written to. One that was not asked
    /// for is left out.
    pub fn set(&mut self, index: u64) {
        if index < self.pages
            && let Some(word) =
                usize::try_from(index / 64).ok().and_then(|at| self.words.get_mut(at))
        {
            *word |= 1 << (index % 64);
        }
    }
}

/// How a device pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinKind {
    /// Some of its writes go to memory that it has pinned.
    Some,
    /// All of them do; the host refuses others.
    Only,
}

/// Ways to track a device's DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracker {
    /// The IOMMU's dirty bits.
    Iommu,
    /// The device's own log.
    Device,
    /// What it has pinned.
    Pinned,
    /// Write protection in the IOMMU.
    Fault,
    /// None: everything mapped.
    All,
}

/// What a device prefers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// By which tracker.
    pub tracker: Tracker,
    /// Tracking page size in bytes, if it minds.
    pub page_size: Option<u64>,
    /// What a harvest costs by its account, in ns, if it knows.
    pub cost_hint_ns: Option<u64>,
    /// Why, in a few words.
    pub reason: String,
}

impl Preference {
    pub(crate) fn number(&self) -> u32 {
        match self.tracker {
            Tracker::Iommu => abi::DROGHER_TRACKER_IOMMU,
            Tracker::Device => abi::DROGHER_TRACKER_DEVICE,
            Tracker::Pinned => abi::DROGHER_TRACKER_PINNED,
            Tracker::Fault => abi::DROGHER_TRACKER_FAULT,
            Tracker::All => abi::DROGHER_TRACKER_ALL,
        }
    }
}

#[cfg(test)]
#[path = "tracking_test.rs"]
mod tests;
