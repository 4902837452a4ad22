//! The second stage's radix tree: finding tables, mapping. Walks run beside everything here.
//!
//! A *unit* is what one entry of level 3 stands for (1 GiB in real formats). Whoever changes, reads
//! or harvests anything in a unit holds the range lock of the whole unit, so that everything below
//! the level 3 entry is its own but for what walks do (set D, unprotect, split a clean large leaf).
//! Tables from level 3 up are shared by units: they are linked, unlinked and looked at only with
//! the arena's lock.

use std::marker::PhantomData;
use std::ops::Range;

use drogher_iommu_types::{Gpa, Oa};

use crate::arena::{Allocation, Arena, Table};
use crate::spec::{Entry, Format, Perm};
use crate::sync::{AtomicU64, Ordering};
use crate::tally::Tally;

/// The root's number.
const ROOT: u32 = 0;
/// The level whose entries are units.
pub(crate) const UNIT: u32 = 3;

/// A tree of format `F`.
pub(crate) struct SecondStage<F> {
    pub(crate) arena: Arena,
    pub(crate) tally: Tally,
    format: PhantomData<F>,
}

/// How new leaves are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LeafRules {
    /// Bytes of the largest leaf allowed.
    pub(crate) largest: u64,
    /// Leaves are protected.
    pub(crate) protect: bool,
}

/// A unit in which something is mapped.
pub(crate) struct Unit<'a> {
    /// First GPA.
    pub(crate) base: u64,
    /// Its level 3 entry.
    pub(crate) entry: &'a AtomicU64,
}

impl Unit<'_> {
    /// The part of a range that lies in the unit, as one cell.
    pub(crate) fn cell<F: Format>(&self, part: Range<u64>) -> Cell {
        let whole = part.end - part.start == F::span(UNIT);
        Cell { index: 0, base: self.base, part, whole }
    }
}

/// One entry's part of a range.
pub(crate) struct Cell {
    pub(crate) index: usize,
    /// The first GPA of the entry.
    pub(crate) base: u64,
    /// What of the range lies in the entry; not empty.
    pub(crate) part: Range<u64>,
    /// All of the entry does.
    pub(crate) whole: bool,
}

/// Where an entry is.
pub(crate) struct Place<'a> {
    pub(crate) entry: &'a AtomicU64,
    pub(crate) level: u32,
    pub(crate) cell: Cell,
    /// Its own table and index, then those of the entry that points there; up to level 2.
    hints: [Option<(&'a Table, usize)>; 2],
}

impl Place<'_> {
    /// Sets the hints, after D.
    pub(crate) fn hint(&self) {
        for (table, index) in self.hints.into_iter().flatten() {
            table.hint(index);
        }
    }
}

/// The entries of the table of `level` that begins at `base`, as far as they meet `part`, which
/// lies inside it.
pub(crate) fn cells<F: Format>(
    level: u32,
    base: u64,
    part: Range<u64>,
) -> impl Iterator<Item = Cell> {
    let span = F::span(level);
    let bytes = if part.is_empty() { 0..0 } else { part.start - base..part.end - base };
    (bytes.start / span..bytes.end.div_ceil(span)).map(move |index| {
        let start = base + index * span;
        let inside = part.start.max(start)..part.end.min(start + span);
        let whole = inside == (start..start + span);
        // Below 512.
        Cell { index: index as usize, base: start, part: inside, whole }
    })
}

impl<F: Format> SecondStage<F> {
    /// An empty tree; `limit` is at least 4.
    pub(crate) fn new(limit: u32) -> Self {
        let arena = Arena::new(limit);
        // The first table made is number 0, the root.
        let _root = arena.alloc(&mut arena.lock());
        Self { arena, tally: Tally::default(), format: PhantomData }
    }

    #[inline]
    pub(crate) fn root(&self) -> Option<&Table> {
        self.arena.get(ROOT)
    }

