//! What a vCPU's thread is told, and what it answers.

use std::any::Any;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use drogher_iommu_types::Patience;

/// Held while a vCPU may run the guest, and dropped when it has left it for good: the right to run.
pub type Permit = Box<dyn Any + Send>;

/// Where the thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// It waits; nothing runs, no permit is held.
    Parked,
    /// It has been given a permit and may be in the guest.
    Running,
    /// It is gone.
    Ended,
}

#[derive(Default)]
struct State {
    running: bool,
    ended: bool,
    exit: bool,
    permit: Option<Permit>,
}

/// The control block that a vCPU's thread and its owner share.
#[derive(Default)]
pub struct Control {
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Control").field(&self.phase()).finish()
    }
}

impl Control {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the thread is now.
    pub fn phase(&self) -> Phase {
        let state = self.lock();
        match (state.ended, state.running) {
            (true, _) => Phase::Ended,
            (false, true) => Phase::Running,
            (false, false) => Phase::Parked,
        }
    }

    /// True once a stop was asked for, until the next start.
    pub fn stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Owner: hands the permit over and lets the thread run; gives it back if the thread is not
    /// parked. `ready` is called before the thread can see the permit.
    pub fn start(&self, permit: Permit, ready: impl FnOnce()) -> Result<(), (Phase, Permit)> {
        let mut state = self.lock();
        if state.ended {
            return Err((Phase::Ended, permit));
        }
        if state.running {
            return Err((Phase::Running, permit));
        }
        ready();
        self.stop.store(false, Ordering::SeqCst);
        state.running = true;
        state.permit = Some(permit);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Owner: asks for a stop. The kick is the caller's.
    pub fn ask_stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Owner: asks the thread to end once it is parked.
    pub fn ask_exit(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.lock().exit = true;
        self.changed.notify_all();
    }

    /// Waits until the thread is not running; false if it still is when the patience is over.
    pub fn wait_parked(&self, patience: &mut Patience) -> bool {
        let mut state = self.lock();
        while state.running && !state.ended {
            if patience.is_over() {
                return false;
            }
            state = patience.wait(&self.changed, state);
        }
        true
    }

    /// Thread: waits for a permit; `None` to end.
    pub fn next(&self) -> Option<Permit> {
        let mut state = self.lock();
        loop {
            if let Some(permit) = state.permit.take() {
                return Some(permit);
            }
            if state.exit {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Thread: it has left the guest and dropped its permit.
    pub fn parked(&self) {
        self.lock().running = false;
        self.changed.notify_all();
    }

    /// Thread: it is going away.
    pub fn ended(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.running = false;
        let permit = state.permit.take();
        drop(state);
        drop(permit);
        self.changed.notify_all();
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
