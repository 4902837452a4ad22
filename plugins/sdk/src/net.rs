//! Ethernet frames by the host.
//!
//! The invariant is that of `host.rs`: table and context are good.
#![expect(unsafe_code, reason = "Calls the host's C functions")]

use crate::Host;
use drogher_plugin_abi as abi;
use std::fmt;
use std::time::Duration;

/// Most bytes of a frame.
pub const FRAME_MAX: usize = abi::DROGHER_NET_FRAME_MAX as usize;
/// Fewest.
pub const FRAME_MIN: usize = abi::DROGHER_NET_FRAME_MIN as usize;

/// A frame that did not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetError {
    /// No frames now: the device's state, NDMA, or it was given up.
    NotAllowed,
    /// The device has no such port, or the host no such extension.
    NoPort,
    /// No frame has this length.
    Length,
    /// The frame that waits has so many bytes, more than the buffer.
    TooLong(u64),
    /// The instance is gone.
    Shutdown,
    /// Another status.
    Other(i32),
}

impl fmt::Display for NetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NetError::NotAllowed => f.write_str("Frames not allowed now"),
            NetError::NoPort => f.write_str("No such port"),
            NetError::Length => f.write_str("No frame has this length"),
            NetError::TooLong(bytes) => write!(f, "The frame has {bytes} bytes, more than room"),
            NetError::Shutdown => f.write_str("Frame after the device's end"),
            NetError::Other(status) => write!(f, "Frame: status {status}"),
        }
    }
}

impl std::error::Error for NetError {}

fn check(status: i32) -> Result<(), NetError> {
    Err(match status {
        abi::DROGHER_OK => return Ok(()),
        abi::DROGHER_ERR_PERM => NetError::NotAllowed,
        abi::DROGHER_ERR_NOENT | abi::DROGHER_ERR_NOTSUP => NetError::NoPort,
        abi::DROGHER_ERR_INVAL => NetError::Length,
        abi::DROGHER_ERR_SHUTDOWN => NetError::Shutdown,
        other => NetError::Other(other),
    })
}

impl Host {
    /// Sends a frame of [`FRAME_MIN`] to [`FRAME_MAX`] bytes. Success too if the wire drops it.
    pub fn net_send(&self, port: u32, frame: &[u8]) -> Result<(), NetError> {
        let send = |(net, ctx): (&abi::NetPortHost, _)| {
            // SAFETY: valid context; `frame` is readable for its length.
            Some(unsafe { net.send?(ctx, port, frame.as_ptr().cast(), frame.len() as u64) })
        };
        check(self.net_table().and_then(send).unwrap_or(abi::DROGHER_ERR_NOTSUP))
    }

    /// Takes the first frame that waits, and says how long it is; [`FRAME_MAX`] bytes are always room
    /// enough. `None`: there is none.
    pub fn net_receive(&self, port: u32, buffer: &mut [u8]) -> Result<Option<usize>, NetError> {
        let mut len = 0;
        let receive = |(net, ctx): (&abi::NetPortHost, _)| {
            let (to, cap) = (buffer.as_mut_ptr().cast(), buffer.len() as u64);
            // SAFETY: valid context; `buffer` is writable for its length.
            Some(unsafe { net.receive?(ctx, port, to, cap, &mut len) })
        };
        match self.net_table().and_then(receive).unwrap_or(abi::DROGHER_ERR_NOTSUP) {
            abi::DROGHER_ERR_NOMSG => Ok(None),
            abi::DROGHER_ERR_RANGE => Err(NetError::TooLong(len)),
            status => check(status).map(|()| usize::try_from(len).ok()),
        }
    }

    /// Waits until a frame waits at one of `ports` (bit n: port n), and says at which; or for
    /// [`Self::net_wake`] or the time out, at most a second, and says 0. For one worker at a time.
    pub fn net_wait(&self, ports: u64, time_out: Duration) -> Result<u64, NetError> {
        let mut ready = 0;
        let millis = u32::try_from(time_out.as_millis()).unwrap_or(u32::MAX);
        let wait = |(net, ctx): (&abi::NetPortHost, _)| {
            // SAFETY: valid context; `ready` is writable.
            Some(unsafe { net.wait?(ctx, ports, millis, &mut ready) })
        };
        check(self.net_table().and_then(wait).unwrap_or(abi::DROGHER_ERR_NOTSUP))?;
        Ok(ready)
    }

    /// Ends the wait under way, or else the next one. Also from within a call of the host.
    pub fn net_wake(&self) {
        let wake = |(net, ctx): (&abi::NetPortHost, _)| {
            // SAFETY: valid context.
            Some(unsafe { net.wake?(ctx) })
        };
        // Fails only where nobody waits any more.
        let _ = self.net_table().and_then(wake);
    }
}
