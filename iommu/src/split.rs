//! Large leaves to tables and back, while DMA runs.
//!
//! A split builds its table aside and puts it in place of the leaf by one compare-exchange on the
//! value that it was built from: a D bit set before is in the value, so in every new leaf; one that
//! comes later fails its own compare-exchange and walks again. Nothing that a cached translation
//! holds becomes wrong.
//!
//! A merge puts a leaf in place of the table by one exchange. A walk that was below already may
//! still set D in the old table, so its D bits count only after a drain; see `retire`.

use std::ops::Range;
use std::time::Duration;

use drogher_iommu_types::{Gpa, Oa, mutant};

use crate::retire::Retired;
use crate::spec::{Entry, Format};
use crate::sync::{AtomicU64, Ordering, Wait};
use crate::table::{Cell, LeafRules, SecondStage, UNIT, cells};

/// How long a write waits for the arena's lock before it takes the large leaf as it is. Whoever
/// has the lock needs far less, unless the thread is not running.
const SPLIT_DEADLINE: Duration = Duration::from_millis(2);

/// What became of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Split {
    /// The entry points to a table now.
    Done,
    /// The entry is no large leaf, or not any more.
    NotLeaf,
    /// The limit of tables is reached, or there was none in time.
    NoTable,
}

impl<F: Format> SecondStage<F> {
    /// Splits the leaf in `entry`, of `level`, by one level.
    pub(crate) fn split(&self, entry: &AtomicU64, level: u32) -> Split {
        let number = self.arena.alloc(&mut self.arena.lock());
        self.split_with(entry, level, number)
    }

    /// The same for a walk, which holds a guard.
    pub(crate) fn split_for_write(&self, entry: &AtomicU64, level: u32) -> Split {
        let mut wait = Wait::new(SPLIT_DEADLINE);
        let number = loop {
            if let Some(mut lock) = self.arena.try_lock() {
                break self.arena.alloc(&mut lock);
            }
            if !wait.pause() {
                break None;
            }
        };
        let split = self.split_with(entry, level, number);
        if split == Split::Done {
            self.tally.splits_on_write.add(1);
        }
        split
    }

    fn split_with(&self, entry: &AtomicU64, level: u32, number: Option<u32>) -> Split {
        let Some((number, table)) = number.and_then(|n| Some((n, self.arena.get(n)?))) else {
            return Split::NoTable;
        };
        let (below, count) = (level - 1, F::entries(level - 1));
        loop {
            let leaf = entry.load(Ordering::SeqCst);
            if level == 1 || F::decode(leaf, level) != Entry::Leaf {
                self.arena.give_back(number);
                return Split::NotLeaf;
            }
            let dirty = leaf & F::DIRTY != 0 && !mutant!("split-drops-dirty");
            let (base, perm) = (F::output(leaf, level), F::perm(leaf));
            table.fill(count, if dirty { u64::MAX } else { 0 }, |index| {
                let mut small = F::leaf(Oa(base.0 + index * F::span(below)), perm, below);
                if dirty {
                    small |= F::DIRTY;
                }
                if F::is_protected(leaf) { F::protect(small) } else { small }
            });
            let new = F::table(number, level);
            if entry.compare_exchange(leaf, new, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
                self.tally.splits.add(1);
                return Split::Done;
            }
        }
    }

    /// Splits every large leaf of the range down to the smallest size. The error is the first that
    /// there was no table for.
    pub(crate) fn split_all(&self, range: &Range<Gpa>) -> Result<(), Gpa> {
        let mut at = range.start.0;
        while let Some((unit, part)) = self.next_unit(at, range.end.0) {
            at = part.end;
            self.split_below(unit.entry, UNIT, &unit.cell::<F>(part))?;
        }
        Ok(())
    }

