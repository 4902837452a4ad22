//! The migration engine: phases, rounds, forecast, wire and handover.
//!
//! It knows no KVM, no socket and no clock. A machine implements [`SourceHost`] and
//! [`DestinationHost`], a byte stream implements [`Link`], and [`send`] and [`receive`] do the
//! rest, each on one thread:
//!
//! ```text
//! let end = drogher_migrate::send(&mut machine, &mut link, lease, Env { clock, hooks, control }, &options);
//! match end.outcome { Moved { .. } => exit(0), Stays { why } => report(why), .. }
//! ```
//!
//! `DESIGN.md` in this folder has the order of things and why nothing is lost and nothing runs
//! twice.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod blocker;
pub mod config;
mod config_check;
pub mod control;
mod converge;
pub mod destination;
mod driver;
pub mod error;
pub mod hash;
pub mod host;
pub mod lease;
pub mod link;
pub mod options;
pub mod outcome;
pub mod phase;
pub mod report;
pub mod source;
pub mod status;
pub mod wire;

#[cfg(test)]
mod handover_model;

pub use blocker::{Blocker, BlockerCode, BlockerList};
pub use config::{ConfigBlock, DeviceConfig, MemoryRegion};
pub use control::{Control, Refusal, Request};
pub use driver::{Env, receive, send};
pub use error::Error;
pub use host::{
    DestinationHost, DevicePending, DeviceRead, Extent, GuestEnd, Harvest, Paused, SourceHost,
    StateDigest,
};
pub use lease::{HeldLease, Lease, LeaseError, LeaseRecord, LeaseState, Permit, Permits, VmId};
pub use link::{Clock, Hooks, Link, LinkError, NoHooks, SystemClock};
pub use options::{Deadlines, DestinationOptions, SourceOptions, TimeoutStrategy};
pub use outcome::{DestinationEnd, DestinationOutcome, SourceEnd, SourceOutcome};
pub use phase::{Phase, Side};
pub use report::{Event, Report};
pub use status::Status;
