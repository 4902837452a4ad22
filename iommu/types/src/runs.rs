//! Iteration over the runs of a dirty bitmap.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Gpa, PAGE_SHIFT};

/// The runs of neighbouring dirty pages of a bitmap, as half-open ranges of GPA.
///
/// Words are read as the iterator gets to them; bits set or taken meanwhile may or may not show.
#[derive(Debug)]
pub struct Runs<'a> {
    words: &'a [AtomicU64],
    base: u64,
    pages: u64,
    at: u64,
}

impl<'a> Runs<'a> {
    pub(crate) fn new(words: &'a [AtomicU64], base: u64, pages: u64) -> Self {
        Self { words, base, pages, at: 0 }
    }

    /// The first page from `from` on whose bit is `wanted`, or the end.
    fn seek(&self, from: u64, wanted: bool) -> u64 {
        let mut at = from;
        while at < self.pages {
            let Some(word) = usize::try_from(at / 64).ok().and_then(|i| self.words.get(i)) else {
                break;
            };
            let bits = word.load(Ordering::Acquire);
            let bits = (if wanted { bits } else { !bits }) >> (at % 64);
            if bits != 0 {
                return (at + u64::from(bits.trailing_zeros())).min(self.pages);
            }
            at = (at / 64 + 1) * 64;
        }
        self.pages
    }
}

impl Iterator for Runs<'_> {
    type Item = Range<Gpa>;

    fn next(&mut self) -> Option<Range<Gpa>> {
        let start = self.seek(self.at, true);
        // A bit seen set may be taken before it is looked at again; it still makes a run of one.
        let end = self.seek(start + 1, false);
        self.at = end;
        if start >= self.pages {
            return None;
        }
        Some(Gpa((self.base + start) << PAGE_SHIFT)..Gpa((self.base + end) << PAGE_SHIFT))
    }
}
