//! Where the serial console's bytes go to and come from.
//!
//! A vCPU writes its bytes itself, but never waits for whoever reads them: what does not fit goes
//! to a bounded backlog, which the I/O thread writes on. A vCPU that waited could not be stopped.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::OFlags;

use crate::io_thread::{Interest, IoHandle, Next, WatchId};

/// Bytes kept for a reader that does not read; later ones are dropped.
const BACKLOG: usize = 1 << 20;

/// What the console is connected to.
#[derive(Debug, Default)]
pub enum ConsoleConfig {
    /// This process's standard input and output.
    Stdio,
    /// Output is appended to a file; no input.
    File(PathBuf),
    /// Output is dropped; no input.
    #[default]
    None,
    /// Any descriptors, for tests and for those who pass pipes.
    Fds {
        /// Where input comes from.
        input: Option<OwnedFd>,
        /// Where output goes to.
        output: OwnedFd,
    },
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The file cannot be opened.
    #[error("Cannot open the console file {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A FIFO without a reader.
    #[error("The console {} is a FIFO that nobody reads; start its reader first", .0.display())]
    NoReader(PathBuf),
    /// Standard input or output is closed.
    #[error("Cannot use standard input and output as the console")]
    Stdio(#[source] std::io::Error),
}

impl ConsoleConfig {
    /// Opens it now rather than when the machine is made, so that what is wrong with it shows before
    /// a guest is on its way.
    ///
    /// # Errors
    /// See [`ConsoleError`].
    pub fn opened(self) -> Result<Self, ConsoleError> {
        Ok(match self.open()? {
            (input, Some(output)) => Self::Fds { input, output },
            (_, None) => Self::None,
        })
    }

    /// Opens it: input and output.
    pub(crate) fn open(self) -> Result<(Option<OwnedFd>, Option<OwnedFd>), ConsoleError> {
        let dup =
            |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map_err(ConsoleError::Stdio);
        Ok(match self {
            Self::Stdio => {
                (Some(dup(std::io::stdin().as_fd())?), Some(dup(std::io::stdout().as_fd())?))
            }
            Self::File(path) => (None, Some(append_to(path)?)),
            Self::None => (None, None),
            Self::Fds { input, output } => (input, Some(output)),
        })
    }
}

/// Opens a file to append to it, without waiting: for a FIFO's reader, or a modem's carrier.
fn append_to(path: PathBuf) -> Result<OwnedFd, ConsoleError> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    let nonblock = OFlags::NONBLOCK.bits().cast_signed();
    let file: File = match options.custom_flags(nonblock).open(&path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => {
            return Err(ConsoleError::NoReader(path));
        }
        Err(source) => return Err(ConsoleError::Open { path, source }),
    };
    let blocking = rustix::fs::fcntl_getfl(&file)
        .and_then(|flags| rustix::fs::fcntl_setfl(&file, flags - OFlags::NONBLOCK));
    blocking.map_err(|error| ConsoleError::Open { path, source: error.into() })?;
    Ok(file.into())
}

#[derive(Debug, Default)]
struct Backlog {
    bytes: VecDeque<u8>,
    lost: u64,
}

/// The output side. Shared by the serial device and the I/O thread.
#[derive(Debug)]
pub struct Output {
    fd: Option<OwnedFd>,
    backlog: Mutex<Backlog>,
    watch: OnceLock<WatchId>,
    io: IoHandle,
}

impl Output {
    /// Output to `fd`, or to nowhere.
    pub(crate) fn new(fd: Option<OwnedFd>, io: &IoHandle) -> Arc<Self> {
        let output = Arc::new(Self {
            fd,
            backlog: Mutex::default(),
            watch: OnceLock::new(),
            io: io.clone(),
        });
        let watched = output.fd.as_ref().and_then(|fd| fd.try_clone().ok());
        if let Some(fd) = watched {
            let weak = Arc::downgrade(&output);
            let handler = Box::new(move || match weak.upgrade() {
                Some(output) if !output.drain() => Next::Keep,
                Some(_) => Next::Pause,
                None => Next::Remove,
            });
            // What cannot be watched, a regular file, never makes a writer wait.
            if let Ok(id) = io.add(fd, Interest::Write, handler) {
                let _ = output.watch.set(id);
            }
        }
        output
    }

    fn lock(&self) -> MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one byte of the guest's. Never waits.
    pub(crate) fn put(&self, byte: u8) {
        if self.fd.is_none() {
            return;
        }
        let mut backlog = self.lock();
        if backlog.bytes.len() >= BACKLOG {
            if backlog.lost == 0 {
                tracing::warn!("nobody reads the console: the guest's output is being dropped");
            }
            backlog.lost += 1;
            return;
        }
        backlog.bytes.push_back(byte);
        if backlog.bytes.len() == 1 {
            self.write_out(&mut backlog);
        }
        // One byte left means that the watch has to be told; with more it has been.
        if backlog.bytes.len() == 1
            && let Some(&id) = self.watch.get()
        {
            self.io.rearm(id);
        }
    }

    /// Writes what can be written without waiting; true if nothing is left.
    pub(crate) fn drain(&self) -> bool {
        let mut backlog = self.lock();
        self.write_out(&mut backlog);
        backlog.bytes.is_empty()
    }

    /// Waits until everything has been written, at most `deadline`; true if nothing is left.
    pub fn flush(&self, deadline: Duration) -> bool {
        let until = Instant::now() + deadline;
        while !self.drain() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    fn write_out(&self, backlog: &mut Backlog) {
        let Some(fd) = &self.fd else { return backlog.bytes.clear() };
        while !backlog.bytes.is_empty() && writable(fd) {
            // A writable pipe takes this much without waiting (POSIX, PIPE_BUF).
            let front = backlog.bytes.as_slices().0;
            let piece = front.get(..front.len().min(512)).unwrap_or_default();
            match rustix::io::write(fd, piece) {
                Ok(n) => drop(backlog.bytes.drain(..n)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                // The reader is gone, or the disk is full: not the guest's fault.
                Err(_) => {
                    backlog.lost += backlog.bytes.len() as u64;
                    backlog.bytes.clear();
                }
            }
        }
    }
}

fn writable(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::OUT)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    // An error condition counts: the write then says which.
    matches!(rustix::event::poll(&mut fds, Some(&now)), Ok(1))
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
