//! What this process says, and that saying it never fails, panics or waits for long.
//!
//! Standard error may be a full disk, a pipe whose reader has gone or does not read, a terminal that
//! was stopped: none of it is a reason to lose a guest. Nothing else in this crate prints.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec};

/// Bytes that a writable pipe takes without waiting (POSIX, PIPE_BUF).
const PIECE: usize = 512;

/// How long a reader of standard error is waited for: 0.2 s.
const PATIENCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };

/// The reader was waited for once, and is not again until it has read.
static STUCK: AtomicBool = AtomicBool::new(false);

/// One sentence of ours on standard error, as `drogher: ...`.
pub fn say(text: impl Display) {
    note(format_args!("drogher: {text}"));
}

/// One line on standard error.
pub fn note(text: impl Display) {
    let _ = Stderr.write(format!("{text}\n").as_bytes());
}

/// What was asked for, on standard output.
///
/// # Errors
/// When it can't be written.
pub fn print(text: impl Display) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}").and_then(|()| out.flush()).context("Cannot write to standard output")
}

/// Standard error as a writer that takes everything: what cannot be written is dropped.
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stderr = io::stderr().lock();
        put(stderr.as_fd(), bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets panics speak here too: the usual hook would wait for a reader that does not read.
pub fn speak_for_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("?").to_owned();
        let backtrace = Backtrace::capture();
        let trace = match backtrace.status() {
            BacktraceStatus::Captured => format!("\n{backtrace}"),
            _ => String::new(),
        };
        say(format_args!("thread {name}: {panic}{trace}"));
    }));
}

fn put(fd: BorrowedFd<'_>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let wait = if STUCK.load(Ordering::Relaxed) { now } else { PATIENCE };
        let writable = rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::OUT)], Some(&wait));
        STUCK.store(writable == Ok(0), Ordering::Relaxed);
        // An error condition counts as writable: the write then ends this.
        if !matches!(writable, Ok(1) | Err(rustix::io::Errno::INTR)) {
            return;
        }
        match rustix::io::write(fd, bytes.get(..PIECE).unwrap_or(bytes)) {
            Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_reader_that_does_not_read_or_has_gone_holds_nobody_up() {
        let (mut reader, writer) = io::pipe().unwrap();
        let more = vec![b'x'; 1 << 20];
        put(writer.as_fd(), &more);
        assert!(STUCK.load(Ordering::Relaxed));
        let mut seen = vec![0; 60_000];
        reader.read_exact(&mut seen).unwrap();
        put(writer.as_fd(), b"y");
        assert!(!STUCK.load(Ordering::Relaxed), "it reads again");
        drop(reader);
        put(writer.as_fd(), &more);
        put(std::fs::File::options().write(true).open("/dev/full").unwrap().as_fd(), &more);
    }
}
