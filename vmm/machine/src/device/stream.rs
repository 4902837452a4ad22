//! Frames around a device's state: `kind: u8, length: u32, payload`.
//!
//! What a plugin gives is one byte stream per session. A function-level reset in the middle of
//! pre-copy ends the session and makes what was sent before it worthless; the frame [`RESTART`] says
//! so to the destination, which resets its device and begins to load anew. Frames may arrive in any
//! pieces.

use thiserror::Error;

/// Bytes before a payload.
pub const HEADER: usize = 5;
/// Longest payload of one frame.
pub const PAYLOAD_MAX: usize = 1 << 20;

/// Payload is the next piece of the session.
const DATA: u8 = 1;
/// No payload: forget all before.
const RESTART: u8 = 2;

/// A frame that no source has sent.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    /// Neither data nor restart, or a restart with a payload, or an empty or too long piece.
    #[error("Device state has a frame of kind {kind} with {len} bytes")]
    Header {
        /// Kind in the header.
        kind: u8,
        /// Length in the header.
        len: u32,
    },
    /// The state ends inside a frame.
    #[error("Device state ends inside a frame")]
    Truncated,
}

/// What the frames said.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The next bytes of the session.
    Data(&'a [u8]),
    /// A new session begins.
    Restart,
}

/// Writes a restart frame to the front of `buf`; returns its length, 0 if there is no room.
pub fn put_restart(buf: &mut [u8]) -> usize {
    put_header(buf, RESTART, 0)
}

/// Where the payload of a data frame goes in `buf`: all that fits after the header. `None` if
/// nothing does.
pub fn payload(buf: &mut [u8]) -> Option<&mut [u8]> {
    let end = buf.len().min(HEADER + PAYLOAD_MAX);
    buf.get_mut(HEADER..end).filter(|room| !room.is_empty())
}

/// Completes the data frame whose payload of `len` bytes is in place; returns the frame's length.
pub fn finish_data(buf: &mut [u8], len: usize) -> usize {
    put_header(buf, DATA, len) + len
}

fn put_header(buf: &mut [u8], kind: u8, len: usize) -> usize {
    let Some((header, _)) = buf.split_first_chunk_mut::<HEADER>() else {
        return 0;
    };
    let [l0, l1, l2, l3] = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    *header = [kind, l0, l1, l2, l3];
    HEADER
}

/// Takes frames apart.
#[derive(Debug, Default)]
pub struct Parser {
    header: [u8; HEADER],
    /// Bytes of the header that have arrived.
    have: usize,
    /// Bytes of the payload that have not.
    left: usize,
}

impl Parser {
    /// Feeds `bytes`, giving each part to `each` in order; stops at the first error.
    ///
    /// # Errors
    /// [`FrameError`], or what `each` answered.
    pub fn feed<E: From<FrameError>>(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Part<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some((&first, rest)) = bytes.split_first() {
            if self.left > 0 {
                let (data, rest) = bytes.split_at(self.left.min(bytes.len()));
                self.left -= data.len();
                bytes = rest;
                each(Part::Data(data))?;
                continue;
            }
            if let Some(byte) = self.header.get_mut(self.have) {
                *byte = first;
                self.have += 1;
                bytes = rest;
            }
            if self.have == HEADER {
                self.have = 0;
                let [kind, len @ ..] = self.header;
                let len = u32::from_le_bytes(len);
                match (kind, usize::try_from(len).unwrap_or(usize::MAX)) {
                    (DATA, left @ 1..=PAYLOAD_MAX) => self.left = left,
                    (RESTART, 0) => each(Part::Restart)?,
                    _ => return Err(FrameError::Header { kind, len }.into()),
                }
            }
        }
        Ok(())
    }

    /// The state is complete.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] inside a frame.
    pub const fn finish(&self) -> Result<(), FrameError> {
        if self.have == 0 && self.left == 0 { Ok(()) } else { Err(FrameError::Truncated) }
    }
}

#[cfg(test)]
#[path = "stream_test.rs"]
mod tests;
