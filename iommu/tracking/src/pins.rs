//! The pages that a device has pinned, and what that says about dirty memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PAGE_SHIFT, PageCount, mutant};

use crate::bits::{meet, move_bits, set_pages};

/// Different ranges that one device may have pinned at a time.
pub const MAX_PINNED_RANGES: usize = 1 << 16;

/// What a device wants a pinned page for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PinAccess {
    /// To read: never makes it dirty.
    Read,
    /// To write: it counts as dirty for as long as it is pinned, and once more.
    Write,
}

/// Why a pin or an unpin was refused. Then nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PinError {
    /// No byte, or the end before the start, as when adding a length wrapped.
    #[error("Range {start}..{end} to pin holds no byte")]
    Empty {
        /// First byte.
        start: Gpa,
        /// One past the last byte.
        end: Gpa,
    },
    /// Beyond what can be pinned.
    #[error(
        "Range {start}..{end} does not lie within {span_start}..{span_end}, which can be pinned"
    )]
    Outside {
        /// First byte.
        start: Gpa,
        /// One past the last byte.
        end: Gpa,
        /// First byte that can be pinned.
        span_start: Gpa,
        /// One past the last.
        span_end: Gpa,
    },
    /// Unpinned more often than pinned.
    #[error("Range {start}..{end} is not pinned as a whole to {access:?}; unpin what was pinned")]
    NotPinned {
        /// First byte of the first page.
        start: Gpa,
        /// One past the last page.
        end: Gpa,
        /// As given.
        access: PinAccess,
    },
    /// The same range is pinned too often.
    #[error("Range {start}..{end} is pinned {} times already", u32::MAX)]
    TooOften {
        /// First byte of the first page.
        start: Gpa,
        /// One past the last page.
        end: Gpa,
    },
    /// The device has too many ranges pinned.
    #[error("{max} ranges are pinned already; unpin some, or pin larger ranges")]
    TooMany {
        /// The limit.
        max: usize,
    },
}

/// What is pinned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PinStats {
    /// Ranges pinned, a range pinned twice counted twice.
    pub pins: u64,
    /// Of these, for writing.
    pub write_pins: u64,
    /// Pages pinned for writing; one that lies in several ranges counts in each.
    pub write_pages: PageCount,
    /// Different ranges.
    pub ranges: usize,
}

/// What one device has pinned. Any thread may call anything at any time.
///
/// Ranges are rounded outwards to whole pages of 4 KiB, and counted: what was pinned twice has to
/// be unpinned twice, by the same range and access. Ranges may overlap.
pub struct PinBoard {
    span: Range<Gpa>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// How often each range of page numbers is pinned.
    pins: BTreeMap<(u64, u64, PinAccess), u32>,
    /// While recording: pages unpinned or marked since the last harvest.
    once: Option<DirtyBitmap>,
}

impl PinBoard {
    /// Nothing is pinned. `span`, of whole pages, is what devices can reach: the ends of the
    /// guest's memory. One bit a page is kept of it while recording.
    #[must_use]
    pub fn new(span: Range<Gpa>) -> Self {
        Self { span, state: Mutex::default() }
    }

    /// Counts a pin of the pages of `range`. To be called before the device gets the memory.
    ///
    /// # Errors
    /// `Empty`, `Outside`, `TooOften`, `TooMany`.
    pub fn pin(&self, range: Range<Gpa>, access: PinAccess) -> Result<(), PinError> {
        let pages = self.pages(&range)?;
        let mut state = self.lock();
        let room = state.pins.len() < MAX_PINNED_RANGES;
        match state.pins.get_mut(&(pages.start, pages.end, access)) {
            Some(count) => {
                let Range { start, end } = gpa(&pages);
                *count = count.checked_add(1).ok_or(PinError::TooOften { start, end })?;
            }
            None if room => drop(state.pins.insert((pages.start, pages.end, access), 1)),
            None => return Err(PinError::TooMany { max: MAX_PINNED_RANGES }),
        }
        Ok(())
    }

