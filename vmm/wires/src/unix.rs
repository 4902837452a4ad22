//! A wire to a stream socket of this host, framed as QEMU's `-netdev stream` does: the frame's length
//! as four bytes, the highest first, then the frame.
//!
//! This end connects; the other listens. Prepared, it is connected and silent. Deactivated, it is
//! closed, so that a peer that serves one connection at a time turns to the next.

use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};

use crate::server::Server;
use crate::{FRAME_MAX, Inbox, Wire, WireError};

/// Between two tries to connect anew, and between two looks for what waits to be sent.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the rest of a frame may take when the wire is deactivated: it may be in the guest's blackout,
/// and a peer that does not read must not make that long.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// A length that no frame has: the other end speaks something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong(pub u32);

/// Appends a frame as it is on the socket.
pub fn put_frame(out: &mut Vec<u8>, frame: &[u8]) {
    // At most FRAME_MAX.
    out.extend_from_slice(&(frame.len() as u32).to_be_bytes());
    out.extend_from_slice(frame);
}

/// Cuts a stream into frames.
#[derive(Debug, Default)]
pub struct FrameReader {
    bytes: Vec<u8>,
}

impl FrameReader {
    /// Takes what came, in any pieces, and gives each frame that is complete to `each`.
    ///
    /// # Errors
    /// A length that no frame has; what follows means nothing.
    pub fn feed(&mut self, bytes: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), TooLong> {
        self.bytes.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((head, rest)) =
            self.bytes.get(at..).and_then(|rest| rest.split_first_chunk())
        {
            let len = u32::from_be_bytes(*head);
            let size = usize::try_from(len).ok().filter(|&size| size <= FRAME_MAX);
            let Some(frame) = rest.get(..size.ok_or(TooLong(len))?) else { break };
            each(frame);
            at += head.len() + frame.len();
        }
        self.bytes.drain(..at);
        Ok(())
    }
}

/// The connection, if there is one.
#[derive(Debug, Default)]
struct Link {
    stream: Option<UnixStream>,
    /// The rest of a frame that the socket had no room for.
    rest: Vec<u8>,
}

impl Link {
    /// Sends what waits; false: there is still something, or the connection is gone.
    fn flush(&mut self) -> bool {
        while !self.rest.is_empty() {
            let Some(stream) = &self.stream else { return false };
            match rustix::net::send(stream, &self.rest, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => drop(self.rest.drain(..sent)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return false,
                // Shut down so that the reader sees it too, and connects anew: a peer may have ended
                // only what this end sends.
                Err(_) => {
                    let _ = stream.shutdown(Shutdown::Both);
                    self.rest.clear();
                    return false;
                }
            }
        }
        true
    }
}

/// State that the wire and its thread share.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    link: Mutex<Link>,
    stop: AtomicBool,
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connect(&self) -> Result<(), WireError> {
        let stream = connect(&self.path).map_err(|source| WireError::Connect {
            path: self.path.clone(),
            source: source.into(),
        });
        *self.link() = Link { stream: Some(stream?), rest: Vec::new() };
        Ok(())
    }
}

/// A wire to whoever listens at a path.
#[derive(Debug)]
pub struct UnixWire {
    shared: Arc<Shared>,
    server: Server,
}

impl UnixWire {
    /// Not connected yet.
    pub fn new(path: PathBuf) -> Self {
        let shared = Shared { path, link: Mutex::default(), stop: AtomicBool::new(true) };
        Self { shared: Arc::new(shared), server: Server::default() }
    }
}

/// Never waits, not even for a listener whose queue is full.
fn connect(path: &Path) -> Result<UnixStream, rustix::io::Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(UnixStream::from(socket))
}

impl Wire for UnixWire {
    fn prepare(&self) -> Result<(), WireError> {
        self.shared.connect()
    }

    fn activate(&self, inbox: Arc<Inbox>) {
        let shared = Arc::clone(&self.shared);
        self.server.start(&self.shared.stop, move || serve(&shared, &inbox));
    }

    fn deactivate(&self) {
        let last_words = || {
            let begin = Instant::now();
            while !self.shared.link().flush() && begin.elapsed() < LAST_WORDS {
                if self.shared.link().rest.is_empty() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let close = || {
            // Also one that was prepared only: somebody else may want it.
            let link = std::mem::take(&mut *self.shared.link());
            if let Some(stream) = link.stream {
                // Ends the thread's wait at once: this may be in the guest's blackout.
                let _ = stream.shutdown(Shutdown::Both);
            }
        };
        self.server.end(&self.shared.stop, last_words, close);
    }

    fn send(&self, frame: &[u8]) -> bool {
        let mut link = self.shared.link();
        if self.shared.stop.load(Ordering::SeqCst) || link.stream.is_none() || !link.flush() {
            return false;
        }
        put_frame(&mut link.rest, frame);
        link.flush();
        true
    }
}

fn reason(error: &WireError) -> String {
    let source = std::error::Error::source(error).map(|source| format!(": {source}"));
    format!("{error}{}", source.unwrap_or_default())
}

/// Reads as long as the wire is active, and connects anew whenever the other end goes away. A peer that
/// takes connections only to end them, or talks rubbish, gets one in each pause, and one line of log
/// until a frame comes.
fn serve(shared: &Shared, inbox: &Inbox) {
    let mut told = false;
    while !shared.stop.load(Ordering::SeqCst) {
        let stream = shared.link().stream.as_ref().and_then(|stream| stream.try_clone().ok());
        let served = match stream {
            Some(stream) => {
                let served = read_all(shared, inbox, stream, &mut told);
                *shared.link() = Link::default();
                served.map_err(|TooLong(len)| format!("no frame has {len} bytes"))
            }
            None => match shared.connect() {
                Ok(()) => continue,
                Err(error) => Err(reason(&error)),
            },
        };
        if let Err(why) = served
            && !std::mem::replace(&mut told, true)
        {
            let path = shared.path.display().to_string();
            tracing::warn!(path, why, "wire is down; connecting anew");
        }
        if !shared.stop.load(Ordering::SeqCst) {
            std::thread::park_timeout(PAUSE);
        }
    }
    *shared.link() = Link::default();
}

/// Reads until the end of the connection, or of the wire's being active; a frame clears `told`.
fn read_all(
    shared: &Shared,
    inbox: &Inbox,
    mut stream: UnixStream,
    told: &mut bool,
) -> Result<(), TooLong> {
    let (mut frames, mut buffer) = (FrameReader::default(), vec![0; 64 << 10]);
    while !shared.stop.load(Ordering::SeqCst) {
        let wish =
            if shared.link().flush() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
        let pause = Timespec { tv_sec: 0, tv_nsec: PAUSE.subsec_nanos().into() };
        let mut fds = [PollFd::new(&stream, wish)];
        // A poll that fails is one that found nothing.
        let _ = poll(&mut fds, Some(&pause));
        match stream.read(&mut buffer) {
            Ok(0) => break,
            // A short frame counts as dropped, like one without room.
            Ok(len) => frames.feed(buffer.get(..len).unwrap_or_default(), |frame| {
                *told &= !inbox.push(frame);
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "unix_test.rs"]
mod tests;
