//! Writes of other devices on their way to one: a bounded queue, and a thread that delivers.
//!
//! A write is posted: whoever sends it goes on at once, and the target is called on our thread, so
//! that devices which write to each other neither recurse nor wait for each other. A queue that is
//! full refuses; it does not wait, because its reader may be in a call that waits for the sender's
//! own worker.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use drogher_iommu_types::Patience;
use drogher_plugin_host::{PeerWrite, State as DeviceState};

use super::function::PciDevice;

/// Most bytes that wait for one device, with what it costs to keep them. A write is at most a page,
/// so one always fits an empty queue.
const ROOM: usize = 64 << 10;

/// Longest time to wait for the access at hand: longer than a plugin may take for one.
const ACCESS_DEADLINE: Duration = Duration::from_secs(5);

/// What other devices have written to one, since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PeerCounts {
    /// Writes taken into its queue.
    pub taken: u64,
    /// Writes that it has got.
    pub delivered: u64,
    /// Writes that it has refused, or that were waiting when it failed or was reset.
    pub dropped: u64,
}

/// A write to a device's own BAR.
pub struct Post {
    pub bar: u8,
    pub offset: u64,
    pub data: Box<[u8]>,
}

impl Post {
    fn cost(&self) -> usize {
        self.data.len() + size_of::<Self>()
    }

    /// The naturally aligned accesses of 1, 2, 4 and 8 bytes that it is made of: offset, bytes.
    pub fn accesses(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let (mut at, mut rest) = (self.offset, &*self.data);
        std::iter::from_fn(move || {
            let width = [8, 4, 2, 1]
                .into_iter()
                .find(|&width| width <= rest.len() && at.is_multiple_of(width as u64))?;
            let (access, behind) = rest.split_at(width);
            let here = at;
            (at, rest) = (at + width as u64, behind);
            Some((here, access))
        })
    }
}

/// What happens to the queue's front and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// Takes nothing, and is empty: the device does not run, or is in ERROR.
    Closed,
    /// Takes and keeps: the device stands for a while.
    Held,
    /// Takes and delivers.
    Open,
}

struct State {
    queue: VecDeque<Post>,
    /// Cost of all in `queue`.
    bytes: usize,
    flow: Flow,
    /// The thread is in a call into the device.
    delivering: bool,
    /// Somebody has found that not all had arrived, and waited.
    #[cfg(test)]
    awaited: bool,
    end: bool,
    ended: bool,
    counts: PeerCounts,
}

impl State {
    fn drop_all(&mut self) {
        self.counts.dropped += self.queue.len() as u64;
        self.queue.clear();
        self.bytes = 0;
    }

    /// Writes that the device has not got.
    fn waiting(&self) -> usize {
        self.queue.len() + usize::from(self.delivering)
    }
}

/// The queue of one device. Any thread may use it.
pub struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
}

