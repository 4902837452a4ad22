//! Wires: what is at the other end of a device's Ethernet ports.
//!
//! [`Ports`] are the ports of one device, with a wire in each. They are made, then *prepared* (opened
//! and checked, no frame passes), *activated* and *deactivated*, by the machine; the plugin host sends,
//! receives and waits. `DESIGN.md` says why, and what the other end sees of a move.

mod error;
mod inbox;
mod loopback;
mod pcap;
mod ports;
mod server;
mod spec;
mod tap;
mod unix;
mod wire;

pub use error::WireError;
pub use inbox::{INBOX_BYTES, INBOX_FRAMES, Inbox};
pub use pcap::Pcap;
pub use ports::{Ports, WireCounts};
pub use spec::WireSpec;
pub use unix::{FrameReader, TooLong, put_frame};
pub use wire::Wire;

/// Most bytes of a frame.
pub const FRAME_MAX: usize = 0x1_0000;
/// Fewest: two addresses and a type.
pub const FRAME_MIN: usize = 14;
