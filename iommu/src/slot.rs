//! A place for one access in flight: its guard, its IOTLB, its counters.

use crate::iotlb::Iotlb;
use crate::sync::{AtomicU64, Ordering};

/// Bit 0 of the guard word: an access is in flight. The bits above count accesses, so that a
/// waiter can tell the access it waits for from the next one.
const ACTIVE: u64 = 1;

/// One of a requester's slots. What is not the guard is touched by the claimant alone; the
/// guard's acquire and release order one claimant after the other.
#[repr(align(64))]
pub(crate) struct Slot {
    guard: AtomicU64,
    pub(crate) counters: Counters,
    pub(crate) iotlb: Iotlb,
}

/// Written by the claimant, read by anyone.
pub(crate) struct Counters {
    pub(crate) accesses: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) bytes_written: AtomicU64,
    pub(crate) misses: AtomicU64,
}

/// Adds with a plain load and store: the claimant is the only writer.
pub(crate) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

/// A slot taken for one access. Dropping it ends the access: what it stored is visible to whoever
/// sees the guard gone.
pub(crate) struct Claim<'a> {
    pub(crate) slot: &'a Slot,
    word: u64,
}

impl Slot {
    pub(crate) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            guard: zero(),
            counters: Counters {
                accesses: zero(),
                bytes_read: zero(),
                bytes_written: zero(),
                misses: zero(),
            },
            iotlb: Iotlb::new(),
        }
    }

    /// Takes the slot if it is free, and so publishes the guard.
    ///
    /// Sequentially consistent, as are the loads of the generation after it, the change of the
    /// generation and the drain's load of the guard: either the drain sees this guard, or this
    /// access sees the new generation.
    pub(crate) fn claim(&self) -> Option<Claim<'_>> {
        let word = self.guard.load(Ordering::Relaxed);
        if word & ACTIVE != 0 {
            return None;
        }
        let claimed = word | ACTIVE;
        self.guard
            .compare_exchange(word, claimed, Ordering::SeqCst, Ordering::Relaxed)
            .ok()
            .map(|_| Claim { slot: self, word: claimed })
    }

    /// The guard word, if an access is in flight.
    pub(crate) fn claimed(&self) -> Option<u64> {
        let word = self.guard.load(Ordering::SeqCst);
        (word & ACTIVE != 0).then_some(word)
    }

    /// True while the access that had this guard word is in flight.
    pub(crate) fn is_claimed_as(&self, word: u64) -> bool {
        self.guard.load(Ordering::SeqCst) == word
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // Clears ACTIVE and carries into the count.
        self.slot.guard.store(self.word.wrapping_add(1), Ordering::Release);
    }
}
