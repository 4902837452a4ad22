//! Why a wire cannot be had.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A wire that cannot be named or opened.
#[derive(Debug, Error)]
pub enum WireError {
    /// Not a wire.
    #[error("{0:?} is no wire; use none, loopback, unix:PATH or tap:NAME")]
    Unknown(String),
    /// No path behind `unix:`.
    #[error("unix: names no socket; use unix:PATH, of at most 100 bytes")]
    NoPath,
    /// No interface behind `tap:`.
    #[error("tap: names no interface; use tap:NAME, of at most 15 bytes without / : and %")]
    TapName,
    /// No such interface.
    #[error(
        "There is no interface {name} here; make it: ip tuntap add dev {name} mode tap multi_queue user \"$USER\""
    )]
    NoTap {
        /// Its name.
        name: String,
    },
    /// The source and the destination of a move each need a queue.
    #[error(
        "{name} is no tap with several queues, so no guest could move with it; name one that is made by: \
         ip tuntap add dev NAME mode tap multi_queue user \"$USER\""
    )]
    SingleQueue {
        /// Its name.
        name: String,
    },
    /// The kernel does not let us have it.
    #[error("Cannot open a queue of the tap {name}")]
    Tap {
        /// Its name.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// Nobody listens at the socket.
    #[error("Nobody takes connections at the wire's socket {path}; start the other end first")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The capture file cannot be opened.
    #[error("Cannot open the capture file {path}")]
    Capture {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The capture file is another kind of file.
    #[error(
        "{path} is no nanosecond pcap file of Ethernet frames of this machine; name another file, or remove it"
    )]
    NotCapture {
        /// The file.
        path: PathBuf,
    },
}
