//! Checks of GPA ranges, in one place.

use std::ops::Range;

use drogher_iommu_types::{Gpa, PAGE_SIZE};

/// Why a range of GPA cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// An end is inside a page.
    #[error("Range {start}..{end} is not made of whole pages of {PAGE_SIZE} bytes")]
    Misaligned {
        /// First byte.
        start: Gpa,
        /// One past the last byte.
        end: Gpa,
    },
    /// The end is before the start, as when adding a length wrapped.
    #[error("Range {start}..{end} ends before it starts")]
    Backwards {
        /// First byte.
        start: Gpa,
        /// One past the last byte.
        end: Gpa,
    },
    /// The range does not end inside the domain's address width.
    #[error("Range {start}..{end} ends beyond the address width of {bits} bits")]
    BeyondWidth {
        /// First byte.
        start: Gpa,
        /// One past the last byte.
        end: Gpa,
        /// Address width of the domain.
        bits: u32,
    },
}

/// Accepts a range of whole pages inside `bits` bits; it may be empty.
pub(crate) fn check(range: &Range<Gpa>, bits: u32) -> Result<(), RangeError> {
    let Range { start, end } = *range;
    if end < start {
        return Err(RangeError::Backwards { start, end });
    }
    if !start.is_page_aligned() || !end.is_page_aligned() {
        return Err(RangeError::Misaligned { start, end });
    }
    if end.0 > 1u64 << bits {
        return Err(RangeError::BeyondWidth { start, end, bits });
    }
    Ok(())
}
