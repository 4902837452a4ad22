//! Where the tables live: an append-only arena, with a free list for those that were drained.

use std::sync::OnceLock;

use crate::spec::second_stage::ENTRIES;
use crate::sync::{AtomicU64, Ordering, TABLES_PER_CHUNK};

const DIRTY_WORDS: usize = ENTRIES / 64;

/// One table: 512 entries, and beside them one bit an entry that says "look here".
///
/// A hint bit is set whenever a D bit is set in the entry itself or, above level 1, in anything
/// below it; it may be set without one. Writers set D first and then the hints, leaf table before
/// the one above; the harvest takes the hints from above first, and D last. All of it is
/// sequentially consistent, so a D bit that a harvest does not find has its hints set after the
/// harvest took them, and the next one finds it.
#[repr(align(64))]
pub(crate) struct Table {
    entries: [AtomicU64; ENTRIES],
    hints: [AtomicU64; DIRTY_WORDS],
}

impl Table {
    fn new() -> Self {
        Self {
            entries: std::array::from_fn(|_| AtomicU64::new(0)),
            hints: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Entry `index`, which counts modulo 512.
    #[inline]
    pub(crate) fn entry(&self, index: usize) -> &AtomicU64 {
        &self.entries[index % ENTRIES]
    }

    /// The hints of entries `64 * word ..`, which counts modulo 8.
    #[inline]
    pub(crate) fn hints(&self, word: usize) -> &AtomicU64 {
        &self.hints[word % DIRTY_WORDS]
    }

    /// Makes sure that the hint of entry `index` is set.
    #[inline]
    pub(crate) fn hint(&self, index: usize) {
        let (word, bit) = (self.hints(index / 64), 1u64 << (index % 64));
        if word.load(Ordering::SeqCst) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.load(Ordering::Relaxed) == 0)
    }

    fn clear_hints(&self) {
        for word in &self.hints {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// Tables by number. A table once made stays where it is for as long as the arena.
pub(crate) struct Arena {
    chunks: Box<[OnceLock<Box<[Table]>>]>,
    limit: u32,
}

/// Which tables are in use. Kept under the domain's lock.
#[derive(Default)]
pub(crate) struct Allocation {
    made: u32,
    free: Vec<u32>,
    /// Unlinked, but an access in flight may still look at them: free after the next drain.
    unlinked: Vec<u32>,
}

impl Allocation {
    pub(crate) fn unlink(&mut self, table: u32) {
        self.unlinked.push(table);
    }

    /// To be called after a drain.
    pub(crate) fn recycle(&mut self) {
        self.free.append(&mut self.unlinked);
    }

    /// Tables linked into the radix tree.
    pub(crate) fn in_use(&self) -> u64 {
        let idle = self.free.len() + self.unlinked.len();
        u64::from(self.made).saturating_sub(u64::try_from(idle).unwrap_or(u64::MAX))
    }
}

impl Arena {
    pub(crate) fn new(limit: u32) -> Self {
        let limit_size = usize::try_from(limit).unwrap_or(usize::MAX);
        let chunks = limit_size.div_ceil(TABLES_PER_CHUNK);
        Self { chunks: (0..chunks).map(|_| OnceLock::new()).collect(), limit }
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    #[inline]
    pub(crate) fn get(&self, table: u32) -> Option<&Table> {
        let table = usize::try_from(table).ok()?;
        self.chunks.get(table / TABLES_PER_CHUNK)?.get()?.get(table % TABLES_PER_CHUNK)
    }

    /// An empty table and its number; `None` if the limit is reached.
    pub(crate) fn alloc(&self, allocation: &mut Allocation) -> Option<u32> {
        if let Some(table) = allocation.free.pop() {
            self.get(table)?.clear_hints();
            return Some(table);
        }
        let table = allocation.made;
        if table >= self.limit {
            return None;
        }
        let chunk = usize::try_from(table).ok()? / TABLES_PER_CHUNK;
        self.chunks
            .get(chunk)?
            .get_or_init(|| (0..TABLES_PER_CHUNK).map(|_| Table::new()).collect());
        allocation.made += 1;
        Some(table)
    }
}
