//! Write a drogher device plugin in safe Rust.
//!
//! Implement [`Device`], name it in [`export_plugin!`], build a `cdylib`. The crate turns the C
//! interface into the trait's methods, catches panics (the device goes to ERROR, the host lives),
//! keeps the books of the VFIO v2 states and lets no illegal arc or misplaced call through, checks
//! parameters, and gives a [`Host`] handle for DMA, interrupts and the log.
#![deny(unsafe_code)]

mod descriptor;
mod device;
mod failure;
mod host;
mod info;
mod landing;
mod params;
mod shim;
mod state;
mod tracking;

pub use descriptor::{Identity, descriptor};
pub use device::Device;
pub use failure::{Failure, FailureKind};
pub use host::{DmaError, DmaErrorKind, Host, IrqError, LogLevel};
pub use info::{DeviceInfo, Doorbell, Region};
pub use landing::{PinAccess, PinError, PinnedMemory};
pub use params::{ParamKind, ParamSpec, Params};
pub use state::{PrecopyInfo, Read, State, StateFormat};
pub use tracking::{
    LogCaps, LogReport, LogStart, OwnBits, PinKind, Preference, SharedBits, Tracker,
};

/// The C types, for [`export_plugin!`].
#[doc(hidden)]
pub use drogher_plugin_abi as abi;

/// Exports a [`Device`] as this library's plugin.
///
/// ```
/// # use drogher_plugin_sdk::*;
/// # struct Counter;
/// # impl Device for Counter {
/// #     fn create(_: Host, _: &Params) -> Result<Self, Failure> { Ok(Counter) }
/// #     fn info(&self) -> DeviceInfo { DeviceInfo::new(0xD70E, 0x10, 0xFF0000) }
/// #     fn reset(&mut self) -> Result<(), Failure> { Ok(()) }
/// # }
/// export_plugin! {
///     device: Counter,
///     id: "org.example.counter",
///     name: "Counter",
///     version: "1.0.0",
///     vendor: "Example",
///     licence: "MIT",
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugin {
    (
        device: $device:ty,
        id: $id:expr,
        name: $name:expr,
        version: $version:expr,
        vendor: $vendor:expr,
        licence: $licence:expr
        $(, experimental: $experimental:expr)? $(,)?
    ) => {
        /// The plugin's descriptor, found by its name.
        #[allow(unsafe_code, non_upper_case_globals)]
        #[unsafe(no_mangle)]
        pub static drogher_plugin_entry: $crate::abi::Descriptor =
            $crate::descriptor::<$device>(&$crate::Identity {
                id: $id,
                name: $name,
                version: $version,
                vendor: $vendor,
                licence: $licence,
                aborts: ::core::cfg!(panic = "abort"),
                experimental: false $(|| $experimental)?,
            });
    };
}
