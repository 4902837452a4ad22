//! The C interface between drogher and its device plugins.
//!
//! Only `#[repr(C)]` types and constants: no code, no dependencies, no `std`. The C header
//! `include/drogher_plugin.h` is generated from this crate. The normative text about threads,
//! ownership, deadlines and the memory model is `DESIGN.md`; the comments here are the short form
//! and go into the header, so they speak to an author in C.
#![no_std]
#![expect(unsafe_code, reason = "Tables of C function pointers are shared between threads")]

mod descriptor;
mod device;
mod dma;
mod dma_log;
mod dma_pin;
mod host;
mod migration;
mod ndma;
mod params;
mod prefers;
mod status;
mod text;

pub use descriptor::*;
pub use device::*;
pub use dma::*;
pub use dma_log::*;
pub use dma_pin::*;
pub use host::*;
pub use migration::*;
pub use ndma::*;
pub use params::*;
pub use prefers::*;
pub use status::*;
pub use text::*;

// SAFETY: the tables are immutable once published, and what their pointers refer to lives for
// ever and is immutable too: rule "tables" of DESIGN.md.
unsafe impl Sync for Descriptor {}
// SAFETY: as above: only integers and function pointers.
unsafe impl Sync for DeviceOps {}
// SAFETY: as above; its text points to constants.
unsafe impl Sync for HostTable {}
