//! The link between two processes of one host: a connected Unix socket.

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use drogher_migrate::link::{Link, LinkError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{set_socket_send_buffer_size, set_socket_send_buffer_size_force};

/// Room for some records of 256 KiB. In what a socket has by itself there is none for a whole one, so that
/// both processes would have to run in turn for each.
const SEND_BUFFER_BYTES: usize = 2 << 20;

/// A [`Link`] over a connected Unix stream socket.
#[derive(Debug)]
pub struct SocketLink {
    stream: UnixStream,
}

impl SocketLink {
    /// Takes over a connected socket.
    ///
    /// # Errors
    /// When the socket can't be made non-blocking.
    pub fn new(stream: UnixStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        // Beyond the host's limit (net.core.wmem_max) only with rights; less is slower, and no error.
        if set_socket_send_buffer_size_force(&stream, SEND_BUFFER_BYTES).is_err() {
            let _ = set_socket_send_buffer_size(&stream, SEND_BUFFER_BYTES);
        }
        Ok(Self { stream })
    }

    /// A second handle to the same connection, for cutting it.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn handle(&self) -> std::io::Result<UnixStream> {
        self.stream.try_clone()
    }

    fn wait(&self, flags: PollFlags, timeout: Duration) -> Result<(), LinkError> {
        let wait = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        let fd = self.stream.as_fd();
        match poll(&mut [PollFd::new(&fd, flags)], Some(&wait)) {
            Ok(0) => Err(LinkError::TimedOut(timeout)),
            // A signal: the caller tries again and finds out.
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(LinkError::Io(error.into())),
        }
    }
}

/// What the error of a non-blocking call means: `None` asks for another try after a wait.
fn classify(error: std::io::Error) -> Option<LinkError> {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::Interrupted => None,
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected => {
            Some(LinkError::Closed)
        }
        _ => Some(LinkError::Io(error)),
    }
}

impl Link for SocketLink {
    fn send(&mut self, parts: &[IoSlice<'_>], timeout: Duration) -> Result<usize, LinkError> {
        let mut waited = false;
        loop {
            match self.stream.write_vectored(parts) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => return Ok(count),
                Err(error) => {
                    if let Some(error) = classify(error) {
                        return Err(error);
                    }
                    if waited {
                        return Err(LinkError::TimedOut(timeout));
                    }
                    self.wait(PollFlags::OUT, timeout)?;
                    waited = true;
                }
            }
        }
    }

    fn receive(&mut self, buf: &mut [u8], timeout: Duration) -> Result<usize, LinkError> {
        let mut waited = false;
        loop {
            match self.stream.read(buf) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(count) => return Ok(count),
                Err(error) => {
                    if let Some(error) = classify(error) {
                        return Err(error);
                    }
                    if waited || timeout.is_zero() {
                        return Err(LinkError::TimedOut(timeout));
                    }
                    self.wait(PollFlags::IN, timeout)?;
                    waited = true;
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "socket_test.rs"]
mod tests;
