//! Tables that are out of the tree but not out of use: a walk that was below already may still set
//! a D bit in one, until a drain. So D bits are read, and tables used again, only after that.

use drogher_iommu_types::{Gpa, PAGE_SHIFT};

use crate::drain::DrainError;
use crate::spec::{Entry, Format};
use crate::sync::{Mutex, Ordering, lock};
use crate::table::SecondStage;

/// The root of a subtree that was unlinked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Retired {
    pub(crate) number: u32,
    pub(crate) level: u32,
    /// The first GPA that it translated.
    pub(crate) base: u64,
}

/// What a drain that failed left behind: the next one that succeeds, whoever's, pays for it.
#[derive(Default)]
pub(crate) struct Debts(Mutex<Ledger>);

#[derive(Default)]
struct Ledger {
    /// Counts drains as they begin.
    clock: u64,
    /// The newest drain that failed, by the clock; 0 if that is paid.
    failed: u64,
    waiting: Vec<(u64, Retired)>,
}

impl Debts {
    /// A drain begins: it pays for what was owed before.
    pub(crate) fn begin(&self) -> u64 {
        let mut ledger = lock(&self.0);
        ledger.clock += 1;
        ledger.clock
    }

    /// What may be used again after the drain that began at `clock` has succeeded.
    pub(crate) fn pay(&self, clock: u64) -> Vec<Retired> {
        let mut ledger = lock(&self.0);
        if ledger.failed < clock {
            ledger.failed = 0;
        }
        let (paid, left) = ledger.waiting.drain(..).partition(|(since, _)| *since < clock);
        ledger.waiting = left;
        paid.into_iter().map(|(_, retired): (u64, Retired)| retired).collect()
    }

    /// `retired` waits for some later drain. If one has failed, nothing may be copied until then.
    pub(crate) fn owe(&self, retired: Vec<Retired>, failed: Option<&DrainError>) {
        let mut ledger = lock(&self.0);
        let clock = ledger.clock;
        if failed.is_some() {
            ledger.failed = clock.max(1);
        }
        ledger.waiting.extend(retired.into_iter().map(|retired| (clock, retired)));
    }

    /// Tables wait for a drain.
    pub(crate) fn is_waiting(&self) -> bool {
        !lock(&self.0).waiting.is_empty()
    }

    /// A drain has failed and none has succeeded that began after it.
    pub(crate) fn is_owed(&self) -> bool {
        lock(&self.0).failed != 0
    }
}

impl<F: Format> SecondStage<F> {
    /// Reads a subtree that was unlinked, best after a drain: calls `dirty(page, bits)` for each
    /// group of pages with D bits, puts its tables' numbers in `tables`, and returns how many
    /// bytes it translated.
    pub(crate) fn read_retired(
        &self,
        retired: Retired,
        dirty: &mut impl FnMut(Gpa, u64),
        tables: &mut Vec<u32>,
    ) -> u64 {
        let Retired { number, level, base } = retired;
        let Some(table) = self.arena.get(number) else { return 0 };
        tables.push(number);
        let entries = table.first(F::entries(level));
        if level == 1 {
            return leaves::<F>(entries, base, dirty);
        }
        let mut bytes = 0;
        for (entry, index) in entries.iter().zip(0..) {
            let (value, first) = (entry.load(Ordering::Relaxed), base + index * F::span(level));
            match F::decode(value, level) {
                Entry::Leaf => {
                    bytes += F::span(level);
                    if value & F::DIRTY != 0 {
                        pages(first, F::span(level), dirty);
                    }
                }
                // A write may have split a leaf even here.
                Entry::Table(number) => {
                    let below = Retired { number, level: level - 1, base: first };
                    bytes += self.read_retired(below, dirty, tables);
                }
                Entry::Empty | Entry::Reserved => {}
            }
        }
        bytes
    }
}

/// The leaves of a level 1 table at rest.
fn leaves<F: Format>(
    entries: &[crate::sync::AtomicU64],
    base: u64,
    dirty: &mut impl FnMut(Gpa, u64),
) -> u64 {
    let mut count = 0;
    for (group, number) in entries.chunks(64).zip(0..) {
        let (mut bits, mut present) = (0u64, 0u64);
        for (entry, index) in group.iter().zip(0..) {
            let value = entry.load(Ordering::Relaxed);
            let leaf = F::decode(value, 1) == Entry::Leaf;
            present += u64::from(leaf);
            bits |= u64::from(leaf && value & F::DIRTY != 0) << index;
        }
        count += present;
        if bits != 0 {
            dirty(Gpa(base + number * 64 * F::span(1)), pages_of::<F>(bits));
        }
    }
    count * F::span(1)
}

/// The pages of 4 KiB that up to 64 leaves stand for.
#[inline]
pub(crate) fn pages_of<F: Format>(mut leaves: u64) -> u64 {
    if F::LEAF_SHIFT == PAGE_SHIFT {
        return leaves;
    }
    let mut pages = 0;
    while leaves != 0 {
        let leaf = leaves.trailing_zeros();
        pages |= 1 << (leaf >> (PAGE_SHIFT - F::LEAF_SHIFT));
        leaves &= leaves - 1;
    }
    pages
}

/// Every page of `bytes` from `first` on, in groups of 64. Both are multiples of a page.
pub(crate) fn pages(first: u64, bytes: u64, each: &mut (impl FnMut(Gpa, u64) + ?Sized)) {
    let (mut at, end) = (first, first + bytes);
    while at < end {
        let count = ((end - at) >> PAGE_SHIFT).min(64);
        each(Gpa(at), u64::MAX >> (64 - count));
        at += count << PAGE_SHIFT;
    }
}
