//! `sync` for the models: the same names as the crate's own, on shuttle.

use std::time::Duration;

pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use shuttle::sync::{Mutex, MutexGuard};

pub(crate) const TABLES_PER_CHUNK: usize = 4;
pub(crate) const SLOTS: usize = 2;
pub(crate) const IOTLB_ENTRIES: usize = 2;

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("a model that panics has failed")
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
