//! The one exported symbol.

use crate::{DeviceOps, HostCtx, HostTable};
use core::ffi::{c_char, c_void};

/// "DROGHER1" as a little-endian number.
pub const DROGHER_PLUGIN_MAGIC: u64 = 0x3152_4548_474F_5244;
/// Version of this interface. Another major number is another interface.
pub const DROGHER_ABI_MAJOR: u32 = 1;
/// Grows with each addition. A host takes every minor of its major, older or newer: what is there
/// is said by the sizes of the structs and the ids of the extensions, not by this number.
pub const DROGHER_ABI_MINOR: u32 = 1;

/// A panic or uncaught exception in this plugin ends the process (it cannot be turned into an
/// error of the device). To be declared, so that an operator may refuse it.
pub const DROGHER_PLUGIN_ABORTS: u32 = 1;
/// The plugin may change its ids, registers and state format without notice.
pub const DROGHER_PLUGIN_EXPERIMENTAL: u32 = 2;
/// All flags of this version. The others must be 0.
pub const DROGHER_PLUGIN_FLAGS: u32 = 3;

/// What a plugin exports, as constant data under the name `drogher_plugin_entry`.
///
/// Everything before `reserved` is plain bytes, so that it can be read from the file without
/// loading it. The texts are UTF-8, ended by a NUL inside the array, not empty, no control
/// characters.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// DROGHER_PLUGIN_MAGIC.
    pub magic: u64,
    /// sizeof(drogher_plugin_descriptor), as the plugin was compiled.
    pub struct_size: u32,
    /// DROGHER_ABI_MAJOR.
    pub abi_major: u32,
    /// DROGHER_ABI_MINOR.
    pub abi_minor: u32,
    /// DROGHER_PLUGIN_ABORTS and others; unknown bits must be 0.
    pub flags: u32,
    /// Names the plugin for ever, in the migration stream too: reverse domain style, of
    /// `a-z 0-9 . - _`.
    pub id: [c_char; 64],
    /// For people.
    pub name: [c_char; 64],
    /// Version of the plugin, for people; the state format has a version of its own.
    pub version: [c_char; 32],
    /// Who made it.
    pub vendor: [c_char; 64],
    /// SPDX expression.
    pub licence: [c_char; 64],
    /// Must be 0.
    pub reserved: [u64; 4],
    /// Called once per process, before anything else. May be NULL. `host_ctx` is the plugin's as a
    /// whole and valid for ever: with it `log` and `set_last_error` work, all that needs a device
    /// answers DROGHER_ERR_PERM. A failure refuses the plugin for the life of the process.
    /// [serialised: with every call into the plugin] [deadline: load]
    pub init: Option<unsafe extern "C" fn(host: *const HostTable, host_ctx: *mut HostCtx) -> i32>,
    /// Called at most once, after the last instance was destroyed; perhaps never: a process may
    /// just end. The file stays loaded, and its destructors and atexit functions are not run. May be
    /// NULL.
    /// [serialised: with every call into the plugin] [deadline: call]
    pub deinit: Option<unsafe extern "C" fn()>,
    /// The device. Valid for ever.
    pub device: *const DeviceOps,
    /// Returns the plugin's table for an extension (`drogher_migration` for
    /// DROGHER_EXT_MIGRATION, and so on) or NULL. `id` has `id_len` bytes and a NUL after them.
    /// `dev` is an instance, or NULL when the host asks before there is one; the answer may differ
    /// by instance. Tables are constant and valid for ever. Unknown ids: NULL. May be NULL.
    /// [serialised; with every create of this plugin where `dev` is NULL] [deadline: call; load where
    /// `dev` is NULL]
    pub get_extension: Option<
        unsafe extern "C" fn(dev: *mut c_void, id: *const c_char, id_len: u64) -> *const c_void,
    >,
}
