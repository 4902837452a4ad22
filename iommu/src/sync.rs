//! What the concurrent parts are built of. The models in `tests/models` compile the same sources
//! with a `sync` of their own that lets a scheduler choose every interleaving.

use std::cell::Cell;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use std::sync::{Mutex, MutexGuard};

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
