//! The one thread that watches file descriptors: serial input, doorbells, console output.
//!
//! It can be parked: once [`IoHandle::park`] has returned, no handler runs until
//! [`IoHandle::unpark`]; what became ready meanwhile is handled then, as readiness is
//! level-triggered. Watches can be added and removed while it is parked.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::Duration;

use drogher_iommu_types::Patience;
use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};
use vmm_sys_util::epoll::EventSet;

/// How long a request to the thread may take: far longer than any handler.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Why the I/O thread could not do something.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    /// The thread could not be started, or its epoll not be made.
    #[error("Cannot start the I/O thread: {0}")]
    Start(String),
    /// The descriptor cannot be watched; a regular file cannot.
    #[error("Cannot watch file descriptor {fd}: {reason}")]
    Watch {
        /// Its number.
        fd: i32,
        /// What epoll says.
        reason: String,
    },
    /// No such watch.
    #[error("There is no watch {0:?}")]
    NoWatch(WatchId),
    /// The thread did not answer in time: a handler hangs.
    #[error("The I/O thread did not {what} within {deadline:?}: one of its handlers hangs")]
    Deadline {
        /// park, or answer.
        what: &'static str,
        /// How long it was waited for.
        deadline: Duration,
    },
    /// A handler asked for something that waits for the handler itself.
    #[error("A handler on the I/O thread may not wait for the I/O thread")]
    FromHandler,
    /// The thread has ended.
    #[error("The I/O thread has ended")]
    Ended,
}

/// What a handler wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Call again when ready.
    Keep,
    /// Don't call until [`IoHandle::rearm`].
    Pause,
    /// Never call again.
    Remove,
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Readable, or closed by the other side.
    Read,
    /// Writable, or closed by the other side.
    Write,
}

/// Names a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WatchId(SubscriberId);

/// Called on the I/O thread while the descriptor is ready. It must not block.
pub type Handler = Box<dyn FnMut() -> Next + Send>;

struct Watch {
    fd: OwnedFd,
    interest: EventSet,
    handler: Handler,
    armed: bool,
    error: Option<String>,
}

impl Watch {
    fn arm(&mut self, ops: &mut EventOps) {
        if !self.armed {
            match ops.add(Events::new(&self.fd, self.interest)) {
                Ok(()) => self.armed = true,
                Err(e) => self.error = Some(e.to_string()),
            }
        }
    }

    fn disarm(&mut self, ops: &mut EventOps) {
        if self.armed && ops.remove(Events::empty(&self.fd)).is_ok() {
            self.armed = false;
        }
    }
}

impl MutEventSubscriber for Watch {
    fn process(&mut self, _events: Events, ops: &mut EventOps) {
        match (self.handler)() {
            Next::Keep => {}
            Next::Pause => self.disarm(ops),
            Next::Remove => {
                self.disarm(ops);
                // What the handler holds (a device, an eventfd) is let go at once.
                self.handler = Box::new(|| Next::Remove);
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        self.arm(ops);
    }
}

type Request = Box<dyn FnOnce(&mut EventManager<Watch>) + Send>;

#[derive(Default)]
struct State {
    requests: VecDeque<Request>,
    /// Watches to be armed again, each once.
    rearm: Vec<SubscriberId>,
    park: bool,
    parked: bool,
    exit: bool,
    ended: bool,
    thread: Option<ThreadId>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    endpoint: RemoteEndpoint<Watch>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.changed.notify_all();
        // A full eventfd counter is as good a wake-up as a written one.
        let _ = self.endpoint.kick();
    }
}

/// A handle on the I/O thread; cheap to clone, may be used from any thread.
#[derive(Clone)]
pub struct IoHandle {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for IoHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoHandle").finish_non_exhaustive()
    }
}

