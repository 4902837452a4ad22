//! Why a wire cannot be had.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// A wire that cannot be named or opened.
#[derive(Debug, Error)]
pub enum WireError {
    /// Not a wire.
    #[error("{0:?} is no wire; use none, loopback or unix:PATH")]
    Unknown(String),
    /// No path behind `unix:`.
    #[error("unix: names no socket; use unix:PATH, of at most 100 bytes")]
    NoPath,
    /// Taps are to come.
    #[error(
        "tap:{0}: taps are not supported yet; use unix:PATH, and at its end a program with a tap"
    )]
    Tap(String),
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
