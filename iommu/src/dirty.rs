//! Taking D bits out of the tables, and putting them in.
//!
//! The holder of a unit's range lock clears a D bit with a plain store. That is right because
//! nobody else writes to a leaf whose D bit is set: a walk that finds it set stores nothing, and
//! whatever unmaps, splits or merges has the lock. So between the load that saw the bit and the
//! store that clears it the leaf does not change.

use std::ops::Range;

use drogher_iommu_types::Gpa;

use crate::arena::{GROUP, Table};
use crate::retire::{pages, pages_of};
use crate::spec::{Entry, Format};
use crate::sync::{AtomicU64, Ordering};
use crate::table::{Cell, SecondStage, UNIT, Unit, cells};

/// Who is told what a harvest takes.
pub(crate) trait Report {
    /// Pages of small leaves: bit 0 stands for the page at `first`.
    fn pages(&mut self, first: Gpa, bits: u64);
    /// A large leaf, `whole`, of which `part` lies in the range asked for.
    fn leaf(&mut self, part: Range<Gpa>, whole: Range<Gpa>);
    /// Entries were looked at.
    fn looked_at(&mut self, entries: u64);
}

/// Nobody.
pub(crate) struct Forget;

impl Report for Forget {
    fn pages(&mut self, _first: Gpa, _bits: u64) {}
    fn leaf(&mut self, _part: Range<Gpa>, _whole: Range<Gpa>) {}
    fn looked_at(&mut self, _entries: u64) {}
}

impl<F: Format> SecondStage<F> {
    /// Clears every D bit of the part of a unit, and protects what was dirty if `protect`. Pages
    /// outside keep theirs. The caller drains before anyone copies.
    pub(crate) fn take_dirty(
        &self,
        unit: &Unit<'_>,
        part: Range<u64>,
        protect: bool,
        report: &mut impl Report,
    ) {
        let cell = unit.cell::<F>(part);
        let value = unit.entry.load(Ordering::SeqCst);
        match F::decode(value, UNIT) {
            Entry::Leaf => take_large::<F>(unit.entry, value, UNIT, &cell, protect, report),
            Entry::Table(number) => {
                if let Some(table) = self.arena.get(number) {
                    self.take_below(table, &cell, protect, report);
                }
            }
            Entry::Empty | Entry::Reserved => {}
        }
    }

    /// The level 2 table of a unit.
    fn take_below(&self, table: &Table, cell: &Cell, protect: bool, report: &mut impl Report) {
        let level = UNIT - 1;
        let mut groups = take_hints::<F>(table, level, cell);
        let indexes = indexes::<F>(level, cell);
        while groups != 0 {
            let first = groups.trailing_zeros() as usize * GROUP;
            groups &= groups - 1;
            let (from, to) = (first.max(indexes.start), (first + GROUP).min(indexes.end));
            // Indexes are below 512.
            let base = |index: usize| cell.base + index as u64 * F::span(level);
            if from >= to {
                continue;
            }
            let part = cell.part.start.max(base(from))..cell.part.end.min(base(to));
            for inner in cells::<F>(level, cell.base, part) {
                let entry = table.entry(inner.index);
                let value = entry.load(Ordering::SeqCst);
                match F::decode(value, level) {
                    Entry::Leaf => take_large::<F>(entry, value, level, &inner, protect, report),
                    Entry::Table(number) => {
                        if let Some(table) = self.arena.get(number) {
                            take_leaves::<F>(table, &inner, protect, report);
                        }
                    }
                    Entry::Empty | Entry::Reserved => {}
                }
            }
        }
    }

    /// Sets the D bit of every mapped page of the range, as a write by DMA would.
    pub(crate) fn mark_dirty(&self, range: &Range<Gpa>) {
        let Ok(()) = self.each_leaf(range, |place, leaf| {
            let dirty = F::unprotect(leaf) | F::DIRTY;
            let set =
                place.entry.compare_exchange(leaf, dirty, Ordering::SeqCst, Ordering::Relaxed);
            if set.is_ok() {
                place.hint();
            }
            Ok::<_, std::convert::Infallible>(set.is_err())
        });
    }

