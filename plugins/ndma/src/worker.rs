//! The worker thread, and the one way to stop it: [`Shared::while_idle`].
//!
//! Two locks, never held together nor across a call to the host: `inner` (registers and what the
//! worker may do) and `scratch`. The worker marks itself busy before its first access to the ring
//! and is idle again only after the interrupt; whoever wants silence waits for idle and closes the
//! gate under the same lock.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::bus::Bus;
use crate::ops::Bounce;
use crate::pace::Pace;
use crate::regs::{Registers, VECTOR_DONE, VECTOR_ERROR};
use crate::ring::{self, Step};
use crate::scratch::Scratch;
use crate::window::Window;

/// Longest wait for the descriptor at hand: 1 MiB of payload takes well under a millisecond, so
/// this is only ever reached when the host's DMA hangs.
pub const PARK_DEADLINE: Duration = Duration::from_secs(1);

/// The worker did not finish its descriptor in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("The worker is still at descriptor {next} after {:?}", PARK_DEADLINE)]
pub struct NotParked {
    /// Index of that descriptor in the ring.
    pub next: u32,
}

/// What the calls into the device and the worker share.
#[derive(Debug)]
pub struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// The memory on the device.
    pub scratch: Mutex<Scratch>,
}

/// Registers, and what the worker may do.
#[derive(Debug, Default)]
pub struct Inner {
    /// The registers.
    pub regs: Registers,
    /// What others write to.
    pub window: Window,
    /// The device state is one in which descriptors are taken.
    pub running: bool,
    /// NDMA was entered.
    pub ndma: bool,
    /// How fast descriptors may follow each other.
    pub pace: Pace,
    /// The worker has a descriptor at hand.
    busy: bool,
    /// Someone waits in `while_idle`: take no further descriptor.
    hold: bool,
    /// The worker is to end.
    exit: bool,
}

impl Inner {
    fn may_start(&self) -> bool {
        self.running && !self.ndma && !self.hold && self.regs.wants_work()
    }

    /// True while the worker has a descriptor at hand.
    pub fn is_busy(&self) -> bool {
        self.busy
    }
}

impl Shared {
    /// A device after power-on, with `pages` pages of scratch memory, not running.
    pub fn new(pages: usize) -> Self {
        Self {
            inner: Mutex::default(),
            changed: Condvar::new(),
            scratch: Mutex::new(Scratch::new(pages)),
        }
    }

    /// Looks at the present state.
    pub fn peek<T>(&self, look: impl FnOnce(&Inner) -> T) -> T {
        look(&self.lock())
    }

    /// Changes what nobody waits for.
    pub fn quietly<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.lock())
    }

    /// Changes what needs no idle worker.
    pub fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let value = act(&mut self.lock());
        self.changed.notify_all();
        value
    }

    /// From the next descriptor on, payload keeps to this rate; 0 for none.
    pub fn pace(&self, bytes_per_s: u64) {
        self.with(|inner| inner.pace = Pace::at(bytes_per_s));
    }

    /// Lets the worker finish the descriptor at hand, its interrupt included, then acts before it
    /// can take another. If `act` closes the gate (`running`, `ndma`, ENABLE), there is no access
    /// and no interrupt from then on. Waits at most [`PARK_DEADLINE`].
    ///
    /// # Errors
    /// [`NotParked`], and nothing was changed.
    pub fn while_idle<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> Result<T, NotParked> {
        let mut inner = self.lock();
        inner.hold = true;
        let waited = self.changed.wait_timeout_while(inner, PARK_DEADLINE, |inner| inner.busy);
        let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.hold = false;
        let result =
            if inner.busy { Err(NotParked { next: inner.regs.next }) } else { Ok(act(&mut inner)) };
        self.changed.notify_all();
        result
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for work and marks the worker busy with it: IOVA of the next descriptor, or `None`
    /// when the worker is to end.
    fn begin(&self) -> Option<u64> {
        let mut inner = self.lock();
        while !inner.exit {
            let left = inner.pace.left(Instant::now);
            inner = match left {
                _ if !inner.may_start() => {
                    self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner)
                }
                // Idle all the while: whoever wants silence has it.
                Some(left) => {
                    let waited = self.changed.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => break,
            };
        }
        if inner.exit {
            return None;
        }
        inner.busy = true;
        // Taken before the look: a doorbell rung from here on makes the device look once more.
        inner.regs.doorbell = false;
        Some(inner.regs.next_descriptor())
    }

    /// Enters what came of the look; returns the vector to trigger, if any.
    fn conclude(&self, step: Step) -> Option<u16> {
        let mut inner = self.lock();
        let (wanted, vector) = match step {
            Step::Idle => (false, VECTOR_DONE),
            Step::Completed { moved, irq } => {
                inner.regs.complete(moved);
                inner.pace.moved(moved, Instant::now);
                (irq, VECTOR_DONE)
            }
            Step::Halted(error) => {
                inner.regs.halt(error);
                (true, VECTOR_ERROR)
            }
        };
        (wanted && inner.regs.irq_enabled).then_some(vector)
    }

    fn park(&self) {
        self.lock().busy = false;
        self.changed.notify_all();
    }
}

/// The running thread; dropping this ends it after the descriptor at hand.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start(shared: Arc<Shared>, bus: impl Bus) -> io::Result<Self> {
        let theirs = Arc::clone(&shared);
        let bus = Arc::new(bus);
        let its_bus = Arc::clone(&bus);
        let thread = bus.spawn("ndma-ring", Box::new(move || serve(&theirs, &*its_bus)))?;
        Ok(Self { shared, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.with(|inner| inner.exit = true);
        if let Some(thread) = self.thread.take() {
            // No deadline of its own: the host has one for the end of an instance. An error is a
            // panic of the worker, which the bus has reported.
            let _ = thread.join();
        }
    }
}

/// One descriptor a turn, so that a stop waits for one descriptor, not for the ring. Should a turn
/// panic, the worker stays marked busy, and the device never claims to be stopped in the middle of
/// a descriptor.
fn serve(shared: &Shared, bus: &impl Bus) {
    let mut bounce = Bounce::default();
    while let Some(descriptor) = shared.begin() {
        let step = ring::step(bus, &shared.scratch, &mut bounce, descriptor);
        if let Some(vector) = shared.conclude(step) {
            bus.irq(vector);
        }
        // Before it is parked: in STOP nothing may be pinned.
        bus.finish();
        shared.park();
    }
}

#[cfg(test)]
#[path = "worker_test.rs"]
mod tests;
