//! What the concurrent parts are built of. The models in `tests/models` compile the same sources
//! with a `sync` of their own that lets a scheduler choose every interleaving.

use std::cell::Cell;

use std::sync::atomic::AtomicUsize;
use std::sync::{PoisonError, TryLockError};
use std::time::{Duration, Instant};

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

/// Entries that a table has room for: those of the largest table of any format.
pub(crate) const TABLE_ENTRIES: usize = 512;
/// Bits of GPA that choose the entry in the mock format, level 1 first.
pub(crate) const MOCK_INDEX_BITS: &[u32] = &[3, 4, 5];
/// Tables that the arena allocates at a time.
pub(crate) const TABLES_PER_CHUNK: usize = 64;
/// Accesses that one requester may have in flight.
pub(crate) const SLOTS: usize = 8;
/// Entries of one slot's IOTLB; a power of two.
pub(crate) const IOTLB_ENTRIES: usize = 128;

/// Locks. A panic while it was held left plain data behind, which stays usable.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Locks if that can be done at once.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}

/// Waits until the condition may have changed.
pub(crate) fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// The slot that this thread tries first: threads spread over the slots and come back to their
/// own, with its warm IOTLB.
pub(crate) fn first_slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<Option<usize>> = const { Cell::new(None) };
    }
    MINE.with(|mine| match mine.get() {
        Some(slot) => slot,
        None => {
            let slot = NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS;
            mine.set(Some(slot));
            slot
        }
    })
}

/// A wait with a deadline: sleeps between looks, a little longer each time.
pub(crate) struct Wait {
    started: Instant,
    limit: Duration,
    polls: u32,
}

/// Looks that are always granted, however late it is: a process that was stopped for longer than
/// the deadline finds it passed before the thread waited for has run again.
const MIN_POLLS: u32 = 32;
const LONGEST_SLEEP: Duration = Duration::from_millis(1);

impl Wait {
    pub(crate) fn new(limit: Duration) -> Self {
        Self { started: Instant::now(), limit, polls: 0 }
    }

    /// Sleeps until the next look is due; false if the deadline has passed.
    pub(crate) fn pause(&mut self) -> bool {
        if self.polls >= MIN_POLLS && self.started.elapsed() >= self.limit {
            return false;
        }
        let sleep = Duration::from_micros(10).saturating_mul(1 << self.polls.min(7));
        self.polls = self.polls.saturating_add(1);
        std::thread::sleep(sleep.min(LONGEST_SLEEP));
        true
    }

    /// Since the wait began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}
