//! Permits: proof, borrowed from a held lease, that its borrower may run the guest.

use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::LeaseError;
use crate::config::LeaseIdentity;

/// The open file and who runs on it. The lock goes when the last reference has gone, so a permit
/// that is still out keeps it.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) file: File,
    pub(super) identity: LeaseIdentity,
    gate: Mutex<Gate>,
    returned: Condvar,
}

#[derive(Debug)]
struct Gate {
    open: bool,
    out: usize,
}

impl Shared {
    pub(super) fn new(file: File, identity: LeaseIdentity) -> Self {
        Self {
            file,
            identity,
            gate: Mutex::new(Gate { open: false, out: 0 }),
            returned: Condvar::new(),
        }
    }

    // The gate is two plain values, whole at any time: a panic elsewhere cannot have torn it.
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open_gate(&self) {
        self.gate().open = true;
    }

    pub(super) fn close_gate(&self, deadline: Instant) -> Result<(), LeaseError> {
        let begin = Instant::now();
        let mut gate = self.gate();
        gate.open = false;
        while gate.out > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LeaseError::PermitsOut {
                    path: self.identity.path.clone(),
                    count: gate.out,
                    waited: begin.elapsed(),
                });
            }
            gate = self.returned.wait_timeout(gate, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// Lends permits. May be cloned, kept and used from any thread.
#[derive(Debug, Clone)]
pub struct Permits {
    shared: Arc<Shared>,
}

impl Permits {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Lends a permit, if the lease is held and the guest is not stopped for a handover.
    ///
    /// # Errors
    /// [`LeaseError::NoPermits`] otherwise.
    pub fn borrow(&self) -> Result<Permit, LeaseError> {
        let mut gate = self.shared.gate();
        if !gate.open {
            return Err(LeaseError::NoPermits { path: self.shared.identity.path.clone() });
        }
        gate.out += 1;
        Ok(Permit { shared: Arc::clone(&self.shared) })
    }

    /// Permits that are out.
    #[must_use]
    pub fn out(&self) -> usize {
        self.shared.gate().out
    }
}

/// Whoever has one may run a vCPU, or a device that does DMA, interrupts or uses a wire. Dropping
/// it says that this has stopped.
#[derive(Debug)]
#[must_use = "dropping a permit gives it back"]
pub struct Permit {
    shared: Arc<Shared>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut gate = self.shared.gate();
        gate.out -= 1;
        if gate.out == 0 {
            self.shared.returned.notify_all();
        }
    }
}
