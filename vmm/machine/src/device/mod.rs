//! Plugins as PCI devices.
//!
//! A [`DeviceSet`] is bus 0: the host bridge and one function per plugin instance, in slots 1, 2, ...
//! (RID = slot << 3). Regions are BARs 0 to 3; BAR 4 is ours and holds the MSI-X table and PBA.
//!
//! ```text
//! guest: config ports --> ConfigPorts --> PciDevice.regs        (function, ../pci)
//!        BAR access  --> MmioMap ------> PciDevice --> Endpoint  region_read, region_write
//!        doorbell    --> ioeventfd, or an exit --> eventfd --> I/O thread --> Endpoint  doorbell
//! device: irq(vector) --> Interrupts (table, masks, PBA) --> irqfd
//!         DMA --> requester of the plugin host --> BusMaster gate --> second stage
//!         a write that is not to memory --> Peers --> Inbox of another device (peer)
//! ```
//!
//! What the host owns, and so saves ([`DeviceSet::save`]): configuration spaces, BARs, MSI-X tables
//! and pending bits, doorbells that the device has not seen. What the device owns goes through its own
//! stream ([`DeviceSet::precopy_read`], [`DeviceSet::stop_copy_read`]). `DESIGN.md` in this crate has
//! the order of things, `state` and `stream` the formats.

mod check;
mod describe;
mod doorbell;
mod endpoint;
mod error;
mod function;
mod gate;
mod inbox;
mod irq;
mod keys;
mod life;
mod mmio;
mod params;
mod peer;
mod phases;
mod plugin;
mod set;
mod spec;
mod state;
mod stream;
mod tracked;

pub use check::{check, trial};
pub use drogher_wires::{WireCounts, WireSpec};
pub use endpoint::{Endpoint, PluginName, Shape, Tracking};
pub use error::{DeviceError, Fault};
pub use function::PciDevice;
pub use inbox::PeerCounts;
pub use irq::MSIX_BAR;
pub use keys::{DeviceKeys, KeyError, MAIN_SPACE};
pub use life::{Permit, StateRead};
pub use mmio::{BarAccess, MmioMap};
pub use params::{Called, DeviceParams, ParamView, pick};
pub use phases::PendingState;
pub use plugin::keys_of;
pub use set::{DeviceSet, MAX_DEVICES, Made, Maker};
pub use spec::{DeviceSpec, SpecError};
pub use state::PCI_STATE_VERSION;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod move_test;
#[cfg(test)]
mod ndma_test;
#[cfg(test)]
mod net_test;
#[cfg(test)]
mod peer_ndma_test;
#[cfg(test)]
mod set_test;
#[cfg(test)]
pub(crate) mod testing;
