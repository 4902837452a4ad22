//! The size of the pages that a tracker tells apart.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PAGE_SIZE};
use serde::{Deserialize, Serialize};

/// Why a size is not one that trackers use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PageSizeError {
    /// Between 4K and 2M, but no power of two.
    #[error("Tracking page size of {bytes} bytes is no power of two; use 4K, 8K, 16K ... 2M")]
    NotPowerOfTwo {
        /// As asked for.
        bytes: u64,
    },
    /// Below 4K or above 2M.
    #[error("Tracking page size of {bytes} bytes is not within 4K..=2M")]
    OutOfBounds {
        /// As asked for.
        bytes: u64,
    },
    /// Not a number with an optional K or M.
    #[error("{text:?} is no tracking page size; write it as 4K, 64K or 2M")]
    Unreadable {
        /// As given.
        text: String,
    },
}

/// Bytes that one bit of a tracker stands for: a power of two, 4 KiB to 2 MiB.
///
/// Text is `4K` to `512K`, `1M`, `2M`; a plain number of bytes is read too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TrackingPageSize(u64);

impl TrackingPageSize {
    /// 4 KiB, the size that dirty bitmaps have.
    pub const K4: Self = Self(4 << 10);
    /// 16 KiB.
    pub const K16: Self = Self(16 << 10);
    /// 64 KiB.
    pub const K64: Self = Self(64 << 10);
    /// 2 MiB, the largest.
    pub const M2: Self = Self(2 << 20);

    /// The size of this many bytes.
    ///
    /// # Errors
    /// `OutOfBounds`, `NotPowerOfTwo`.
    pub const fn new(bytes: u64) -> Result<Self, PageSizeError> {
        if bytes < Self::K4.0 || bytes > Self::M2.0 {
            return Err(PageSizeError::OutOfBounds { bytes });
        }
        if !bytes.is_power_of_two() {
            return Err(PageSizeError::NotPowerOfTwo { bytes });
        }
        Ok(Self(bytes))
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// Bits of a dirty bitmap that one bit of the tracker stands for.
    #[must_use]
    pub const fn pages(self) -> u64 {
        self.0 / PAGE_SIZE
    }

    /// True if `gpa` is the first byte of a tracking page.
    #[must_use]
    pub const fn is_aligned(self, gpa: Gpa) -> bool {
        gpa.0 & (self.0 - 1) == 0
    }

    /// `range` grown to whole tracking pages, but not beyond `within`.
    #[must_use]
    pub fn grow(self, range: &Range<Gpa>, within: &Range<Gpa>) -> Range<Gpa> {
        if range.is_empty() {
            return range.clone();
        }
        let mask = self.0 - 1;
        let end = range.end.0.checked_add(mask).map_or(u64::MAX, |end| end & !mask);
        let start = Gpa(range.start.0 & !mask);
        start.max(within.start.min(range.start))..Gpa(end).min(within.end.max(range.end))
    }

    /// Sets every bit of the tracking pages that `written` touches, as far as `bitmap` covers them.
    ///
    /// # Errors
    /// `Outside` if `written` itself is not covered; then no bit was set.
    pub fn mark(self, written: Range<Gpa>, bitmap: &DirtyBitmap) -> Result<(), BitmapError> {
        if written.is_empty() {
            return Ok(());
        }
        bitmap.set_range(self.grow(&written, &bitmap.range()))
    }

    /// Sets every bit of each tracking page that has one, as far as `bitmap` covers it.
    pub(crate) fn widen(self, bitmap: &DirtyBitmap) -> Result<(), BitmapError> {
        if self == Self::K4 {
            return Ok(());
        }
        // Bits set here behind the iterator are found by it once more, and are whole already.
        bitmap.runs().try_for_each(|run| self.mark(run, bitmap))
    }
}

impl Default for TrackingPageSize {
    fn default() -> Self {
        Self::K4
    }
}

impl fmt::Display for TrackingPageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 20 {
            0 => write!(f, "{}K", self.0 >> 10),
            mebibytes => write!(f, "{mebibytes}M"),
        }
    }
}

impl FromStr for TrackingPageSize {
    type Err = PageSizeError;

    fn from_str(text: &str) -> Result<Self, PageSizeError> {
        let unreadable = || PageSizeError::Unreadable { text: text.to_owned() };
        let short = text.strip_suffix("iB").unwrap_or(text);
        let (digits, unit) = match short.as_bytes().last() {
            Some(b'K' | b'k') => (&short[..short.len() - 1], 1 << 10),
            Some(b'M' | b'm') => (&short[..short.len() - 1], 1 << 20),
            _ => (text, 1),
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(unreadable());
        }
        let number: u64 = digits.parse().map_err(|_| unreadable())?;
        Self::new(number.checked_mul(unit).ok_or_else(unreadable)?)
    }
}

impl TryFrom<String> for TrackingPageSize {
    type Error = PageSizeError;

    fn try_from(text: String) -> Result<Self, PageSizeError> {
        text.parse()
    }
}

impl From<TrackingPageSize> for String {
    fn from(size: TrackingPageSize) -> Self {
        size.to_string()
    }
}
