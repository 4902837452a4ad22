//! The ranges that a device's log is started over.

use std::ops::Range;

use drogher_iommu_types::Gpa;

use crate::page_size::TrackingPageSize;

/// Ranges that one start may name: a page of 16-byte entries, as VFIO has it.
pub const MAX_LOG_RANGES: usize = 256;

/// Which rule a list of ranges breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogRangesError {
    /// Nothing to log.
    #[error("There is no range to log")]
    None,
    /// More ranges than a log takes.
    #[error("{count} ranges are more than the {max} that a log takes; merge neighbours")]
    TooMany {
        /// As given.
        count: usize,
        /// At most these.
        max: usize,
    },
    /// A range without a byte.
    #[error("Range {start}..{start} is empty")]
    Empty {
        /// Both ends.
        start: Gpa,
    },
    /// The end is before the start, as when adding a length wrapped.
    #[error("Range {start}..{end} ends before it starts")]
    Wraps {
        /// First byte.
        start: Gpa,
        /// One past the last byte.
        end: Gpa,
    },
    /// An end is inside a tracking page.
    #[error("Range {start}..{end} is not made of whole tracking pages of {page_size}")]
    Misaligned {
        /// First byte.
        start: Gpa,
        /// One past the last byte.
        end: Gpa,
        /// The size asked for.
        page_size: TrackingPageSize,
    },
    /// A range begins before the one before it.
    #[error("Range at {start} comes after one at {before}; sort them")]
    Unsorted {
        /// First byte of the earlier in the list.
        before: Gpa,
        /// First byte of the later in the list.
        start: Gpa,
    },
    /// Two ranges share a page.
    #[error("Range at {start} begins inside the one that ends at {end}")]
    Overlap {
        /// First byte of the later.
        start: Gpa,
        /// One past the last byte of the earlier.
        end: Gpa,
    },
}

/// Accepts 1 to 256 ranges that are sorted, of whole tracking pages, and apart.
///
/// # Errors
/// The first rule broken, in the order of the list.
pub fn check(ranges: &[Range<Gpa>], page_size: TrackingPageSize) -> Result<(), LogRangesError> {
    if ranges.is_empty() {
        return Err(LogRangesError::None);
    }
    if ranges.len() > MAX_LOG_RANGES {
        return Err(LogRangesError::TooMany { count: ranges.len(), max: MAX_LOG_RANGES });
    }
    let mut before: Option<&Range<Gpa>> = None;
    for range in ranges {
        let Range { start, end } = *range;
        if end < start {
            return Err(LogRangesError::Wraps { start, end });
        }
        if end == start {
            return Err(LogRangesError::Empty { start });
        }
        if !page_size.is_aligned(start) || !page_size.is_aligned(end) {
            return Err(LogRangesError::Misaligned { start, end, page_size });
        }
        if let Some(before) = before {
            if start < before.start {
                return Err(LogRangesError::Unsorted { before: before.start, start });
            }
            if start < before.end {
                return Err(LogRangesError::Overlap { start, end: before.end });
            }
        }
        before = Some(range);
    }
    Ok(())
}

/// Ranges of whole tracking pages that hold all of `ram`, which is sorted: neighbours become one,
/// then those with the smallest gaps between them, until there are at most `max` (at least 1).
#[must_use]
pub fn cover(ram: &[Range<Gpa>], page_size: TrackingPageSize, max: usize) -> Vec<Range<Gpa>> {
    let whole = Gpa(0)..Gpa(!(page_size.bytes() - 1));
    let mut ranges: Vec<Range<Gpa>> = Vec::with_capacity(ram.len());
    for range in ram.iter().filter(|range| !range.is_empty()) {
        let grown = page_size.grow(range, &whole);
        match ranges.last_mut() {
            Some(last) if grown.start <= last.end => last.end = last.end.max(grown.end),
            _ => ranges.push(grown),
        }
    }
    while ranges.len() > max.max(1) {
        let gaps = ranges.windows(2).zip(0..);
        let gap = |pair: &[Range<Gpa>]| match pair {
            [a, b] => b.start.0 - a.end.0,
            _ => u64::MAX,
        };
        let Some((_, first)) = gaps.min_by_key(|(pair, _)| gap(pair)) else {
            break;
        };
        let next = ranges.remove(first + 1);
        if let Some(range) = ranges.get_mut(first) {
            range.end = next.end;
        }
    }
    ranges
}
