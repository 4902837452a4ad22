//! Moving and setting ranges of bits of a dirty bitmap.

use std::ops::Range;
use std::sync::atomic::Ordering;

use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PAGE_SHIFT, PAGE_SIZE, PageCount};

/// Bits of one word.
const WORD: u64 = 64;

/// The part of `a` that is in `b` too; empty if there is none.
pub(crate) fn meet(a: &Range<Gpa>, b: &Range<Gpa>) -> Range<Gpa> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// Moves the bits of `range` out of `from` into `into`; whole pages only.
///
/// # Errors
/// `Outside` at the first word with a bit that `into` does not cover: that word stays.
pub(crate) fn move_bits(
    from: &DirtyBitmap,
    range: &Range<Gpa>,
    into: &DirtyBitmap,
) -> Result<PageCount, BitmapError> {
    let mut pages = PageCount(0);
    let part = meet(range, &from.range());
    let base = from.range().start.page();
    if part.is_empty() {
        return Ok(pages);
    }
    let (first, end) = (part.start.page() - base, part.end.page() - base);
    let words = (first / WORD..end.div_ceil(WORD)).zip(words_from(from, first / WORD));
    for (index, word) in words {
        // Without this load an idle bitmap would be written to all over.
        if word.load(Ordering::Relaxed) == 0 {
            continue;
        }
        let start = index * WORD;
        let low = first.saturating_sub(start);
        let high = (end - start).min(WORD);
        let mask = (u64::MAX << low) & (u64::MAX >> (WORD - high));
        let bits = word.fetch_and(!mask, Ordering::AcqRel) & mask;
        match into.or_mask(Gpa((base + start) << PAGE_SHIFT), bits) {
            Ok(_) => pages += PageCount(bits.count_ones().into()),
            Err(error) => {
                word.fetch_or(bits, Ordering::AcqRel);
                return Err(error);
            }
        }
    }
    Ok(pages)
}

fn words_from(
    bitmap: &DirtyBitmap,
    index: u64,
) -> impl Iterator<Item = &std::sync::atomic::AtomicU64> {
    // An index that does not fit is past the last word.
    bitmap.words().iter().skip(usize::try_from(index).unwrap_or(usize::MAX))
}

/// Sets the pages of `range`, of whole pages, and says how many those are.
///
/// # Errors
/// `Outside`, `Misaligned`; pages before the one that was refused are set.
pub(crate) fn set_pages(range: &Range<Gpa>, into: &DirtyBitmap) -> Result<PageCount, BitmapError> {
    let mut pages = PageCount(0);
    let mut at = range.start;
    while at < range.end {
        let here = PageCount::covering(range.end.0 - at.0).0.min(WORD);
        into.or_mask(at, u64::MAX >> (WORD - here))?;
        pages += PageCount(here);
        at = Gpa(at.0 + here * PAGE_SIZE);
    }
    Ok(pages)
}
