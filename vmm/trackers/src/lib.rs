//! What tracking costs on the machine at hand: in short, for `auto`, and in full, for
//! `drogher trackers`.
//!
//! [`UnitCosts::measure`] times what providers are made of, in less than 100 ms. [`Workload`] is a
//! sample of what a guest's devices do. [`predict`] multiplies the two into the
//! [`Costs`](drogher_tracking::Costs) by which the planner chooses. [`grid::measure`] runs every
//! provider in every page size against real DMA and real migrations, and says how near the choice
//! was to the best one.
//!
//! No KVM, no plugin: devices are threads that write through a real domain.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod clock;
mod error;
pub mod grid;
mod link;
mod moving;
mod paired;
mod predict;
pub mod report;
mod rig;
mod settings;
mod soft_log;
mod unit;
mod workload;

pub use error::TrackersError;
pub use moving::Moved;
pub use predict::predict;
pub use settings::{Fixed, SettingError, Settings, parse_rate, parse_size};
pub use unit::{TrackerCosts, UnitCosts};
pub use workload::{Pinned, Workload};

/// Rounds over which the costs of starting and stopping a tracker are spread: about as many as a
/// migration takes.
pub const ROUNDS: u32 = 10;
