//! Frames that have arrived at a port and wait for the device.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use drogher_plugin_host::Received;

use crate::{FRAME_MAX, FRAME_MIN, Pcap};

/// Most frames that wait at a port.
pub const INBOX_FRAMES: usize = 256;
/// Most bytes that wait at a port.
pub const INBOX_BYTES: usize = 1 << 20;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a device's worker waits at: one for all ports of a device.
#[derive(Debug, Default)]
pub struct Bell {
    /// Somebody wants the wait to end.
    woken: Mutex<bool>,
    rung: Condvar,
}

impl Bell {
    /// Something may be there.
    pub fn look(&self) {
        drop(lock(&self.woken));
        self.rung.notify_all();
    }

    /// Ends the wait under way, or else the next one.
    pub fn wake(&self) {
        *lock(&self.woken) = true;
        self.rung.notify_all();
    }

    /// Waits until `ready` is not 0, and returns it; 0 when woken, or after `time_out`.
    pub fn wait(&self, time_out: Duration, ready: impl Fn() -> u64) -> u64 {
        let until = Instant::now() + time_out;
        let mut woken = lock(&self.woken);
        loop {
            if std::mem::take(&mut *woken) {
                return 0;
            }
            let found = ready();
            let left = until.saturating_duration_since(Instant::now());
            if found != 0 || left.is_zero() {
                return found;
            }
            let waited = self.rung.wait_timeout(woken, left);
            woken = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
}

/// A bounded queue of frames.
#[derive(Debug, Default)]
pub struct Inbox {
    queue: Mutex<Queue>,
    bell: Arc<Bell>,
    capture: Option<Arc<Pcap>>,
    arrived: AtomicU64,
    dropped: AtomicU64,
}

impl Inbox {
    pub(crate) fn new(bell: Arc<Bell>, capture: Option<Arc<Pcap>>) -> Self {
        Self { bell, capture, ..Self::default() }
    }

    /// A frame has come; false: it was dropped, since it is none or there is no room.
    pub fn push(&self, frame: &[u8]) -> bool {
        if let Some(capture) = &self.capture {
            capture.write(frame);
        }
        let taken = (FRAME_MIN..=FRAME_MAX).contains(&frame.len()) && {
            let mut queue = lock(&self.queue);
            let room = queue.frames.len() < INBOX_FRAMES
                && queue.bytes.saturating_add(frame.len()) <= INBOX_BYTES;
            if room {
                queue.bytes += frame.len();
                queue.frames.push_back(frame.to_vec());
            }
            room
        };
        let count = if taken { &self.arrived } else { &self.dropped };
        count.fetch_add(1, Ordering::Relaxed);
        if taken {
            self.bell.look();
        }
        taken
    }

    /// Takes the first frame.
    pub fn take(&self, buffer: &mut [u8]) -> Received {
        let mut queue = lock(&self.queue);
        let Some(frame) = queue.frames.front() else { return Received::Nothing };
        let len = frame.len();
        let Some(room) = buffer.get_mut(..len) else { return Received::TooLong(len) };
        room.copy_from_slice(frame);
        queue.bytes = queue.bytes.saturating_sub(len);
        queue.frames.pop_front();
        Received::Frame(len)
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        lock(&self.queue).frames.is_empty()
    }

    /// Frames that have arrived, and that were dropped.
    pub fn counts(&self) -> (u64, u64) {
        (self.arrived.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }
}
