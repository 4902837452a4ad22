//! `drogher.prefers/1`, offered by a plugin: how its DMA is best tracked.

use crate::Str;
use core::ffi::c_void;

/// Id of the plugin's preference.
pub const DROGHER_EXT_PREFERS: &core::ffi::CStr = c"drogher.prefers/1";

/// No preference.
pub const DROGHER_TRACKER_NONE: u32 = 0;
/// The IOMMU's dirty bits.
pub const DROGHER_TRACKER_IOMMU: u32 = 1;
/// The device's own log.
pub const DROGHER_TRACKER_DEVICE: u32 = 2;
/// What the device has pinned.
pub const DROGHER_TRACKER_PINNED: u32 = 3;
/// Write protection in the IOMMU.
pub const DROGHER_TRACKER_FAULT: u32 = 4;
/// None: everything mapped counts as dirty.
pub const DROGHER_TRACKER_ALL: u32 = 5;

/// A preference. Zeroed and sized by the host; the text is valid until `destroy`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Preference {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// DROGHER_TRACKER_*.
    pub tracker: u32,
    /// Tracking page size in bytes, a power of two from 4 KiB to 2 MiB; 0: no wish.
    pub page_size: u64,
    /// What one harvest costs, by the plugin's account, in ns; 0: unknown.
    pub cost_hint_ns: u64,
    /// Why, in a few words for people.
    pub reason: Str,
}

/// What the plugin prefers. A hint: the operator may choose otherwise, and what cannot be had is passed
/// over.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Prefers {
    /// sizeof, as the plugin was compiled.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Fills in the preference of this instance. Called once, after `create`.
    /// [serialised] [deadline: call]
    pub get: Option<unsafe extern "C" fn(dev: *mut c_void, out: *mut Preference) -> i32>,
}
