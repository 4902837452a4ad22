//! The dirty bitmap: one atomic bit a page, writers OR, one harvester takes.

use std::error::Error;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::runs::Runs;
use crate::{Gpa, PAGE_SHIFT, PAGE_SIZE, PageCount};

/// Pages in one word of the bitmap.
const WORD_PAGES: u64 = 64;

/// Why a bitmap could not be made, or would not take a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BitmapError {
    /// The range does not start and end on page boundaries, or ends before it starts.
    Misaligned {
        /// First byte asked for.
        start: Gpa,
        /// One past the last byte asked for.
        end: Gpa,
    },
    /// The range, or a set bit of it, is not inside the bitmap.
    Outside {
        /// First byte asked for.
        start: Gpa,
        /// One past the last byte asked for.
        end: Gpa,
        /// First byte that the bitmap covers.
        covered_start: Gpa,
        /// One past the last byte that the bitmap covers.
        covered_end: Gpa,
    },
    /// A bitmap of this many words does not fit this machine's address space.
    TooLarge {
        /// Words of 64 pages.
        words: u64,
    },
}

impl fmt::Display for BitmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned { start, end } => {
                write!(f, "Range {start}..{end} is not made of whole pages of {PAGE_SIZE} bytes")
            }
            Self::Outside { start, end, covered_start, covered_end } => write!(
                f,
                "Range {start}..{end} is not inside the bitmap's {covered_start}..{covered_end}"
            ),
            Self::TooLarge { words } => write!(f, "A bitmap of {words} words does not fit"),
        }
    }
}

impl Error for BitmapError {}

/// One bit a page over a half-open range of GPA. Any thread may call anything at any time.
///
/// Writers set bits with an atomic OR and the harvester takes words with `swap(0)` or clears bits
/// with an atomic AND, so a bit set at any moment is either in what was taken or still there. A
/// set bit happens-before the take that returns it (release and acquire).
pub struct DirtyBitmap {
    base: u64,
    pages: u64,
    words: Box<[AtomicU64]>,
}

