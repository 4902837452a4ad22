//! Waiting with a deadline that a process which was itself stopped does not run into.

use std::sync::{Condvar, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A wait is charged in pieces of at most this.
const SLICE: Duration = Duration::from_millis(50);

/// How long others of this process are waited for. Time for which the whole process stood (SIGSTOP, a
/// frozen container) is not charged: they stood as well.
#[derive(Debug)]
pub struct Patience {
    left: Duration,
}

impl Patience {
    /// So long.
    #[must_use]
    pub const fn new(left: Duration) -> Self {
        Self { left }
    }

    /// True if there is none left. What is waited for should be looked at before this.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.left.is_zero()
    }

    /// Waits for a change, a moment at most.
    pub fn wait<'a, T>(
        &mut self,
        changed: &Condvar,
        guard: MutexGuard<'a, T>,
    ) -> MutexGuard<'a, T> {
        let (slice, begin) = (SLICE.min(self.left), Instant::now());
        let (guard, _) = changed.wait_timeout(guard, slice).unwrap_or_else(PoisonError::into_inner);
        self.charge(begin.elapsed(), slice);
        guard
    }

    fn charge(&mut self, waited: Duration, slice: Duration) {
        self.left = self.left.saturating_sub(waited.min(slice));
    }
}

#[cfg(test)]
#[path = "patience_test.rs"]
mod tests;