    fn split_below(&self, entry: &AtomicU64, level: u32, cell: &Cell) -> Result<(), Gpa> {
        if level == 1 {
            return Ok(());
        }
        if F::decode(entry.load(Ordering::SeqCst), level) == Entry::Leaf
            && self.split(entry, level) == Split::NoTable
        {
            return Err(Gpa(cell.base));
        }
        let Some(table) = self.child(entry.load(Ordering::SeqCst), level) else { return Ok(()) };
        if level > 2 {
            for inner in cells::<F>(level - 1, cell.base, cell.part.clone()) {
                self.split_below(table.entry(inner.index), level - 1, &inner)?;
            }
        }
        Ok(())
    }

    /// The large leaf that `at` cuts in two, with its entry and level.
    fn cut_by(&self, at: Gpa) -> Option<(&AtomicU64, u32, Range<Gpa>)> {
        let (unit, _) = self.next_unit(at.0, at.0.saturating_add(1))?;
        let (mut entry, mut level, mut base) = (unit.entry, UNIT, unit.base);
        loop {
            match F::decode(entry.load(Ordering::SeqCst), level) {
                Entry::Leaf if level > 1 && at.0 != base => {
                    return Some((entry, level, Gpa(base)..Gpa(base + F::span(level))));
                }
                Entry::Table(number) => {
                    level -= 1;
                    entry = self.arena.get(number)?.entry(F::index(at.0, level));
                    base = at.0 & !(F::span(level) - 1);
                }
                _ => return None,
            }
        }
    }

    /// The first large leaf that lies in the range only in part.
    pub(crate) fn partial_leaf(&self, range: &Range<Gpa>) -> Option<Range<Gpa>> {
        let cut = self.cut_by(range.start).or_else(|| self.cut_by(range.end));
        cut.map(|(_, _, leaf)| leaf)
    }

    /// Splits until no large leaf lies in the range only in part. The error is the leaf that there
    /// was no table for.
    pub(crate) fn cut(&self, range: &Range<Gpa>) -> Result<(), Gpa> {
        for at in [range.start, range.end] {
            while let Some((entry, level, leaf)) = self.cut_by(at) {
                if self.split(entry, level) == Split::NoTable {
                    return Err(leaf.start);
                }
            }
        }
        Ok(())
    }

    /// Merges what can be merged of the tables that lie wholly in the range, and returns the
    /// tables that are out of use, for after a drain.
    pub(crate) fn merge_all(&self, range: &Range<Gpa>, rules: LeafRules) -> Vec<Retired> {
        let mut retired = Vec::new();
        let mut at = range.start.0;
        while let Some((unit, part)) = self.next_unit(at, range.end.0) {
            at = part.end;
            self.merge_below(unit.entry, UNIT, &unit.cell::<F>(part), rules, &mut retired);
        }
        retired
    }

    fn merge_below(
        &self,
        entry: &AtomicU64,
        level: u32,
        cell: &Cell,
        rules: LeafRules,
        retired: &mut Vec<Retired>,
    ) {
        let old = entry.load(Ordering::SeqCst);
        let Entry::Table(number) = F::decode(old, level) else { return };
        let Some(table) = self.arena.get(number) else { return };
        if level > 2 {
            for inner in cells::<F>(level - 1, cell.base, cell.part.clone()) {
                self.merge_below(table.entry(inner.index), level - 1, &inner, rules, retired);
            }
        }
        if !cell.whole || F::span(level) > rules.largest || level > F::LARGEST_LEVEL {
            return;
        }
        let below = level - 1;
        let first = table.entry(0).load(Ordering::SeqCst);
        let (base, perm) = (F::output(first, below), F::perm(first));
        let alike = table.first(F::entries(below)).iter().zip(0..).all(|(small, index)| {
            let small = small.load(Ordering::SeqCst);
            F::decode(small, below) == Entry::Leaf
                && F::output(small, below).0 == base.0 + index * F::span(below)
                && F::perm(small) == perm
        });
        if !alike || base.0 & (F::span(level) - 1) != 0 {
            return;
        }
        let mut leaf = F::leaf(base, perm, level);
        if rules.protect {
            leaf = F::protect(leaf);
        }
        // Nobody but the holder of the range lock changes an entry that points to a table.
        entry.swap(leaf, Ordering::SeqCst);
        self.tally.merges.add(1);
        retired.push(Retired { number, level: below, base: cell.base });
    }
}