    /// The table that an entry of `level` points to.
    #[inline]
    pub(crate) fn child(&self, entry: u64, level: u32) -> Option<&Table> {
        match F::decode(entry, level) {
            Entry::Table(number) => self.arena.get(number),
            _ => None,
        }
    }

    /// The table of `level`, at least 3, that translates `gpa`. With the arena's lock.
    fn upper(&self, _lock: &Allocation, gpa: u64, level: u32) -> Result<&Table, u64> {
        let mut table = self.root().ok_or(u64::MAX)?;
        for above in (level + 1..=F::LEVELS).rev() {
            let entry = table.entry(F::index(gpa, above)).load(Ordering::Acquire);
            let end = next_multiple(gpa, F::span(above));
            table = self.child(entry, above).ok_or(end)?;
        }
        Ok(table)
    }

    /// The first unit from `at` on, before `end`, in which something is mapped, with what of the
    /// range lies in it. It stays as long as its range lock is held.
    pub(crate) fn next_unit(&self, at: u64, end: u64) -> Option<(Unit<'_>, Range<u64>)> {
        if at >= end {
            return None;
        }
        let lock = self.arena.lock();
        let mut at = at;
        while at < end {
            let table = match self.upper(&lock, at, UNIT) {
                Ok(table) => table,
                Err(until) => {
                    at = until;
                    continue;
                }
            };
            let next = next_multiple(at, F::span(UNIT));
            let entry = table.entry(F::index(at, UNIT));
            if entry.load(Ordering::SeqCst) != 0 {
                let base = at & !(F::span(UNIT) - 1);
                return Some((Unit { base, entry }, at..end.min(next)));
            }
            at = next;
        }
        None
    }

    /// Calls `f` for each leaf of the range. If it returns true the entry is looked at again: a
    /// walk has changed it meanwhile, perhaps to a table.
    pub(crate) fn each_leaf<'a, E>(
        &'a self,
        range: &Range<Gpa>,
        mut f: impl FnMut(&Place<'a>, u64) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut at = range.start.0;
        while let Some((unit, part)) = self.next_unit(at, range.end.0) {
            at = part.end;
            let cell = unit.cell::<F>(part);
            self.leaves_in(
                Place { entry: unit.entry, level: UNIT, cell, hints: [None; 2] },
                &mut f,
            )?;
        }
        Ok(())
    }

    fn leaves_in<'a, E>(
        &'a self,
        place: Place<'a>,
        f: &mut impl FnMut(&Place<'a>, u64) -> Result<bool, E>,
    ) -> Result<(), E> {
        loop {
            let value = place.entry.load(Ordering::SeqCst);
            match F::decode(value, place.level) {
                Entry::Leaf => {
                    if f(&place, value)? {
                        continue;
                    }
                }
                Entry::Table(number) => {
                    let Some(table) = self.arena.get(number) else { return Ok(()) };
                    let level = place.level - 1;
                    for cell in cells::<F>(level, place.cell.base, place.cell.part.clone()) {
                        let hints = [Some((table, cell.index)), place.hints[0]];
                        let entry = table.entry(cell.index);
                        self.leaves_in(Place { entry, level, cell, hints }, f)?;
                    }
                }
                Entry::Empty | Entry::Reserved => {}
            }
            return Ok(());
        }
    }

    /// The first page of the range that is mapped, and where it goes.
    pub(crate) fn first_mapped(&self, range: &Range<Gpa>) -> Option<(Gpa, Oa)> {
        let found = self.each_leaf(range, |Place { level, cell, .. }, leaf| {
            let into = cell.part.start - cell.base;
            Err((Gpa(cell.part.start), Oa(F::output(leaf, *level).0 + into)))
        });
        found.err()
    }