    /// Takes back one pin of exactly this range. To be called when the device has ended its
    /// accesses; pages that it may have written to are reported once more.
    ///
    /// # Errors
    /// `Empty`, `Outside`, `NotPinned`.
    pub fn unpin(&self, range: Range<Gpa>, access: PinAccess) -> Result<(), PinError> {
        let pages = self.pages(&range)?;
        let mut state = self.lock();
        let key = (pages.start, pages.end, access);
        let Some(count) = state.pins.get_mut(&key) else {
            let Range { start, end } = gpa(&pages);
            return Err(PinError::NotPinned { start, end, access });
        };
        *count -= 1;
        if *count == 0 {
            state.pins.remove(&key);
        }
        if access == PinAccess::Write && !mutant!("unpin-forgets") {
            state.mark(gpa(&pages));
        }
        Ok(())
    }

    /// Has the pages of `range` reported once: the device has written to them. To be called after
    /// the store.
    ///
    /// # Errors
    /// `Empty`, `Outside`.
    pub fn mark_dirty(&self, range: Range<Gpa>) -> Result<(), PinError> {
        let pages = self.pages(&range)?;
        self.lock().mark(gpa(&pages));
        Ok(())
    }

    /// Begins to remember what is unpinned or marked. What is pinned by now is reported too.
    ///
    /// # Errors
    /// The bitmap for it could not be made.
    pub fn start_recording(&self) -> Result<(), BitmapError> {
        let once = DirtyBitmap::new(self.span.clone())?;
        self.lock().once = Some(once);
        Ok(())
    }

    /// Ends that and forgets what was not harvested. Pins stay. Idempotent.
    pub fn stop_recording(&self) {
        self.lock().once = None;
    }

    /// ORs into `into` the pages of `range` that are pinned for writing, and those that were
    /// unpinned or marked since the last harvest of them.
    ///
    /// # Errors
    /// `into` does not cover a page; it and later ones are not reported.
    pub fn harvest(
        &self,
        range: &Range<Gpa>,
        into: &DirtyBitmap,
    ) -> Result<PageCount, BitmapError> {
        let state = self.lock();
        let mut pages = PageCount(0);
        if let Some(once) = &state.once {
            pages += move_bits(once, range, into)?;
        }
        for (start, end, access) in state.pins.keys() {
            if *access == PinAccess::Write {
                pages += set_pages(&meet(&gpa(&(*start..*end)), range), into)?;
            }
        }
        Ok(pages)
    }

    /// What is pinned now. None may be in use after STOP.
    #[must_use]
    pub fn stats(&self) -> PinStats {
        let state = self.lock();
        let mut stats = PinStats { ranges: state.pins.len(), ..PinStats::default() };
        for ((start, end, access), count) in &state.pins {
            stats.pins += u64::from(*count);
            if *access == PinAccess::Write {
                stats.write_pins += u64::from(*count);
                stats.write_pages += PageCount(end - start);
            }
        }
        stats
    }

    /// The page numbers that `range` touches.
    fn pages(&self, range: &Range<Gpa>) -> Result<Range<u64>, PinError> {
        let Range { start, end } = *range;
        if range.is_empty() {
            return Err(PinError::Empty { start, end });
        }
        if start < self.span.start || end > self.span.end {
            let (span_start, span_end) = (self.span.start, self.span.end);
            return Err(PinError::Outside { start, end, span_start, span_end });
        }
        Ok(start.page()..start.page() + PageCount::covering(end.0 - start.page_start().0).0)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn mark(&mut self, range: Range<Gpa>) {
        if let Some(once) = &self.once {
            // Inside the span, which the bitmap covers.
            let _ = once.set_range(range);
        }
    }
}

fn gpa(pages: &Range<u64>) -> Range<Gpa> {
    Gpa(pages.start << PAGE_SHIFT)..Gpa(pages.end << PAGE_SHIFT)
}

impl std::fmt::Debug for PinBoard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PinBoard").field("span", &self.span).field("pinned", &self.stats()).finish()
    }
}
