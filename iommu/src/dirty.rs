//! Taking D bits out of the tables.

use std::ops::Range;

use drogher_iommu_types::Gpa;

use crate::arena::Table;
use crate::log::mask;
use crate::spec::second_stage as spec;
use crate::sync::{AtomicU64, Ordering};
use crate::table::{SecondStage, Step, next_multiple, page_at};

/// Entries that one word of hints speaks for.
const GROUP: usize = 64;

impl SecondStage {
    /// Clears every D bit of the range and calls `each(page, bits)` for each group of 64 pages
    /// that had some; bit 0 stands for `page`, which is a multiple of 64. Pages outside the range
    /// keep theirs. The caller holds the domain's lock, and drains before anyone copies.
    pub(crate) fn take_dirty(&self, range: &Range<Gpa>, mut each: impl FnMut(Gpa, u64)) {
        let mut at = range.start.0;
        while at < range.end.0 {
            match self.step(at, 2) {
                Step::Table(upper) => {
                    let end = next_multiple(at, spec::span(3)).min(range.end.0);
                    self.take_below(upper, at..end, &mut each);
                    at = end;
                }
                Step::Hole { until } => at = until,
            }
        }
    }

    /// Sets the D bit of every mapped page of the range. The caller holds the domain's lock, so no
    /// leaf goes away meanwhile and an OR cannot hit another mapping's.
    pub(crate) fn mark_dirty(&self, range: &Range<Gpa>) {
        self.for_each_leaf_table(range, |base, table, entries| {
            let Some(upper) = self.table_at(base, 2) else {
                return;
            };
            for index in entries {
                let entry = table.entry(index);
                if spec::is_present(entry.load(Ordering::Relaxed)) {
                    entry.fetch_or(spec::DIRTY, Ordering::SeqCst);
                    table.hint(index);
                    upper.hint(spec::index(base, 2));
                }
            }
        });
    }

    /// `range` is inside the GiB that `upper` translates.
    fn take_below(&self, upper: &Table, range: Range<u64>, each: &mut impl FnMut(Gpa, u64)) {
        let span = spec::span(2);
        let base = range.start & !(spec::span(3) - 1);
        let entries = spec::index(range.start, 2)..spec::index(range.end - 1, 2) + 1;
        for (word, wanted) in groups(entries) {
            let hints = upper.hints(word);
            let mut found = hints.load(Ordering::SeqCst) & wanted;
            if found == 0 {
                continue;
            }
            let whole = whole_entries(base, word, wanted, span, &range);
            // Of an entry that is only in part inside the range, the hint stays: the rest of it
            // may be dirty.
            found = (found & !whole) | take(hints, whole);
            for bit in bits(found) {
                let index = word * GROUP + bit;
                let first = base + (index as u64) * span;
                if let Some(table) = self.child(upper, index) {
                    let part = range.start.max(first)..range.end.min(first + span);
                    take_leaves(table, first, &part, each);
                }
            }
        }
    }
}

/// Clears the D bits of the leaves of one table; `part` is inside what it translates.
fn take_leaves(table: &Table, base: u64, part: &Range<u64>, each: &mut impl FnMut(Gpa, u64)) {
    let entries = spec::index(part.start, 1)..spec::index(part.end - 1, 1) + 1;
    for (word, wanted) in groups(entries) {
        let hints = table.hints(word);
        if hints.load(Ordering::SeqCst) & wanted == 0 {
            continue;
        }
        let mut dirty = 0;
        for bit in bits(take(hints, wanted)) {
            // An AND, not a store: the leaf cannot be unmapped here, but a write may set D.
            let leaf = table.entry(word * GROUP + bit).fetch_and(!spec::DIRTY, Ordering::SeqCst);
            if leaf & spec::DIRTY != 0 {
                dirty |= 1 << bit;
            }
        }
        if dirty != 0 {
            each(page_at(base, word * GROUP), dirty);
        }
    }
}

/// Takes the bits of `mask` out of a word of hints.
fn take(hints: &AtomicU64, mask: u64) -> u64 {
    match mask {
        0 => 0,
        u64::MAX => hints.swap(0, Ordering::SeqCst),
        _ => hints.fetch_and(!mask, Ordering::SeqCst) & mask,
    }
}

/// The words of hints that `entries`, not empty, meet, each with the mask of those inside.
fn groups(entries: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    (entries.start / GROUP..entries.end.div_ceil(GROUP)).map(move |word| {
        let first = word * GROUP;
        let from = entries.start.saturating_sub(first) as u64;
        let to = (entries.end - first).min(GROUP) as u64;
        (word, mask(from, to))
    })
}

/// Of the entries `wanted` of a word, those whose span of GPA lies wholly inside `range`.
fn whole_entries(base: u64, word: usize, wanted: u64, span: u64, range: &Range<u64>) -> u64 {
    let mut whole = wanted;
    for bit in [wanted.trailing_zeros(), 63 - wanted.leading_zeros()] {
        let first = base + (word as u64 * 64 + u64::from(bit)) * span;
        if first < range.start || first + span > range.end {
            whole &= !(1 << bit);
        }
    }
    whole
}

/// The numbers of the set bits, rising.
fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        if word == 0 {
            return None;
        }
        let bit = word.trailing_zeros();
        word &= word - 1;
        // Below 64.
        Some(bit as usize)
    })
}
