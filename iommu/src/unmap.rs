//! Taking mappings out. Whole tables go by one exchange of the entry above, single leaves by one
//! each; either way a D bit set at the last moment is in what comes back, or in the table that was
//! taken by the time that a drain has ended.

use std::ops::Range;

use drogher_iommu_types::{Gpa, mutant};

use crate::arena::Table;
use crate::retire::{Retired, pages, pages_of};
use crate::spec::{Entry, Format};
use crate::sync::{AtomicU64, Ordering};
use crate::table::{Cell, SecondStage, UNIT, cells};

/// What an unmap has taken so far.
pub(crate) struct Taken<'a> {
    /// Bytes of leaves taken one by one. The rest is in `retired`.
    pub(crate) bytes: u64,
    /// To be read, and then used again, after a drain.
    pub(crate) retired: Vec<Retired>,
    /// Called with groups of pages whose leaf was taken with its D bit set.
    pub(crate) dirty: &'a mut dyn FnMut(Gpa, u64),
}

impl<F: Format> SecondStage<F> {
    /// Takes out every leaf of the range, in which no large leaf lies only in part. Tables left
    /// empty are unlinked. An access in flight may still use what was taken.
    pub(crate) fn unmap(&self, range: &Range<Gpa>, taken: &mut Taken<'_>) {
        let mut at = range.start.0;
        while let Some((unit, part)) = self.next_unit(at, range.end.0) {
            at = part.end;
            self.unmap_cell(unit.entry, UNIT, &unit.cell::<F>(part), taken);
            if unit.entry.load(Ordering::SeqCst) == 0 {
                let empty = self.unlink_empty(unit.base);
                taken.retired.extend(
                    empty.into_iter().zip(UNIT..).map(|(number, level)| Retired {
                        number,
                        level,
                        base: unit.base,
                    }),
                );
            }
        }
    }

    fn unmap_cell(&self, entry: &AtomicU64, level: u32, cell: &Cell, taken: &mut Taken<'_>) {
        if cell.whole {
            if entry.load(Ordering::Relaxed) == 0 {
                return;
            }
            let value = entry.swap(0, Ordering::SeqCst);
            match F::decode(value, level) {
                Entry::Leaf => {
                    taken.bytes += F::span(level);
                    if value & F::DIRTY != 0 && !mutant!("unmap-drops-dirty") {
                        pages(cell.base, F::span(level), &mut *taken.dirty);
                    }
                }
                Entry::Table(number) => {
                    taken.retired.push(Retired { number, level: level - 1, base: cell.base });
                }
                Entry::Empty | Entry::Reserved => {}
            }
            return;
        }
        let Some(table) = self.child(entry.load(Ordering::SeqCst), level) else { return };
        let below = level - 1;
        if below == 1 {
            unmap_leaves::<F>(table, cell, taken);
        } else {
            for inner in cells::<F>(below, cell.base, cell.part.clone()) {
                self.unmap_cell(table.entry(inner.index), below, &inner, taken);
            }
        }
        if table.is_empty()
            && let Entry::Table(number) = F::decode(entry.swap(0, Ordering::SeqCst), level)
        {
            taken.retired.push(Retired { number, level: below, base: cell.base });
        }
    }
}

/// A part of one level 1 table. Several leaves may share a page of 4 KiB.
fn unmap_leaves<F: Format>(table: &Table, cell: &Cell, taken: &mut Taken<'_>) {
    let (mut group, mut bits) = (0, 0u64);
    let flush = |group: usize, bits: u64, dirty: &mut dyn FnMut(Gpa, u64)| {
        if bits != 0 && !mutant!("unmap-drops-dirty") {
            dirty(Gpa(cell.base + group as u64 * 64 * F::span(1)), pages_of::<F>(bits));
        }
    };
    for inner in cells::<F>(1, cell.base, cell.part.clone()) {
        if inner.index / 64 != group {
            flush(group, bits, &mut *taken.dirty);
            (group, bits) = (inner.index / 64, 0);
        }
        let value = table.entry(inner.index).swap(0, Ordering::SeqCst);
        if F::decode(value, 1) == Entry::Leaf {
            taken.bytes += F::span(1);
            bits |= u64::from(value & F::DIRTY != 0) << (inner.index % 64);
        }
    }
    flush(group, bits, &mut *taken.dirty);
}
