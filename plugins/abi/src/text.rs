//! Borrowed text.

use core::ffi::c_char;

/// A borrowed piece of UTF-8 text: `len` bytes at `ptr`, no NUL needed. `ptr` may be NULL when
/// `len` is 0. How long it stays valid is said where it is used. Never grows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Str {
    /// First byte.
    pub ptr: *const c_char,
    /// Length in bytes.
    pub len: u64,
}

impl Str {
    /// The empty text.
    pub const EMPTY: Str = Str { ptr: core::ptr::null(), len: 0 };

    /// Text that lives for ever.
    pub const fn from_static(text: &'static str) -> Str {
        Str { ptr: text.as_ptr().cast(), len: text.len() as u64 }
    }
}

/// Longest text, in bytes, that the host takes from a plugin in one piece. Longer log lines and
/// error texts are cut; longer values, defaults and documentation of parameters are refused.
pub const DROGHER_TEXT_MAX: u32 = 4096;
