//! A thread that makes calls into a plugin, so that one that does not return costs only this thread.

use crate::context::lock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// How long each side looks before it sleeps. Short: there may be as few cores as threads.
const SPIN: Duration = Duration::from_micros(5);
/// A wait is charged in pieces of at most this, so that a process that was itself stopped for long
/// does not blame the plugin.
const SLICE: Duration = Duration::from_millis(50);

const IDLE: u32 = 0;
const POSTED: u32 = 1;
const DONE: u32 = 2;
const ABANDONED: u32 = 3;
const QUIT: u32 = 4;

type Job = Box<dyn FnOnce() + Send>;

struct Mailbox {
    /// IDLE -> POSTED by the caller, -> DONE by the runner, -> IDLE by the caller; POSTED -> ABANDONED
    /// by a caller that gives up; IDLE -> QUIT at the end. Only the one step of each side is possible
    /// at a time.
    signal: AtomicU32,
    job: Mutex<Option<(Job, Thread)>>,
}

/// The call did not return in time; its thread was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Late;

/// The thread of one instance (or of one plugin's loading). Calls are made one at a time.
pub(crate) struct Runner {
    mailbox: Arc<Mailbox>,
    thread: Thread,
}

impl Runner {
    pub(crate) fn start(name: &str) -> std::io::Result<Runner> {
        let mailbox = Arc::new(Mailbox { signal: AtomicU32::new(IDLE), job: Mutex::new(None) });
        let own = mailbox.clone();
        let name: String = name.chars().filter(|c| *c != '\0').take(15).collect();
        let handle = std::thread::Builder::new().name(name).spawn(move || run(&own))?;
        Ok(Runner { mailbox, thread: handle.thread().clone() })
    }

    /// A call was late, and may still be under way.
    pub(crate) fn is_lost(&self) -> bool {
        self.mailbox.signal.load(Ordering::Acquire) == ABANDONED
    }

    /// Runs `call` on the thread and waits for it. After one late call every other is late at once.
    pub(crate) fn call<T: Send + 'static>(
        &mut self,
        deadline: Duration,
        call: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Late> {
        let signal = &self.mailbox.signal;
        if signal.load(Ordering::Acquire) != IDLE {
            return Err(Late);
        }
        let answer = Arc::new(Mutex::new(None));
        let to = answer.clone();
        let job: Job = Box::new(move || {
            let value = call();
            *lock(&to) = Some(value);
        });
        *lock(&self.mailbox.job) = Some((job, std::thread::current()));
        signal.store(POSTED, Ordering::Release);
        self.thread.unpark();
        if !wait(signal, DONE, Some(deadline))
            && signal
                .compare_exchange(POSTED, ABANDONED, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
        {
            return Err(Late);
        }
        signal.store(IDLE, Ordering::Release);
        lock(&answer).take().ok_or(Late)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // An abandoned thread stays so. Nobody waits for any: where a thread ends, destructors of the
        // plugin's thread-local data run, and they might not return.
        let _ =
            self.mailbox.signal.compare_exchange(IDLE, QUIT, Ordering::AcqRel, Ordering::Acquire);
        self.thread.unpark();
    }
}

/// Waits until `signal` is `value`; false after the deadline.
fn wait(signal: &AtomicU32, value: u32, deadline: Option<Duration>) -> bool {
    let start = Instant::now();
    while start.elapsed() < SPIN {
        if signal.load(Ordering::Acquire) == value {
            return true;
        }
        std::hint::spin_loop();
    }
    let mut left = deadline;
    loop {
        if signal.load(Ordering::Acquire) == value {
            return true;
        }
        match &mut left {
            None => std::thread::park(),
            Some(left) if left.is_zero() => return false,
            Some(left) => {
                let slice = SLICE.min(*left);
                let before = Instant::now();
                std::thread::park_timeout(slice);
                *left = left.saturating_sub(before.elapsed().min(slice));
            }
        }
    }
}

fn run(mailbox: &Mailbox) {
    loop {
        wait_for_work(&mailbox.signal);
        if mailbox.signal.load(Ordering::Acquire) == QUIT {
            return;
        }
        let Some((job, caller)) = lock(&mailbox.job).take() else { return };
        job();
        if mailbox
            .signal
            .compare_exchange(POSTED, DONE, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // Given up meanwhile: whatever is left behind stays as it is, nobody may touch it.
            return;
        }
        caller.unpark();
    }
}

fn wait_for_work(signal: &AtomicU32) {
    let start = Instant::now();
    let idle = || !matches!(signal.load(Ordering::Acquire), POSTED | QUIT);
    while idle() && start.elapsed() < SPIN {
        std::hint::spin_loop();
    }
    while idle() {
        std::thread::park();
    }
}

#[cfg(test)]
#[path = "runner_test.rs"]
mod tests;
