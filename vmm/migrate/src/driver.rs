//! Runs one side of a migration: feeds the state machine, moves the bytes, asks the machine.

mod admit;
mod channel;
mod contest;
mod copy;
mod destination;
mod greet;
mod handover;
mod load;
mod precopy;
mod ram;
mod source;
mod store;
mod switchover;
mod verify;

pub use destination::receive;
pub use source::send;

use crate::control::Control;
use crate::link::{Clock, Hooks};

/// What a migration runs in.
pub struct Env<'a> {
    /// The clock.
    pub clock: &'a dyn Clock,
    /// What watches it.
    pub hooks: &'a mut dyn Hooks,
    /// The user's hand on it.
    pub control: &'a Control,
}

impl std::fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env").field("control", self.control).finish_non_exhaustive()
    }
}
