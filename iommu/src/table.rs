//! The second stage's radix tree: lookup, map, unmap. Changes are made under the domain's lock;
//! walks run beside them.

use std::ops::Range;

use drogher_iommu_types::{Gpa, Oa, PAGE_SIZE, mutant};

use crate::arena::{Allocation, Arena, Table};
use crate::log::DirtyLog;
use crate::spec::{Perm, second_stage as spec};
use crate::sync::Ordering;

/// The root's number.
const ROOT: u32 = 0;

/// 4 levels, 4 KiB leaves. Larger leaves have their place: `step` is where they would be met.
pub(crate) struct SecondStage {
    arena: Arena,
}

/// What is found on the way to a table.
pub(crate) enum Step<'a> {
    Table(&'a Table),
    /// Nothing is mapped from here to `until`.
    Hole {
        until: u64,
    },
}

impl SecondStage {
    /// An empty tree; `limit` is at least 4.
    pub(crate) fn new(limit: u32, allocation: &mut Allocation) -> Self {
        let arena = Arena::new(limit);
        // The first table made is number 0, the root.
        let _root = arena.alloc(allocation);
        Self { arena }
    }

    pub(crate) fn limit(&self) -> u32 {
        self.arena.limit()
    }

    #[inline]
    pub(crate) fn root(&self) -> Option<&Table> {
        self.arena.get(ROOT)
    }

    /// The table that entry `index` of `table` points to.
    #[inline]
    pub(crate) fn child(&self, table: &Table, index: usize) -> Option<&Table> {
        let entry = table.entry(index).load(Ordering::Acquire);
        self.arena.get(spec::table_of(entry)?)
    }

    /// The table of `level` (1: leaf table) whose entries translate `gpa`.
    #[inline]
    pub(crate) fn table_at(&self, gpa: u64, level: u32) -> Option<&Table> {
        match self.step(gpa, level) {
            Step::Table(table) => Some(table),
            Step::Hole { .. } => None,
        }
    }

    /// As `table_at`, with the size of the hole if there is none.
    #[inline]
    pub(crate) fn step(&self, gpa: u64, level: u32) -> Step<'_> {
        let Some(mut table) = self.root() else {
            return Step::Hole { until: u64::MAX };
        };
        for above in (level + 1..=spec::LEVELS).rev() {
            match self.child(table, spec::index(gpa, above)) {
                Some(child) => table = child,
                None => {
                    return Step::Hole { until: next_multiple(gpa, spec::span(above)) };
                }
            }
        }
        Step::Table(table)
    }

    /// Calls `f(GPA of the table's first page, leaf table, entries inside the range)` for each
    /// leaf table that the range meets.
    pub(crate) fn for_each_leaf_table<'a>(
        &'a self,
        range: &Range<Gpa>,
        mut f: impl FnMut(u64, &'a Table, Range<usize>),
    ) {
        let mut at = range.start.0;
        while at < range.end.0 {
            let next = next_multiple(at, spec::span(2));
            match self.step(at, 1) {
                Step::Table(table) => {
                    let last = spec::index(range.end.0.min(next) - 1, 1);
                    f(at & !(spec::span(2) - 1), table, spec::index(at, 1)..last + 1);
                    at = next;
                }
                Step::Hole { until } => at = until,
            }
        }
    }

    /// The first page of the range that is mapped, and its leaf.
    pub(crate) fn first_mapped(&self, range: &Range<Gpa>) -> Option<(Gpa, u64)> {
        let mut found = None;
        self.for_each_leaf_table(range, |base, table, indexes| {
            for index in indexes {
                let leaf = table.entry(index).load(Ordering::Relaxed);
                if found.is_none() && spec::is_present(leaf) {
                    found = Some((page_at(base, index), leaf));
                }
            }
        });
        found
    }

    /// Sets the leaves of a range in which nothing is mapped. If tables run out, the error is the
    /// page that could not be mapped; the pages before it are.
    pub(crate) fn map(
        &self,
        allocation: &mut Allocation,
        range: &Range<Gpa>,
        oa: Oa,
        perm: Perm,
    ) -> Result<(), Gpa> {
        let mut at = range.start.0;
        while at < range.end.0 {
            let table = self.leaf_table_or_new(allocation, at).ok_or(Gpa(at))?;
            let end = next_multiple(at, spec::span(2)).min(range.end.0);
            while at < end {
                let leaf = spec::leaf(Oa(oa.0 + (at - range.start.0)), perm);
                table.entry(spec::index(at, 1)).store(leaf, Ordering::Release);
                at += PAGE_SIZE;
            }
        }
        Ok(())
    }

    /// Takes every leaf of the range out, its D bit into the log; returns how many there were.
    /// Tables left empty are unlinked. An access in flight may still use what was taken.
    pub(crate) fn unmap(
        &self,
        allocation: &mut Allocation,
        log: &mut DirtyLog,
        range: &Range<Gpa>,
    ) -> u64 {
        let (mut pages, mut touched) = (0, Vec::new());
        self.for_each_leaf_table(range, |base, table, indexes| {
            for index in indexes {
                // An exchange: a D bit set at the last moment is in what comes back.
                let leaf = table.entry(index).swap(0, Ordering::SeqCst);
                pages += u64::from(spec::is_present(leaf));
                if leaf & spec::DIRTY != 0 && !mutant!("unmap-drops-dirty") {
                    log.set(page_at(base, index));
                }
            }
            touched.push(base);
        });
        for base in touched {
            self.unlink_empty(allocation, base);
        }
        pages
    }

    /// Unlinks the leaf table of `gpa` if it is empty, then the tables above it likewise.
    fn unlink_empty(&self, allocation: &mut Allocation, gpa: u64) {
        for level in 1..spec::LEVELS {
            let (Some(table), Some(parent)) =
                (self.table_at(gpa, level), self.table_at(gpa, level + 1))
            else {
                return;
            };
            if !table.is_empty() {
                return;
            }
            let entry = parent.entry(spec::index(gpa, level + 1)).swap(0, Ordering::SeqCst);
            if let Some(number) = spec::table_of(entry) {
                allocation.unlink(number);
            }
        }
    }

    fn leaf_table_or_new(&self, allocation: &mut Allocation, gpa: u64) -> Option<&Table> {
        let mut table = self.root()?;
        for level in (2..=spec::LEVELS).rev() {
            let index = spec::index(gpa, level);
            table = match self.child(table, index) {
                Some(child) => child,
                None => {
                    let number = self.arena.alloc(allocation)?;
                    // Release: who follows the entry sees the table empty, hints and all.
                    table.entry(index).store(spec::table(number), Ordering::Release);
                    self.arena.get(number)?
                }
            };
        }
        Some(table)
    }
}

/// The page that entry `index` of the leaf table at `base` translates.
pub(crate) fn page_at(base: u64, index: usize) -> Gpa {
    // An index below 512.
    Gpa(base + (index as u64) * PAGE_SIZE)
}

/// The first multiple of `span`, a power of two, above `value`.
pub(crate) fn next_multiple(value: u64, span: u64) -> u64 {
    (value & !(span - 1)).saturating_add(span)
}
