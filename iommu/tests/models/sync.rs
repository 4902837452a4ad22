//! `sync` for the models: the same names as the crate's own, on shuttle.

use std::time::Duration;

pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};

pub(crate) const TABLE_ENTRIES: usize = 8;
/// A level more than outside the models: one above the units, which units share.
pub(crate) const MOCK_INDEX_BITS: &[u32] = &[3, 3, 3, 3];
pub(crate) const TABLES_PER_CHUNK: usize = 4;
pub(crate) const SLOTS: usize = 2;
pub(crate) const IOTLB_ENTRIES: usize = 2;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a model that panics has failed")
}

pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    mutex.try_lock().ok()
}

pub(crate) fn wait<'a, T>(changed: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    changed.wait(guard).expect("a model that panics has failed")
}

pub(crate) fn first_slot() -> usize {
    0
}

/// Waits for ever: a schedule that never lets the other side go on ends at shuttle's step limit.
pub(crate) struct Wait;

impl Wait {
    pub(crate) fn new(_limit: Duration) -> Self {
        Self
    }

    pub(crate) fn pause(&mut self) -> bool {
        shuttle::thread::yield_now();
        true
    }

    pub(crate) fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}