    /// Where the byte at `gpa` goes, and what is allowed there.
    pub(crate) fn resolve(&self, gpa: Gpa) -> Option<(Oa, Perm)> {
        let found = self.each_leaf(&(gpa..Gpa(gpa.0 + 1)), |Place { level, cell, .. }, leaf| {
            let into = gpa.0 - cell.base;
            Err((Oa(F::output(leaf, *level).0 + into), F::perm(leaf)))
        });
        found.err()
    }

    /// Sets the leaves of a range in which nothing is mapped, each as large as alignment, length
    /// and the rules allow. If tables run out, the error is the page that could not be mapped; the
    /// pages before it are.
    pub(crate) fn map(
        &self,
        range: &Range<Gpa>,
        oa: Oa,
        perm: Perm,
        rules: LeafRules,
    ) -> Result<(), Gpa> {
        let leaf = |at: u64, level: u32| {
            let leaf = F::leaf(Oa(oa.0 + (at - range.start.0)), perm, level);
            if rules.protect { F::protect(leaf) } else { leaf }
        };
        let fits = |at: u64, level: u32| {
            let span = F::span(level);
            let left = range.end.0 - at;
            let output = oa.0 + (at - range.start.0);
            span <= rules.largest.min(left) && (at | output) & (span - 1) == 0
        };
        let mut at = range.start.0;
        while at < range.end.0 {
            let level = (2..=F::LARGEST_LEVEL).rev().find(|level| fits(at, *level)).unwrap_or(1);
            let mut lock = self.arena.lock();
            let table = self.table_or_new(&mut lock, at, level).ok_or(Gpa(at))?;
            if level > 1 {
                // Under the lock: a table above level 2 seen empty would be unlinked.
                let entry = table.entry(F::index(at, level));
                entry.store(leaf(at, level), Ordering::Release);
                at += F::span(level);
                continue;
            }
            // What is in a level 1 table concerns nobody else.
            drop(lock);
            let end = next_multiple(at, F::span(2)).min(range.end.0);
            while at < end {
                table.entry(F::index(at, 1)).store(leaf(at, 1), Ordering::Release);
                at += F::span(1);
            }
        }
        Ok(())
    }

    /// The table of `level` that translates `gpa`, made if there is none, with those above it.
    /// Makes all that are missing, or none.
    fn table_or_new(&self, lock: &mut Allocation, gpa: u64, level: u32) -> Option<&Table> {
        let (mut table, mut at) = (self.root()?, F::LEVELS);
        while at > level {
            let entry = table.entry(F::index(gpa, at));
            match self.child(entry.load(Ordering::Acquire), at) {
                Some(child) => table = child,
                None => {
                    if !self.arena.has(lock, at - level) {
                        return None;
                    }
                    let number = self.arena.alloc(lock)?;
                    let child = self.arena.get(number)?;
                    child.fill(0, 0, |_| 0);
                    // Release: who follows the entry sees the table empty, hints and all.
                    entry.store(F::table(number, at), Ordering::Release);
                    table = child;
                }
            }
            at -= 1;
        }
        Some(table)
    }

    /// Unlinks the level 3 table of `gpa` if it is empty, then the tables above it likewise.
    /// Returns their numbers, for after a drain.
    pub(crate) fn unlink_empty(&self, gpa: u64) -> Vec<u32> {
        let mut unlinked = Vec::new();
        let lock = self.arena.lock();
        for level in UNIT..F::LEVELS {
            let Ok(table) = self.upper(&lock, gpa, level) else { continue };
            let Ok(parent) = self.upper(&lock, gpa, level + 1) else { break };
            if !table.is_empty() {
                break;
            }
            let entry = parent.entry(F::index(gpa, level + 1)).swap(0, Ordering::SeqCst);
            if let Entry::Table(number) = F::decode(entry, level + 1) {
                unlinked.push(number);
            }
        }
        unlinked
    }
}

/// The first multiple of `span`, a power of two, above `value`.
pub(crate) fn next_multiple(value: u64, span: u64) -> u64 {
    (value & !(span - 1)).saturating_add(span)
}
