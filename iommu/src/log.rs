//! Dirty pages that have no leaf any more.

use std::collections::BTreeMap;
use std::ops::Range;

use drogher_iommu_types::{Gpa, PAGE_SHIFT};

/// Pages in one word.
const WORD_PAGES: u64 = 64;

/// Sparse set of pages, one word for 64 neighbours; never larger than what was ever mapped.
#[derive(Default)]
pub(crate) struct DirtyLog {
    /// Bits by the number of the word's first page, divided by 64.
    words: BTreeMap<u64, u64>,
}

impl DirtyLog {
    pub(crate) fn set(&mut self, gpa: Gpa) {
        self.set_mask(gpa, 1);
    }

    /// Sets up to 64 pages from `first` on; they lie in one aligned group of 64.
    pub(crate) fn set_mask(&mut self, first: Gpa, mask: u64) {
        let page = first.page();
        if mask != 0 {
            *self.words.entry(page / WORD_PAGES).or_default() |= mask << (page % WORD_PAGES);
        }
    }

    /// Takes the pages of `range`, in groups: calls `each(first page of the group, bits)`.
    pub(crate) fn take(&mut self, range: &Range<Gpa>, mut each: impl FnMut(Gpa, u64)) {
        let (first, end) = (range.start.page(), range.end.page());
        if first >= end || self.words.is_empty() {
            return;
        }
        let words = first / WORD_PAGES..end.div_ceil(WORD_PAGES);
        let keys: Vec<u64> = self.words.range(words).map(|(key, _)| *key).collect();
        for key in keys {
            let start = key * WORD_PAGES;
            let mask = mask(first.saturating_sub(start), (end - start).min(WORD_PAGES));
            let Some(bits) = self.words.get_mut(&key) else {
                continue;
            };
            let taken = *bits & mask;
            *bits &= !mask;
            if *bits == 0 {
                self.words.remove(&key);
            }
            if taken != 0 {
                each(Gpa(start << PAGE_SHIFT), taken);
            }
        }
    }

    /// Adds everything that `other` has.
    pub(crate) fn append(&mut self, other: Self) {
        for (key, bits) in other.words {
            *self.words.entry(key).or_default() |= bits;
        }
    }

    pub(crate) fn clear(&mut self) {
        self.words.clear();
    }
}

/// Bits `from..to` of a word, `from < to <= 64`.
pub(crate) fn mask(from: u64, to: u64) -> u64 {
    (u64::MAX << (from & 63)) & (u64::MAX >> (64 - to.clamp(1, 64)))
}