impl DirtyBitmap {
    /// A clean bitmap over `range`, which must be page aligned. An empty range is allowed.
    ///
    /// # Errors
    /// `Misaligned`, or `TooLarge` if its words cannot be counted on this machine.
    pub fn new(range: Range<Gpa>) -> Result<Self, BitmapError> {
        check_aligned(&range)?;
        let pages = range.end.page() - range.start.page();
        let count = pages.div_ceil(WORD_PAGES);
        let too_large = BitmapError::TooLarge { words: count };
        let count = usize::try_from(count).map_err(|_| too_large)?;
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| too_large)?;
        words.extend((0..count).map(|_| AtomicU64::new(0)));
        Ok(Self { base: range.start.page(), pages, words: words.into_boxed_slice() })
    }

    /// The range covered.
    #[must_use]
    pub fn range(&self) -> Range<Gpa> {
        Gpa(self.base << PAGE_SHIFT)..Gpa((self.base + self.pages) << PAGE_SHIFT)
    }

    /// Pages covered, dirty or not.
    #[must_use]
    pub fn pages(&self) -> PageCount {
        PageCount(self.pages)
    }

    /// True if every page of `range` is covered.
    #[must_use]
    pub fn covers(&self, range: &Range<Gpa>) -> bool {
        let own = self.range();
        range.is_empty() || (own.start <= range.start && range.end <= own.end)
    }

    /// The words, for bulk work. Bit `b` of word `w` is page `64 * w + b` of [`Self::range`].
    ///
    /// Bits past the last page must stay clear.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        &self.words
    }

    /// Sets the bit of the page that holds `gpa`; true if it was clear.
    ///
    /// # Errors
    /// `Outside`.
    pub fn set(&self, gpa: Gpa) -> Result<bool, BitmapError> {
        Ok(self.or_mask(gpa.page_start(), 1)? != 0)
    }

    /// Sets the bits of all pages that `range` touches, in part or whole.
    ///
    /// # Errors
    /// `Outside`, and then no bit was set.
    pub fn set_range(&self, range: Range<Gpa>) -> Result<(), BitmapError> {
        self.or_range(range).map(|_| ())
    }

    /// Sets the bits of all pages that `range` touches, and returns how many were clear before: a
    /// figure for people, near enough where several threads set the same bits at once.
    ///
    /// # Errors
    /// `Outside`, and then no bit was set.
    pub fn or_range(&self, range: Range<Gpa>) -> Result<u64, BitmapError> {
        if range.is_empty() {
            return Ok(0);
        }
        let (first, last) = (range.start.page(), Gpa(range.end.0 - 1).page());
        if first < self.base || last >= self.base + self.pages {
            return Err(self.outside(range));
        }
        let mut fresh = 0;
        self.each_word(first - self.base..last + 1 - self.base, |word, mask| {
            fresh += or(word, mask);
        });
        Ok(fresh)
    }

    /// Sets the page of `first` for bit 0 of `mask`, the next page for bit 1, and so on; `first`
    /// must be page aligned, of any alignment otherwise. Returns how many bits were clear before.
    ///
    /// # Errors
    /// `Misaligned`; `Outside` if a set bit of the mask is, and then no bit was set.
    pub fn or_mask(&self, first: Gpa, mask: u64) -> Result<u64, BitmapError> {
        if !first.is_page_aligned() {
            return Err(BitmapError::Misaligned { start: first, end: first });
        }
        if mask == 0 {
            return Ok(0);
        }
        let low = u64::from(mask.trailing_zeros());
        let high = 63 - u64::from(mask.leading_zeros());
        let page = first.page();
        if page + low < self.base || page + high >= self.base + self.pages {
            let end = Gpa(page.saturating_add(high + 1).saturating_mul(PAGE_SIZE));
            return Err(self.outside(first..end));
        }
        let (mask, at) = match page.checked_sub(self.base) {
            Some(at) => (mask, at),
            None => (mask >> (self.base - page), 0),
        };
        let shift = at % WORD_PAGES;
        let mut fresh = self.or_word(at / WORD_PAGES, mask << shift);
        if shift != 0 {
            fresh += self.or_word(at / WORD_PAGES + 1, mask >> (WORD_PAGES - shift));
        }
        Ok(fresh)
    }

    /// ORs every set bit of `other` into this bitmap and leaves `other` as it is.
    ///
    /// # Errors
    /// `Outside` at the first word with a set bit that is not covered here; words before it are in.
    pub fn or_from(&self, other: &Self) -> Result<(), BitmapError> {
        for (word, first) in other.words.iter().zip(other.word_starts()) {
            self.or_mask(first, word.load(Ordering::Acquire))?;
        }
        Ok(())
    }

    /// Moves every set bit of this bitmap into `other`, which must cover this one's range.
    ///
    /// # Errors
    /// `Outside`, and then no bit was moved.
    pub fn take_into(&self, other: &Self) -> Result<(), BitmapError> {
        if !other.covers(&self.range()) {
            return Err(other.outside(self.range()));
        }
        for (word, first) in self.words.iter().zip(self.word_starts()) {
            other.or_mask(first, take(word))?;
        }
        Ok(())
    }

    /// Takes every word: calls `each(first page of the word, bits)` for those that were not zero,
    /// in rising order, and leaves them clear. Bits set meanwhile are taken or stay.
    pub fn take_words(&self, mut each: impl FnMut(Gpa, u64)) {
        for (word, first) in self.words.iter().zip(self.word_starts()) {
            let bits = take(word);
            if bits != 0 {
                each(first, bits);
            }
        }
    }

    /// Takes the whole bitmap: its bits move to the one returned, this one is left clear.
    #[must_use]
    pub fn take(&self) -> Self {
        let words = self.words.iter().map(|word| AtomicU64::new(take(word))).collect();
        Self { base: self.base, pages: self.pages, words }
    }

    /// Clears the bits of `range`, which must be page aligned. Clear only what you have taken
    /// notice of: a bit set by another thread since is lost to the next harvest.
    ///
    /// # Errors
    /// `Misaligned`, `Outside`; then no bit was cleared.
    pub fn clear_range(&self, range: Range<Gpa>) -> Result<(), BitmapError> {
        check_aligned(&range)?;
        if !self.covers(&range) {
            return Err(self.outside(range));
        }
        if !range.is_empty() {
            let pages = range.start.page() - self.base..range.end.page() - self.base;
            self.each_word(pages, |word, mask| {
                word.fetch_and(!mask, Ordering::AcqRel);
            });
        }
        Ok(())
    }

    /// True if the page that holds `gpa` is covered and dirty.
    #[must_use]
    pub fn test(&self, gpa: Gpa) -> bool {
        let Some(at) = gpa.page().checked_sub(self.base) else {
            return false;
        };
        let bits = self.word(at / WORD_PAGES).map_or(0, |word| word.load(Ordering::Acquire));
        bits >> (at % WORD_PAGES) & 1 != 0
    }

    /// Dirty pages. Not a snapshot: words are read one after another.
    #[must_use]
    pub fn count(&self) -> PageCount {
        PageCount(
            self.words.iter().map(|w| u64::from(w.load(Ordering::Acquire).count_ones())).sum(),
        )
    }

    /// True if no page is dirty.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.words.iter().all(|word| word.load(Ordering::Acquire) == 0)
    }

    /// The runs of neighbouring dirty pages, in rising order, each as long as it can be.
    #[must_use]
    pub fn runs(&self) -> Runs<'_> {
        Runs::new(&self.words, self.base, self.pages)
    }

    fn word(&self, index: u64) -> Option<&AtomicU64> {
        self.words.get(usize::try_from(index).ok()?)
    }

    fn word_starts(&self) -> impl Iterator<Item = Gpa> + use<> {
        let base = self.base;
        (0u64..).map(move |index| Gpa((base + index * WORD_PAGES) << PAGE_SHIFT))
    }

    /// ORs into one word; returns how many bits were clear before.
    fn or_word(&self, index: u64, mask: u64) -> u64 {
        match self.word(index) {
            Some(word) if mask != 0 => or(word, mask),
            _ => 0,
        }
    }

    /// Calls `f(word, mask)` for each word that holds bits of `pages`, counted from the base.
    fn each_word(&self, pages: Range<u64>, mut f: impl FnMut(&AtomicU64, u64)) {
        let words = pages.start / WORD_PAGES..pages.end.div_ceil(WORD_PAGES);
        // No usize is narrower than what indexes a bitmap that exists.
        let Some(words) = self.words.get(words.start as usize..words.end as usize) else { return };
        let mut mask = u64::MAX << (pages.start % WORD_PAGES);
        let mut words = words.iter().peekable();
        while let Some(word) = words.next() {
            if words.peek().is_none() {
                mask &= u64::MAX >> (pages.end.wrapping_neg() % WORD_PAGES);
            }
            f(word, mask);
            mask = u64::MAX;
        }
    }

    fn outside(&self, range: Range<Gpa>) -> BitmapError {
        let own = self.range();
        BitmapError::Outside {
            start: range.start,
            end: range.end,
            covered_start: own.start,
            covered_end: own.end,
        }
    }
}

