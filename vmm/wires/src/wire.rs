//! What a wire is.

use std::sync::Arc;

use crate::{Inbox, WireError};

/// One wire. Any thread may call.
pub trait Wire: Send + Sync {
    /// Opens and checks what it needs, before the guest arrives or starts. No frame passes, and
    /// whoever is at the other end is told nothing.
    ///
    /// # Errors
    /// The other end cannot be had.
    fn prepare(&self) -> Result<(), WireError>;
    /// From now on frames pass: what comes goes to `inbox`. Called by who holds the right to run the
    /// guest, perhaps again after [`deactivate`](Self::deactivate), and must not fail: what is
    /// lost is tried for again.
    fn activate(&self, inbox: Arc<Inbox>);
    /// On return no frame passes, and the other end can be had by somebody else.
    fn deactivate(&self);
    /// Sends a frame, without waiting; false: it was dropped.
    fn send(&self, frame: &[u8]) -> bool;
}

/// A wire that is not there.
#[derive(Debug)]
pub struct NoWire;

impl Wire for NoWire {
    fn prepare(&self) -> Result<(), WireError> {
        Ok(())
    }

    fn activate(&self, _inbox: Arc<Inbox>) {}

    fn deactivate(&self) {}

    fn send(&self, _frame: &[u8]) -> bool {
        false
    }
}
