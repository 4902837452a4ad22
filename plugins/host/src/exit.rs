//! The end of a process that has plugins in it.
//!
//! A constructor that does not return holds the dynamic linker's lock for ever. `exit` needs it, loading
//! needs it, and so does, in glibc's `__cxa_thread_atexit_impl`, a thread's first use of thread-local
//! data with a destructor: the first blocking receive from a channel, the first line of log. Code on the
//! way out must not have to know that, so a thread that needs none of it sees to the end.
#![expect(unsafe_code, reason = "Ends the process at once, and writes its last words")]

use crate::context::lock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A loading that is late.
struct Stuck {
    words: String,
    returned: Arc<AtomicBool>,
}

static STUCK: Mutex<Option<Stuck>> = Mutex::new(None);
static CHANGED: Condvar = Condvar::new();

/// A loading is late; `returned` says when it is over all the same.
pub(crate) fn loading_is_late(words: String, returned: &Arc<AtomicBool>) {
    *lock(&STUCK) = Some(Stuck { words, returned: returned.clone() });
    CHANGED.notify_all();
}

/// Ends the process, now and without running anything more of any plugin.
///
/// The ordinary ways, returning from `main` and `std::process::exit`, run the destructors and `atexit`
/// functions of every loaded file, which may hang, beside threads that plugins may have left running. So
/// a process that may have loaded a plugin ends here.
///
/// Standard output is buffered by lines: flush before what does not end a line. Call
/// [`Plugin::deinit_all`](crate::Plugin::deinit_all) before, for plugins that are well.
pub fn exit_now(code: u8) -> ! {
    // SAFETY: takes any number, touches no memory, does not return.
    unsafe { libc::_exit(code.into()) }
}

/// From now on: when the loading of a plugin is late, the process has `grace` to end in order; then it
/// is ended with status `code`, and the error goes to standard error. To be called once, before any
/// plugin is loaded, by a process that loads its plugins before it has anything to lose.
///
/// # Errors
/// The thread that watches cannot be started.
pub fn end_if_loading_hangs(grace: Duration, code: u8) -> std::io::Result<()> {
    let ready = Arc::new((Mutex::new(false), Condvar::new()));
    let started = ready.clone();
    std::thread::Builder::new().name("plugin-watch".to_owned()).spawn(move || {
        *lock(&started.0) = true;
        started.1.notify_all();
        watch(grace, code);
    })?;
    // A thread's own beginning may need the lock.
    let mut up = lock(&ready.0);
    while !*up {
        up = ready.1.wait(up).unwrap_or_else(PoisonError::into_inner);
    }
    Ok(())
}

/// Uses locks, sleep and write only.
fn watch(grace: Duration, code: u8) {
    let mut stuck = lock(&STUCK);
    loop {
        let Some(now) = stuck.take() else {
            stuck = CHANGED.wait(stuck).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        drop(stuck);
        std::thread::sleep(grace);
        if !now.returned.load(Ordering::SeqCst) {
            let words = format!("drogher: {}\n", now.words);
            // SAFETY: as many bytes as there are. Not through `std::io::stderr`: somebody may hold its
            // lock.
            unsafe { libc::write(libc::STDERR_FILENO, words.as_ptr().cast(), words.len()) };
            exit_now(code);
        }
        stuck = lock(&STUCK);
    }
}
