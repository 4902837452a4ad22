//! What a guest does that concerns its owner: it ends, resets, or cannot go on.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Something that ended or stopped the guest. The vCPU that caused it has parked itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest turned itself off.
    Shutdown,
    /// The guest asked for a reset.
    Reset,
    /// Triple fault. The text has the registers.
    TripleFault {
        /// For people: vCPU, exit reason, registers; several lines.
        report: String,
    },
    /// KVM cannot run the vCPU on, or a part of the machine failed.
    InternalError {
        /// For people: vCPU, exit reason, registers; several lines.
        report: String,
    },
}

/// The events of one machine, in order. May be used from any thread.
#[derive(Debug)]
pub struct EventQueue {
    queue: Mutex<VecDeque<GuestEvent>>,
    first: OnceLock<GuestEvent>,
    arrived: Condvar,
    fd: EventFd,
}

/// A guest that is started again and again without anyone reading cannot fill memory.
const MOST: usize = 64;

impl EventQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// The kernel has no eventfd left.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            queue: Mutex::new(VecDeque::new()),
            first: OnceLock::new(),
            arrived: Condvar::new(),
            fd: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<GuestEvent>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event and wakes the waiters.
    pub fn push(&self, event: GuestEvent) {
        // Only the first one counts: after it there is nothing left to end.
        let _ = self.first.set(event.clone());
        let mut queue = self.lock();
        if queue.len() < MOST {
            queue.push_back(event);
        }
        drop(queue);
        self.arrived.notify_all();
        // A full counter is readable, which is all that is wanted.
        let _ = self.fd.write(1);
    }

    /// Takes the oldest event, waiting for one at most `timeout`.
    pub fn wait(&self, timeout: Duration) -> Option<GuestEvent> {
        let until = Instant::now() + timeout;
        let mut queue = self.lock();
        loop {
            if let Some(event) = queue.pop_front() {
                if queue.is_empty() {
                    let _ = self.fd.read();
                }
                return Some(event);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            queue =
                self.arrived.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The first event that there was, whether somebody has taken it or not.
    #[must_use]
    pub fn first(&self) -> Option<&GuestEvent> {
        self.first.get()
    }

    /// Readable while an event waits; for those who poll descriptors.
    #[must_use]
    pub fn fd(&self) -> &EventFd {
        &self.fd
    }
}

#[cfg(test)]
#[path = "events_test.rs"]
mod tests;
