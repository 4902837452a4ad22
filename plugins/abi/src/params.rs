//! `drogher.params/1`, offered by a plugin.

use crate::Str;
use core::ffi::{c_char, c_void};

/// Id of the plugin's parameter table.
pub const DROGHER_EXT_PARAMS: &core::ffi::CStr = c"drogher.params/1";

/// Text.
pub const DROGHER_PARAM_TEXT: u32 = 1;
/// Unsigned 64-bit number, decimal.
pub const DROGHER_PARAM_U64: u32 = 2;
/// `true` or `false`.
pub const DROGHER_PARAM_BOOL: u32 = 3;

/// Most parameters of a plugin.
pub const DROGHER_PARAMS_MAX: u32 = 256;

/// May be set while the instance lives, not only at creation.
pub const DROGHER_PARAM_RUNTIME: u32 = 1;
/// Source and destination of a migration must have the same value.
pub const DROGHER_PARAM_COMPAT: u32 = 2;
/// All flags of this version. The others must be 0.
pub const DROGHER_PARAM_FLAGS: u32 = 3;

/// One parameter. Zeroed and sized by the host; the texts are constant and valid for ever.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ParamInfo {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// DROGHER_PARAM_TEXT and so on.
    pub kind: u32,
    /// DROGHER_PARAM_RUNTIME, DROGHER_PARAM_COMPAT.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Name: of `a-z 0-9 _`.
    pub name: Str,
    /// Value if none is given.
    pub default_value: Str,
    /// One line for people.
    pub doc: Str,
    /// Smallest value (DROGHER_PARAM_U64).
    pub min: u64,
    /// Largest value (DROGHER_PARAM_U64); 0 with min 0: no bounds.
    pub max: u64,
}

/// Parameters: what there are, and their values. Values are text in the form of their kind; the host
/// has checked kind, bounds and UTF-8 before the plugin sees one.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// sizeof, as the plugin was compiled.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Number of parameters, at most DROGHER_PARAMS_MAX.
    pub count: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Fills in parameter `n` < count. Needs no instance.
    /// [serialised: with every create of this plugin] [deadline: load]
    pub info: Option<unsafe extern "C" fn(n: u32, out: *mut ParamInfo) -> i32>,
    /// Writes the value of a parameter into `value` (`cap` bytes, no NUL) and its length to
    /// `*value_len`. DROGHER_ERR_RANGE if `cap` is too small; `*value_len` then says what is needed.
    /// [serialised] [deadline: call]
    pub get: Option<
        unsafe extern "C" fn(
            dev: *mut c_void,
            name: *const c_char,
            name_len: u64,
            value: *mut c_char,
            cap: u64,
            value_len: *mut u64,
        ) -> i32,
    >,
    /// Sets a parameter that has DROGHER_PARAM_RUNTIME. In any state but ERROR; a failure keeps the old
    /// value.
    /// [serialised] [deadline: call]
    pub set: Option<
        unsafe extern "C" fn(
            dev: *mut c_void,
            name: *const c_char,
            name_len: u64,
            value: *const c_char,
            value_len: u64,
        ) -> i32,
    >,
}
