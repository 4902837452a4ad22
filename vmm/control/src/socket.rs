//! Unix sockets with a name in the file system: made for this user alone, reached within a deadline.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// How long a connection may take. A listener that lives takes it at once, unless its queue is full.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// Pause between two tries at a full queue.
const TRY_EVERY: Duration = Duration::from_millis(10);

/// Why a socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens there.
    #[error("The socket {0} is in use by another process; end that one, or name another socket")]
    InUse(PathBuf),
    /// Something that is no socket is there.
    #[error("The socket {0} cannot be made: a file of this name is there")]
    Exists(PathBuf),
    /// The operating system refused.
    #[error("The socket {path} cannot be made")]
    Bind {
        /// The socket.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: io::Error,
    },
}

/// The name of a listening socket; removed when this is dropped, unless it is somebody else's by
/// then. To be dropped before the listener, which keeps the inode from being used again.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id_of(&self.path).is_ok_and(|id| id == self.id) {
            // Somebody else may have removed it already.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes a listening socket that only this user may use; a dead one of the same name is replaced.
///
/// # Errors
/// When another process listens there, or the operating system refuses.
pub fn listen(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let bind = |source| SocketError::Bind { path: path.to_owned(), source };
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(SocketError::Exists(path.to_owned()));
        }
        match connect(path, Duration::ZERO, || false) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A full queue is the queue of a process that lives.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(SocketError::InUse(path.to_owned()));
            }
            Err(error) => return Err(bind(error)),
            Ok(_) => return Err(SocketError::InUse(path.to_owned())),
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(bind(error)),
            _ => {}
        }
    }
    let listener = UnixListener::bind(path).map_err(bind)?;
    let file = SocketFile { path: path.to_owned(), id: id_of(path).map_err(bind)? };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(bind)?;
    Ok((listener, file))
}

/// Connects to the socket at `path`. While its queue is full it tries again, until `deadline` is
/// over or `give_up` says so. The stream blocks.
///
/// # Errors
/// The operating system's; `TimedOut` for a queue that stayed full.
pub fn connect(
    path: &Path,
    deadline: Duration,
    mut give_up: impl FnMut() -> bool,
) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let end = Instant::now() + deadline;
    loop {
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            // For this kind of socket that is a full queue, and nothing to be polled for.
            Err(Errno::AGAIN) if Instant::now() >= end || give_up() => {
                let words = "its queue of connections is full, and nobody takes them";
                return Err(io::Error::new(io::ErrorKind::TimedOut, words));
            }
            Err(Errno::AGAIN) => std::thread::sleep(TRY_EVERY),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// True if the process at the other end belongs to this user, or to root.
#[must_use]
pub fn peer_is_us(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.uid == rustix::process::geteuid() || peer.uid.is_root())
}

/// True if the other end is a socket of this very process.
#[must_use]
pub fn peer_is_self(stream: &UnixStream) -> bool {
    rustix::net::sockopt::socket_peercred(stream)
        .is_ok_and(|peer| peer.pid == rustix::process::getpid())
}

#[cfg(test)]
#[path = "socket_test.rs"]
mod tests;
