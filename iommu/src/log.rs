//! Dirty pages that have no leaf any more.

use std::collections::BTreeMap;
use std::ops::Range;

use drogher_iommu_types::{Gpa, PAGE_SHIFT};

/// Pages in one word.
const WORD_PAGES: u64 = 64;
/// Words kept together: as many pages as a table of 512 entries has.
const WORDS: u64 = 8;

/// Sparse set of pages; never larger than what was ever mapped.
#[derive(Default)]
pub(crate) struct DirtyLog {
    /// Bits by the number of the group's first page, divided by 512.
    groups: BTreeMap<u64, [u64; WORDS as usize]>,
    /// The group last written to, which is not in `groups`: pages mostly come in rising order.
    open: Option<(u64, [u64; WORDS as usize])>,
}

impl DirtyLog {
    /// Sets up to 64 pages from `first` on.
    pub(crate) fn set_mask(&mut self, first: Gpa, mask: u64) {
        let (page, shift) = (first.page(), first.page() % WORD_PAGES);
        self.or(page / WORD_PAGES, mask << shift);
        if shift != 0 {
            self.or(page / WORD_PAGES + 1, mask >> (WORD_PAGES - shift));
        }
    }

    fn or(&mut self, word: u64, bits: u64) {
        if bits == 0 {
            return;
        }
        let key = word / WORDS;
        if self.open.as_ref().is_none_or(|(open, _)| *open != key) {
            self.close();
            self.open = Some((key, self.groups.remove(&key).unwrap_or_default()));
        }
        if let Some((_, words)) = &mut self.open {
            words[(word % WORDS) as usize] |= bits;
        }
    }

    fn close(&mut self) {
        if let Some((key, words)) = self.open.take() {
            self.groups.insert(key, words);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.open.is_none()
    }

    /// Takes the pages of `range`, in groups: calls `each(first page of the group, bits)`.
    pub(crate) fn take(&mut self, range: &Range<Gpa>, mut each: impl FnMut(Gpa, u64)) {
        self.close();
        let (first, end) = (range.start.page(), range.end.page());
        if first >= end || self.groups.is_empty() {
            return;
        }
        let groups = first / (WORD_PAGES * WORDS)..end.div_ceil(WORD_PAGES * WORDS);
        let keys: Vec<u64> = self.groups.range(groups).map(|(key, _)| *key).collect();
        for key in keys {
            let Some(words) = self.groups.get_mut(&key) else { continue };
            for (word, number) in words.iter_mut().zip(key * WORDS..) {
                let start = number * WORD_PAGES;
                if *word == 0 || end <= start || start + WORD_PAGES <= first {
                    continue;
                }
                let mask = mask(first.saturating_sub(start), (end - start).min(WORD_PAGES));
                let taken = *word & mask;
                *word &= !mask;
                if taken != 0 {
                    each(Gpa(start << PAGE_SHIFT), taken);
                }
            }
            if *words == [0; WORDS as usize] {
                self.groups.remove(&key);
            }
        }
    }

    /// Adds everything that `other` has.
    pub(crate) fn append(&mut self, mut other: Self) {
        self.close();
        other.close();
        for (key, words) in other.groups {
            let own = self.groups.entry(key).or_default();
            own.iter_mut().zip(words).for_each(|(own, bits)| *own |= bits);
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Bits `from..to` of a word, `from < to <= 64`.
pub(crate) fn mask(from: u64, to: u64) -> u64 {
    (u64::MAX << (from & 63)) & (u64::MAX >> (64 - to.clamp(1, 64)))
}
