//! The worker thread, and the one way to stop it: [`Shared::while_idle`].
//!
//! One lock, held over the work on one frame and never over a wait. A wait for frames is nothing that
//! has to be stopped: who wakes up looks anew whether it may do anything.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;

use crate::bus::Bus;
use crate::net::{self, Step};
use crate::regs::{RX, Registers, TX};
use crate::ring::Broken;

/// Longest wait for the frame at hand; only reached when the host's DMA hangs.
pub const PARK_DEADLINE: Duration = Duration::from_secs(1);
/// Most frames in the device's own hands, when it is stopped.
pub const HELD_FRAMES: usize = 256;
/// Most bytes of them.
pub const HELD_BYTES: usize = 1 << 20;

/// The worker did not finish its frame in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("The worker is still busy with a frame after {:?}", PARK_DEADLINE)]
pub struct NotParked;

/// Registers, frames in hand, and what the worker may do.
#[derive(Debug)]
pub struct Inner {
    /// The registers.
    pub regs: Registers,
    /// Frames that were taken from the port and are not in the guest's buffers yet.
    pub held: VecDeque<Vec<u8>>,
    /// The device state is one in which queues are served.
    pub running: bool,
    /// NDMA was entered.
    pub ndma: bool,
    /// A queue may have something new, by queue.
    pub look: [bool; 2],
    busy: bool,
    hold: bool,
    exit: bool,
}

/// What the calls into the device and the worker share.
#[derive(Debug)]
pub struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// What the worker is to do next.
enum Turn {
    Exit,
    Wait,
    Work(Box<Work>),
}

struct Work {
    regs: Registers,
    frame: Option<Vec<u8>>,
    look: [bool; 2],
}

impl Inner {
    /// It may do DMA and send interrupts.
    fn may_run(&self) -> bool {
        self.running && !self.ndma && !self.hold
    }

    /// Looks at all queues when it may.
    pub fn look_at_all(&mut self) {
        self.look = [true; 2];
    }
}