impl Inbox {
    /// A closed queue, and its thread.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(label: &str, device: Weak<PciDevice>) -> std::io::Result<Arc<Self>> {
        let inbox = Arc::new(Self {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                bytes: 0,
                flow: Flow::Closed,
                delivering: false,
                #[cfg(test)]
                awaited: false,
                end: false,
                ended: false,
                counts: PeerCounts::default(),
            }),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&inbox);
        let name = format!("peers-{}", label.split(' ').next().unwrap_or(label));
        std::thread::Builder::new().name(name).spawn(move || theirs.serve(&device))?;
        Ok(inbox)
    }

    // Each step leaves it whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Posts a write; without data, only says whether one could be. Waits for nothing.
    pub fn post(&self, bar: u8, offset: u64, data: &[u8]) -> PeerWrite {
        let mut state = self.lock();
        if state.flow == Flow::Closed {
            return PeerWrite::Closed;
        }
        if data.is_empty() {
            return PeerWrite::Taken;
        }
        let post = Post { bar, offset, data: data.into() };
        if state.bytes + post.cost() > ROOM {
            return PeerWrite::Full;
        }
        state.bytes += post.cost();
        state.counts.taken += 1;
        state.queue.push_back(post);
        self.changed.notify_all();
        PeerWrite::Taken
    }

    /// The device runs: what waits is delivered, and more is taken.
    pub fn open(&self) {
        self.lock().flow = Flow::Open;
        self.changed.notify_all();
    }

    /// The device is about to stop: the write at hand is finished, others wait until it is open again.
    pub fn hold(&self) {
        let mut state = self.lock();
        if state.flow == Flow::Open {
            state.flow = Flow::Held;
        }
        self.idle(state);
    }

    /// What waits is dropped. With `closed` no more is taken until it is open again, else it is kept
    /// until then.
    pub fn drop_all(&self, closed: bool) {
        let mut state = self.lock();
        state.drop_all();
        state.flow = if closed { Flow::Closed } else { Flow::Held };
        self.idle(state);
    }

    /// Waits for the call at hand, but for no longer than a call may take.
    fn idle(&self, state: MutexGuard<'_, State>) {
        let mut patience = Patience::new(ACCESS_DEADLINE);
        let mut state = state;
        while state.delivering && !patience.is_over() {
            state = patience.wait(&self.changed, state);
        }
        if state.delivering {
            tracing::warn!("a write of another device is still under way");
        }
    }

    /// Waits until everything has arrived, the last call returned.
    ///
    /// # Errors
    /// When the patience is over: how many writes have not.
    pub fn settle(&self, patience: &mut Patience) -> Result<(), usize> {
        let mut state = self.lock();
        while state.waiting() > 0 && !patience.is_over() {
            #[cfg(test)]
            {
                state.awaited = true;
            }
            state = patience.wait(&self.changed, state);
        }
        match state.waiting() {
            0 => Ok(()),
            waiting => Err(waiting),
        }
    }

    /// Writes that have not arrived.
    pub fn waiting(&self) -> usize {
        self.lock().waiting()
    }

    /// The thread is in a call into the device.
    #[cfg(test)]
    pub fn delivers(&self) -> bool {
        self.lock().delivering
    }

    /// Somebody has waited for what had not arrived, or does.
    #[cfg(test)]
    pub fn awaited(&self) -> bool {
        self.lock().awaited
    }

    /// What came of all writes.
    pub fn counts(&self) -> PeerCounts {
        self.lock().counts
    }

    /// Ends the thread, after the write at hand.
    ///
    /// # Errors
    /// It has not ended within `deadline`; it will, when the device has answered or its deadline has
    /// passed.
    pub fn end(&self, deadline: Duration) -> Result<(), Late> {
        let mut state = self.lock();
        state.end = true;
        state.flow = Flow::Closed;
        state.drop_all();
        self.changed.notify_all();
        let waited = self.changed.wait_timeout_while(state, deadline, |state| !state.ended);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.ended { Ok(()) } else { Err(Late) }
    }

    fn next(&self) -> Option<Post> {
        let ready = |state: &State| state.flow == Flow::Open && !state.queue.is_empty();
        let waited = self.changed.wait_while(self.lock(), |state| !state.end && !ready(state));
        let mut state = waited.unwrap_or_else(PoisonError::into_inner);
        if state.end {
            return None;
        }
        let post = state.queue.pop_front()?;
        state.bytes -= post.cost();
        state.delivering = true;
        Some(post)
    }

    fn serve(&self, device: &Weak<PciDevice>) {
        while let Some(post) = self.next() {
            let (got, failed) = match device.upgrade() {
                Some(device) => (device.deliver(&post), device.state() == DeviceState::Error),
                None => (false, true),
            };
            let mut state = self.lock();
            state.delivering = false;
            if got {
                state.counts.delivered += 1;
            } else {
                state.counts.dropped += 1;
            }
            if failed {
                state.drop_all();
                state.flow = Flow::Closed;
            }
            drop(state);
            self.changed.notify_all();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// The thread is still in a call into the device.
#[derive(Clone, Copy, Debug)]
pub struct Late;

#[cfg(test)]
#[path = "inbox_test.rs"]
mod tests;
