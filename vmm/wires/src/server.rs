//! The thread of a wire while it is active.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

/// At most one thread, which ends when it sees its flag.
#[derive(Debug, Default)]
pub(crate) struct Server {
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Server {
    /// Clears `stop` and has `serve` run, unless it does. Where no thread can be had `stop` is set again.
    pub fn start(&self, stop: &AtomicBool, serve: impl FnOnce() + Send + 'static) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_some() {
            return;
        }
        stop.store(false, Ordering::SeqCst);
        let started = std::thread::Builder::new().name("wire".into()).spawn(serve);
        match started {
            Ok(started) => *thread = Some(started),
            Err(error) => {
                tracing::error!(%error, "no thread for a wire: it stays down");
                stop.store(true, Ordering::SeqCst);
            }
        }
    }

    /// Calls `before`, sets `stop`, calls `wake`, and waits for the thread if there is one. Nobody starts
    /// it meanwhile.
    pub fn end(&self, stop: &AtomicBool, before: impl FnOnce(), wake: impl FnOnce()) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        before();
        stop.store(true, Ordering::SeqCst);
        wake();
        if let Some(thread) = thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