impl Shared {
    /// A device after power-on, not running.
    #[must_use]
    pub fn new(regs: Registers) -> Self {
        let inner = Inner {
            regs,
            held: VecDeque::new(),
            running: false,
            ndma: false,
            look: [false; 2],
            busy: false,
            hold: false,
            exit: false,
        };
        Self { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Acts on what needs no idle worker. The caller wakes the bus, if the worker is to see it.
    pub fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        let value = act(&mut self.lock());
        self.changed.notify_all();
        value
    }

    /// Lets the worker finish the frame at hand, its interrupt included, then acts before it can take
    /// another. If `act` closes the gate (`running`, `ndma`), there is no access, interrupt or
    /// frame from then on.
    ///
    /// # Errors
    /// [`NotParked`], and nothing was changed.
    pub fn while_idle<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> Result<T, NotParked> {
        let mut inner = self.lock();
        inner.hold = true;
        let waited = self.changed.wait_timeout_while(inner, PARK_DEADLINE, |inner| inner.busy);
        let (mut inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        inner.hold = false;
        let result = if inner.busy { Err(NotParked) } else { Ok(act(&mut inner)) };
        self.changed.notify_all();
        result
    }

    /// Sleeps while nothing may be done; then says what to do.
    fn begin(&self, bus: &impl Bus) -> Turn {
        let waited = self.changed.wait_while(self.lock(), |inner| !inner.exit && !inner.may_run());
        let mut inner = waited.unwrap_or_else(PoisonError::into_inner);
        if inner.exit {
            return Turn::Exit;
        }
        if inner.held.is_empty()
            && inner.regs.is_live(RX)
            && let Some(frame) = bus.receive()
        {
            inner.held.push_back(frame);
            inner.look[RX] = true;
        }
        let look = std::mem::take(&mut inner.look);
        let rx = inner.regs.is_live(RX) && look[RX] && !inner.held.is_empty();
        let tx = inner.regs.is_live(TX) && look[TX];
        if !rx && !tx {
            return Turn::Wait;
        }
        inner.busy = true;
        let frame = inner.held.front().filter(|_| rx).cloned();
        Turn::Work(Box::new(Work { regs: inner.regs.clone(), frame, look: [rx, tx] }))
    }

    /// True if frames at the port are nothing to wake up for: one is in hand, or none can be taken.
    fn full(&self) -> bool {
        let inner = self.lock();
        !inner.held.is_empty() || !inner.regs.is_live(RX)
    }

    /// One frame each way, from registers as they were a moment ago: while the worker is busy only the
    /// driver's own writes change them, and none that is about a queue that is enabled.
    fn work(&self, bus: &impl Bus, work: Work) {
        let Work { mut regs, frame, look } = work;
        let options = regs.options();
        let mut done = [false; 2];
        let mut irqs = [None; 2];
        let mut broken = None::<Broken>;
        let mut taken = false;
        if let (Some(frame), Some(queue)) = (frame.filter(|_| look[RX]), regs.queues.get_mut(RX)) {
            match net::receive(bus, queue, options, &frame) {
                Ok(None) => {}
                Ok(Some(step)) => {
                    taken = true;
                    done[RX] = true;
                    irqs[RX] = Some(step);
                }
                Err(error) => broken = Some(error),
            }
        }
        if let (true, None, Some(queue)) = (look[TX], broken, regs.queues.get_mut(TX)) {
            match net::transmit(bus, queue, options) {
                Ok(Step::Idle) => {}
                Ok(step) => {
                    done[TX] = true;
                    irqs[TX] = Some(step);
                }
                Err(error) => broken = Some(error),
            }
        }
        let vectors = self.conclude(&regs, done, irqs, taken, broken.is_some());
        for vector in vectors.into_iter().flatten() {
            bus.irq(vector);
        }
        self.lock().busy = false;
        self.changed.notify_all();
    }

    /// Enters what came of it; returns the vectors to trigger.
    fn conclude(
        &self,
        after: &Registers,
        done: [bool; 2],
        irqs: [Option<Step>; 2],
        taken: bool,
        broken: bool,
    ) -> [Option<u16>; 3] {
        let mut inner = self.lock();
        for (queue, after) in inner.regs.queues.iter_mut().zip(&after.queues) {
            (queue.next_avail, queue.next_used) = (after.next_avail, after.next_used);
        }
        if taken {
            inner.held.pop_front();
        }
        for (look, done) in inner.look.iter_mut().zip(done) {
            // Once more: where there was one there may be another.
            *look |= done;
        }
        let mut vectors = [None; 3];
        for ((number, step), vector) in irqs.into_iter().enumerate().zip(&mut vectors) {
            if step == Some(Step::Done { irq: true }) {
                *vector = inner.regs.used(number);
            }
        }
        if broken {
            vectors[2] = inner.regs.break_down();
        }
        vectors
    }
}

/// The running thread; dropping this ends it.
pub struct Worker<B: Bus> {
    shared: Arc<Shared>,
    bus: Arc<B>,
    thread: Option<JoinHandle<()>>,
}

impl<B: Bus> Worker<B> {
    /// Starts the thread.
    ///
    /// # Errors
    /// The operating system's.
    pub fn start(shared: Arc<Shared>, bus: Arc<B>) -> io::Result<Self> {
        let (theirs, its_bus) = (Arc::clone(&shared), Arc::clone(&bus));
        let thread = bus.spawn("virtio-net", Box::new(move || serve(&theirs, &*its_bus)))?;
        Ok(Self { shared, bus, thread: Some(thread) })
    }
}

impl<B: Bus> Drop for Worker<B> {
    fn drop(&mut self) {
        self.shared.with(|inner| inner.exit = true);
        self.bus.wake();
        if let Some(thread) = self.thread.take() {
            // The host has a deadline for the end of an instance.
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared, bus: &impl Bus) {
    loop {
        match shared.begin(bus) {
            Turn::Exit => return,
            Turn::Work(work) => shared.work(bus, *work),
            Turn::Wait if shared.full() => shared.pause(),
            Turn::Wait => bus.wait(),
        }
    }
}

impl Shared {
    /// Waits for a ring of the driver, or a change of state.
    fn pause(&self) {
        let quiet = |inner: &mut Inner| !inner.exit && inner.look == [false; 2] && inner.may_run();
        let waited = self.changed.wait_timeout_while(self.lock(), PARK_DEADLINE, quiet);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }
}