impl fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirtyBitmap")
            .field("range", &self.range())
            .field("dirty", &self.count())
            .finish()
    }
}

/// Sets the bits of `mask`, and returns how many were clear before.
///
/// All ones are stored, which costs a tenth of a locked operation: whatever another thread sets in
/// between is among them, and what it takes comes before or after. It is never left out, though
/// the word may be all ones already: a load may pass the write to memory that the bit stands for,
/// a store may not. That a taker who finds the ones also sees what the others had written before
/// theirs holds where all processors see stores in one order.
fn or(word: &AtomicU64, mask: u64) -> u64 {
    let before = if mask == u64::MAX && cfg!(target_arch = "x86_64") {
        let before = word.load(Ordering::Relaxed);
        word.store(mask, Ordering::Release);
        if before == 0 {
            return WORD_PAGES;
        }
        before
    } else {
        word.fetch_or(mask, Ordering::AcqRel)
    };
    u64::from((mask & !before).count_ones())
}

/// Takes a word. The load first keeps an idle bitmap's cache lines shared.
fn take(word: &AtomicU64) -> u64 {
    if word.load(Ordering::Relaxed) == 0 { 0 } else { word.swap(0, Ordering::AcqRel) }
}

fn check_aligned(range: &Range<Gpa>) -> Result<(), BitmapError> {
    let aligned = range.start.is_page_aligned() && range.end.is_page_aligned();
    if aligned && range.start <= range.end {
        return Ok(());
    }
    Err(BitmapError::Misaligned { start: range.start, end: range.end })
}
