//! The byte stream between the two sides, the clock, and what watches a migration.

use std::io::{self, IoSlice};
use std::time::Duration;

use crate::phase::{Phase, Side};
use crate::report::Event;

/// Why a link gives no bytes or takes none.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Nothing moved within the time given; the link is as it was.
    #[error("Nothing moved on the link for {0:?}")]
    TimedOut(Duration),
    /// The peer has closed it, or it was cut.
    #[error("The link is closed")]
    Closed,
    /// Reading or writing failed.
    #[error("The link failed")]
    Io(#[source] io::Error),
}

/// An ordered, reliable stream of bytes in both directions: a connected socket, or a simulated
/// one. Used by one thread. Must not raise SIGPIPE.
pub trait Link {
    /// Sends some bytes, at least one, from the front of `parts`; returns how many. Waits for
    /// room for at most `timeout`.
    fn send(&mut self, parts: &[IoSlice<'_>], timeout: Duration) -> Result<usize, LinkError>;

    /// Receives some bytes, at least one, into the front of `buf`; returns how many. Waits for
    /// at most `timeout`; zero only looks. End of stream is [`LinkError::Closed`].
    fn receive(&mut self, buf: &mut [u8], timeout: Duration) -> Result<usize, LinkError>;
}

/// A monotonic clock.
pub trait Clock {
    /// Time since a point that is the same for all processes of this host.
    fn now(&self) -> Duration;

    /// Lets the thread rest for about this long.
    fn sleep(&self, time: Duration);
}

/// What watches a migration; called on the driving thread, also during the downtime: be short.
pub trait Hooks {
    /// `side` has reached `phase`; its work comes next.
    fn reached(&mut self, side: Side, phase: Phase);

    /// Something to show.
    fn event(&mut self, _event: &Event) {}
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHooks;

impl Hooks for NoHooks {
    fn reached(&mut self, _side: Side, _phase: Phase) {}
}

/// CLOCK_MONOTONIC, which the processes of a host share.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        // Monotonic time is never negative, and tv_nsec stays below 10^9.
        Duration::new(
            u64::try_from(time.tv_sec).unwrap_or(0),
            u32::try_from(time.tv_nsec).unwrap_or(0),
        )
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