impl IoHandle {
    fn call<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut EventManager<Watch>) -> T + Send + 'static,
    ) -> Result<T, IoError> {
        let (answer, answered) = mpsc::channel();
        {
            let mut state = self.shared.lock();
            if state.ended {
                return Err(IoError::Ended);
            }
            if state.thread == Some(std::thread::current().id()) {
                return Err(IoError::FromHandler);
            }
            state.requests.push_back(Box::new(move |manager| {
                // A caller that gave up is no reason to fail here.
                let _ = answer.send(f(manager));
            }));
        }
        self.shared.wake();
        answered.recv_timeout(REQUEST_DEADLINE).map_err(|e| match e {
            mpsc::RecvTimeoutError::Timeout => {
                IoError::Deadline { what: "answer", deadline: REQUEST_DEADLINE }
            }
            mpsc::RecvTimeoutError::Disconnected => IoError::Ended,
        })
    }

    /// Calls `handler` whenever `fd` is ready, until it or [`remove`](Self::remove) ends that.
    /// The descriptor should be a duplicate: it is closed with the watch.
    ///
    /// # Errors
    /// epoll cannot watch it (a regular file), the thread does not answer or has ended.
    pub fn add(
        &self,
        fd: OwnedFd,
        interest: Interest,
        handler: Handler,
    ) -> Result<WatchId, IoError> {
        let number = fd.as_raw_fd();
        let interest = match interest {
            Interest::Read => EventSet::IN,
            Interest::Write => EventSet::OUT,
        };
        let watch = Watch { fd, interest, handler, armed: false, error: None };
        self.call(move |manager| {
            let id = manager.add_subscriber(watch);
            let error = manager.subscriber_mut(id).ok().and_then(|w| w.error.take());
            match error {
                None => Ok(WatchId(id)),
                Some(reason) => {
                    let _ = manager.remove_subscriber(id);
                    Err(IoError::Watch { fd: number, reason })
                }
            }
        })?
    }

    /// Ends a watch. When it returns, its handler does not run and will not run again.
    ///
    /// # Errors
    /// No such watch, the thread does not answer or has ended.
    pub fn remove(&self, id: WatchId) -> Result<(), IoError> {
        self.call(move |manager| {
            manager.remove_subscriber(id.0).map(drop).map_err(|_| IoError::NoWatch(id))
        })?
    }

    /// Lets a watch that answered [`Next::Pause`] go on. Does not wait; may be called anywhere, and
    /// however often: a guest can do so with each access.
    pub fn rearm(&self, id: WatchId) {
        let mut state = self.shared.lock();
        if state.ended || state.rearm.contains(&id.0) {
            return;
        }
        state.rearm.push(id.0);
        drop(state);
        self.shared.wake();
    }

    /// Stops the thread between two handlers. When it returns, none runs. Idempotent.
    ///
    /// # Errors
    /// A handler still runs at the deadline (the thread then is not parked), or the thread ended.
    pub fn park(&self, deadline: Duration) -> Result<(), IoError> {
        let mut patience = Patience::new(deadline);
        let mut state = self.shared.lock();
        if state.thread == Some(std::thread::current().id()) {
            return Err(IoError::FromHandler);
        }
        state.park = true;
        self.shared.wake();
        loop {
            // First: a thread that ended while it was parked stays marked as parked.
            if state.ended {
                return Err(IoError::Ended);
            }
            if state.parked {
                return Ok(());
            }
            if patience.is_over() {
                state.park = false;
                self.shared.changed.notify_all();
                return Err(IoError::Deadline { what: "park", deadline });
            }
            state = patience.wait(&self.shared.changed, state);
        }
    }

    /// Lets a parked thread go on.
    pub fn unpark(&self) {
        self.shared.lock().park = false;
        self.shared.changed.notify_all();
    }
}

/// Owns the thread; ends and joins it when dropped.
#[derive(Debug)]
pub struct IoThread {
    handle: IoHandle,
    thread: Option<JoinHandle<()>>,
}

impl IoThread {
    /// Starts the thread, parked.
    ///
    /// # Errors
    /// The kernel refuses a thread or an epoll instance.
    pub fn start() -> Result<Self, IoError> {
        let manager = EventManager::<Watch>::new().map_err(|e| IoError::Start(e.to_string()))?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State { park: true, ..State::default() }),
            changed: Condvar::new(),
            endpoint: manager.remote_endpoint(),
        });
        let inner = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("io".into())
            .spawn(move || {
                let ended = Ended(&inner);
                run(manager, ended.0);
            })
            .map_err(|e| IoError::Start(e.to_string()))?;
        Ok(Self { handle: IoHandle { shared }, thread: Some(thread) })
    }

    /// A handle for others.
    #[must_use]
    pub fn handle(&self) -> &IoHandle {
        &self.handle
    }
}

impl Drop for IoThread {
    fn drop(&mut self) {
        self.handle.shared.lock().exit = true;
        self.handle.shared.wake();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("the I/O thread panicked");
        }
    }
}

/// Says that the thread is gone however it ended, so that nobody waits for it.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.ended = true;
        state.requests.clear();
        self.0.changed.notify_all();
    }
}

fn run(mut manager: EventManager<Watch>, shared: &Shared) {
    let mut state = shared.lock();
    state.thread = Some(std::thread::current().id());
    loop {
        while let Some(request) = state.requests.pop_front() {
            drop(state);
            request(&mut manager);
            state = shared.lock();
        }
        while let Some(id) = state.rearm.pop() {
            drop(state);
            rearm(&mut manager, id);
            state = shared.lock();
        }
        if state.exit {
            return;
        }
        if state.park {
            state.parked = true;
            shared.changed.notify_all();
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        state.parked = false;
        drop(state);
        if let Err(e) = manager.run() {
            tracing::error!("the I/O thread ends: {e}");
            return;
        }
        state = shared.lock();
    }
}

fn rearm(manager: &mut EventManager<Watch>, id: SubscriberId) {
    // The watch is out of the manager while it is armed: the two cannot be borrowed together, and
    // arming needs both.
    let paused = manager.subscriber_mut(id).is_ok_and(|w| !w.armed);
    if !paused {
        return;
    }
    let events = manager.subscriber_mut(id).map(|w| Events::new(&w.fd, w.interest));
    if let (Ok(events), Ok(mut ops)) = (events, manager.event_ops(id))
        && ops.add(events).is_ok()
        && let Ok(watch) = manager.subscriber_mut(id)
    {
        watch.armed = true;
    }
}

#[cfg(test)]
#[path = "io_thread_test.rs"]
mod tests;
