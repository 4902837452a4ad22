//! PCI without KVM: what a type-0 function's registers do, and nothing about who is behind them.
//!
//! The parts, each usable and tested alone:
//!
//! - [`config`]: the configuration space of one function (PCI Local Bus 3.0 section 6.1): header,
//!   BARs, capability list, write masks. A write answers with [`Effects`]: what the owner has to do.
//! - [`msix`]: the MSI-X table, the masks and the pending bits (section 6.8.2), delivering through a
//!   [`MsixSink`].
//! - [`bus`]: bus 0 and configuration mechanism 1 (section 3.2.2.3.2).
//! - [`ecam`]: the same configuration space in memory (PCI Express Base 3.0 section 7.2.2).
//! - [`host_bridge`]: the function at 00:00.0.
//! - [`window`]: where BARs are put before the guest starts.
//! - [`codec`]: the bounded reader and writer of the saved form.
//!
//! No access of a guest, of any offset or size, panics, overflows or allocates; a saved stream is
//! checked value by value before any of it is taken.

pub mod bar;
pub mod bus;
pub mod codec;
pub mod config;
pub mod ecam;
pub mod host_bridge;
pub mod msix;
pub mod regs;
pub mod window;

pub use bar::{BarKind, BarSpec};
pub use bus::{Bus, ConfigPorts, Function};
pub use codec::{Reader, StateError, Writer};
pub use config::{ConfigError, ConfigSpace, Effects, Identity};
pub use ecam::Ecam;
pub use host_bridge::HostBridge;
pub use msix::{MsixMessage, MsixSink, MsixTable, RouteRefused, Trigger};
pub use window::{BarWindow, MMIO_WINDOW, WindowFull};