    /// Protects every clean leaf of the range that allows writing, or unprotects every leaf.
    pub(crate) fn set_protection(&self, range: &Range<Gpa>, protect: bool) {
        let Ok(()) = self.each_leaf(range, |place, leaf| {
            let new = match protect {
                true if leaf & F::DIRTY == 0 => F::protect(leaf),
                true => leaf,
                false => F::unprotect(leaf),
            };
            let set = new == leaf
                || place
                    .entry
                    .compare_exchange(leaf, new, Ordering::SeqCst, Ordering::Relaxed)
                    .is_ok();
            Ok::<_, std::convert::Infallible>(!set)
        });
    }

    /// Calls `each` for every group of pages of the range that a device may write to.
    pub(crate) fn writable(&self, range: &Range<Gpa>, each: &mut impl FnMut(Gpa, u64)) {
        let mut run = 0..0;
        let Ok(()) = self.each_leaf(range, |place, leaf| {
            if F::perm(leaf).write {
                let part = &place.cell.part;
                if run.end != part.start {
                    pages(run.start, run.end - run.start, each);
                    run.start = part.start;
                }
                run.end = part.end;
            }
            Ok::<_, std::convert::Infallible>(false)
        });
        pages(run.start, run.end - run.start, each);
    }
}

fn clean<F: Format>(leaf: u64, protect: bool) -> u64 {
    let clean = leaf & !F::DIRTY;
    if protect { F::protect(clean) } else { clean }
}

fn take_large<F: Format>(
    entry: &AtomicU64,
    leaf: u64,
    level: u32,
    cell: &Cell,
    protect: bool,
    report: &mut impl Report,
) {
    report.looked_at(1);
    if leaf & F::DIRTY == 0 {
        return;
    }
    entry.store(clean::<F>(leaf, protect), Ordering::Release);
    let part = Gpa(cell.part.start)..Gpa(cell.part.end);
    report.leaf(part, Gpa(cell.base)..Gpa(cell.base + F::span(level)));
}

/// Clears the D bits of the leaves of one table; the cell is that of the entry above.
fn take_leaves<F: Format>(table: &Table, cell: &Cell, protect: bool, report: &mut impl Report) {
    let groups = take_hints::<F>(table, 1, cell);
    if groups == 0 {
        return;
    }
    let indexes = indexes::<F>(1, cell);
    // 8 groups make 64 leaves.
    for word in 0..8 {
        let (mut eighth, mut bits) = (groups >> (word * 8) & 0xff, 0u64);
        if eighth == 0 {
            continue;
        }
        let start = word * 64;
        while eighth != 0 {
            let from = eighth.trailing_zeros() as usize * GROUP;
            eighth &= eighth - 1;
            report.looked_at(GROUP as u64);
            for bit in from..from + GROUP {
                let entry = table.entry(start + bit);
                let leaf = entry.load(Ordering::SeqCst);
                if leaf & F::DIRTY != 0 && indexes.contains(&(start + bit)) {
                    entry.store(clean::<F>(leaf, protect), Ordering::Release);
                    bits |= 1 << bit;
                }
            }
        }
        if bits != 0 {
            let first = Gpa(cell.base + start as u64 * F::span(1));
            report.pages(first, pages_of::<F>(bits));
        }
    }
}

/// The entries of a table of `level` that the cell's part meets.
fn indexes<F: Format>(level: u32, cell: &Cell) -> Range<usize> {
    let span = F::span(level);
    let (start, end) = (cell.part.start - cell.base, cell.part.end - cell.base);
    // At most 512.
    (start / span) as usize..end.div_ceil(span) as usize
}

/// The groups of a table that the cell's part meets and that have their hint set. The hint is
/// taken where all of the group lies inside: the rest of another may be dirty.
fn take_hints<F: Format>(table: &Table, level: u32, cell: &Cell) -> u64 {
    const { assert!(GROUP == 8) };
    let (met, span) = (indexes::<F>(level, cell), F::span(level));
    let found =
        table.hints().load(Ordering::SeqCst) & mask(met.start / GROUP, met.end.div_ceil(GROUP));
    if found == 0 {
        return 0;
    }
    let (start, end) = (cell.part.start - cell.base, cell.part.end - cell.base);
    let whole = (start.div_ceil(span) as usize).div_ceil(GROUP)..(end / span) as usize / GROUP;
    let whole = mask(whole.start, whole.end);
    if whole != 0 {
        return found | table.hints().fetch_and(!whole, Ordering::SeqCst) & whole;
    }
    found
}

/// Bits `from..to` of a word.
fn mask(from: usize, to: usize) -> u64 {
    if from >= to { 0 } else { (u64::MAX << from) & (u64::MAX >> (64 - to)) }
}
