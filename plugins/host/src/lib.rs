//! Loads device plugins and keeps them in check.
//!
//! [`Plugin::inspect`] reads what a file says of itself without running it; [`Plugin::open`] loads it,
//! once per process, for ever. [`Instance::create`] makes a device: every call into it runs on a
//! thread of its own under a deadline, every value it returns is checked, and its DMA and interrupts
//! pass only in states that allow them. A plugin that panics, lies or does not return costs its own
//! device, never the VM.
#![deny(unsafe_code)]

mod context;
mod descriptor;
mod device_info;
mod elf;
mod exit;
mod find;
mod format;
mod host_log;
mod host_pin;
mod host_table;
mod instance;
mod instance_error;
mod load_error;
mod params;
mod pin_table;
mod plugin;
mod raw;
mod runner;
mod shared_bitmap;
mod sized;
mod state;
mod text;

pub use context::{HostServices, LogLevel, PeerWrite, Stats};
pub use descriptor::Descriptor;
pub use device_info::{DeviceInfo, Doorbell, InfoError, Region};
pub use exit::{end_if_loading_hangs, exit_now};
pub use format::StateFormat;
pub use instance::{Deadlines, Instance, InstanceConfig, LogError, PrecopyInfo, Read, Unmapping};
pub use instance_error::{Cause, InstanceError};
pub use load_error::{DescriptorError, LoadError, TableError};
pub use params::{ParamError, ParamInfo, ParamKind};
pub use plugin::Plugin;
pub use state::State;
