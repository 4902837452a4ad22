//! The machine: a KVM VM with its RAM, vCPUs, interrupt controllers, buses, console and devices,
//! that can be stopped, saved, moved to another process and started there.
//!
//! See DESIGN.md beside this crate.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

// So that the tests of this crate can use what those in tests/ share.
#[cfg(test)]
extern crate self as drogher_machine;

pub mod acpi;
pub mod boot;
pub mod bus;
pub mod caps;
pub mod clock;
pub mod cmos;
#[cfg(test)]
#[path = "../tests/common/mod.rs"]
mod common;
pub mod console;
pub mod device;
pub mod dirty_log;
pub mod events;
pub mod io_thread;
mod ioctls;
pub mod irqchip;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod migration;
pub mod pci;
mod platform;
pub mod power;
pub mod record;
pub mod routing;
pub mod serial;
pub mod tracking;
pub mod vcpu;
pub mod vm;
pub mod wiring;
