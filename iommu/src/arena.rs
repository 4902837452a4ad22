//! Where the tables live: an append-only arena, with a free list for those that were drained.

use std::sync::OnceLock;

use crate::sync::{
    AtomicU64, Mutex, MutexGuard, Ordering, TABLE_ENTRIES, TABLES_PER_CHUNK, lock, try_lock,
};

/// Entries that one hint bit speaks for: a cache line of them.
pub(crate) const GROUP: usize = 8;

/// One table: up to 512 entries, and beside them a word of hints that says "look here".
///
/// A hint bit speaks for 8 entries. It is set whenever a D bit is set in one of them or, above
/// level 1, in anything below one; it may be set without one. Writers set D first and then the
/// hints, leaf table before the one above; the harvest takes the hints from above first, and D
/// last. All of it is sequentially consistent, so a D bit that a harvest does not find has its
/// hints set after the harvest took them, and the next one finds it. Tables above level 2 have no
/// hints: they are always looked at.
#[repr(align(64))]
pub(crate) struct Table {
    entries: [AtomicU64; TABLE_ENTRIES],
    hints: AtomicU64,
}

impl Table {
    fn new() -> Self {
        Self { entries: std::array::from_fn(|_| AtomicU64::new(0)), hints: AtomicU64::new(0) }
    }

    /// Entry `index`, which counts modulo 512.
    #[inline]
    pub(crate) fn entry(&self, index: usize) -> &AtomicU64 {
        &self.entries[index % TABLE_ENTRIES]
    }

    /// The first `count` entries.
    #[inline]
    pub(crate) fn first(&self, count: usize) -> &[AtomicU64] {
        &self.entries[..count.min(TABLE_ENTRIES)]
    }

    /// The word of hints.
    #[inline]
    pub(crate) fn hints(&self) -> &AtomicU64 {
        &self.hints
    }

    /// Makes sure that the hint of entry `index` is set.
    #[inline]
    pub(crate) fn hint(&self, index: usize) {
        let bit = 1u64 << (index / GROUP % 64);
        if self.hints.load(Ordering::SeqCst) & bit == 0 {
            self.hints.fetch_or(bit, Ordering::SeqCst);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.load(Ordering::Relaxed) == 0)
    }

    /// Gives every entry what `each` says for its index, 0 from `count` on. Nobody else has the
    /// table.
    pub(crate) fn fill(&self, count: usize, hints: u64, mut each: impl FnMut(u64) -> u64) {
        for (entry, index) in self.entries.iter().zip(0..) {
            // No usize is wider than 64 bits.
            let value = if index < count as u64 { each(index) } else { 0 };
            entry.store(value, Ordering::Relaxed);
        }
        self.hints.store(hints, Ordering::Relaxed);
    }
}

/// Tables by number. A table once made stays where it is for as long as the arena.
pub(crate) struct Arena {
    chunks: Box<[OnceLock<Box<[Table]>>]>,
    limit: u32,
    allocation: Mutex<Allocation>,
}

/// Which tables are in use. Whoever holds it may also link and unlink tables above level 2, which
/// no range lock speaks for. Held for a few steps, never while anything is waited for.
#[derive(Default)]
pub(crate) struct Allocation {
    made: u32,
    /// Drained: nobody can be looking at them.
    free: Vec<u32>,
}

impl Arena {
    pub(crate) fn new(limit: u32) -> Self {
        let limit_size = usize::try_from(limit).unwrap_or(usize::MAX);
        let chunks = limit_size.div_ceil(TABLES_PER_CHUNK);
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            limit,
            allocation: Mutex::new(Allocation::default()),
        }
    }

    pub(crate) fn limit(&self) -> u32 {
        self.limit
    }

    #[inline]
    pub(crate) fn get(&self, table: u32) -> Option<&Table> {
        let table = usize::try_from(table).ok()?;
        self.chunks.get(table / TABLES_PER_CHUNK)?.get()?.get(table % TABLES_PER_CHUNK)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Allocation> {
        lock(&self.allocation)
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, Allocation>> {
        try_lock(&self.allocation)
    }

    /// A table and its number, its content that of its last use; `None` if the limit is reached.
    pub(crate) fn alloc(&self, allocation: &mut Allocation) -> Option<u32> {
        if let Some(table) = allocation.free.pop() {
            return Some(table);
        }
        let table = allocation.made;
        self.make_chunk(table)?;
        allocation.made += 1;
        Some(table)
    }

    /// True if that many tables can be had.
    pub(crate) fn has(&self, allocation: &Allocation, count: u32) -> bool {
        let free = u32::try_from(allocation.free.len()).unwrap_or(u32::MAX);
        count <= free.saturating_add(self.limit - allocation.made)
    }

    /// Has memory ready for the next `count` tables, as far as the limit goes, so that whoever
    /// needs them on a fast path does not make it.
    pub(crate) fn reserve(&self, count: u32) {
        let mut allocation = self.lock();
        let have = u32::try_from(allocation.free.len()).unwrap_or(u32::MAX);
        for _ in have..count {
            let table = allocation.made;
            if self.make_chunk(table).is_none() {
                return;
            }
            allocation.made += 1;
            allocation.free.push(table);
        }
    }

    /// A table that was never linked is free again.
    pub(crate) fn give_back(&self, table: u32) {
        self.lock().free.push(table);
    }

    /// Tables that were drained are free.
    pub(crate) fn recycle(&self, tables: &[u32]) {
        self.lock().free.extend_from_slice(tables);
    }

    /// Tables linked into the tree, or unlinked and not yet drained.
    pub(crate) fn in_use(&self) -> u64 {
        let allocation = self.lock();
        u64::from(allocation.made).saturating_sub(allocation.free.len() as u64)
    }

    fn make_chunk(&self, table: u32) -> Option<()> {
        if table >= self.limit {
            return None;
        }
        let chunk = usize::try_from(table).ok()? / TABLES_PER_CHUNK;
        self.chunks
            .get(chunk)?
            .get_or_init(|| (0..TABLES_PER_CHUNK).map(|_| Table::new()).collect());
        Some(())
    }
}
