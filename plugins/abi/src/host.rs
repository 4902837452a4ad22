//! What the host offers to every instance.

use crate::Str;
use core::ffi::{c_char, c_void};

/// Opaque: the host's side of one instance (or, in `init`, of the plugin).
#[repr(C)]
#[derive(Debug)]
pub struct HostCtx {
    _private: [u8; 0],
}

/// Something is broken.
pub const DROGHER_LOG_ERROR: u32 = 1;
/// Something is odd.
pub const DROGHER_LOG_WARN: u32 = 2;
/// Worth knowing, rare.
pub const DROGHER_LOG_INFO: u32 = 3;
/// For those who look for a fault.
pub const DROGHER_LOG_DEBUG: u32 = 4;

/// The host's functions. The table is constant and valid for ever. Later versions append: a plugin
/// that uses a function newer than version 1.0 looks at `size` first. None waits for a call into a
/// plugin; `fail`, and DMA beside that of many other threads, wait for DMA in flight.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HostTable {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// DROGHER_ABI_MAJOR of the host.
    pub abi_major: u32,
    /// DROGHER_ABI_MINOR of the host.
    pub abi_minor: u32,
    /// 0 in this version.
    pub flags: u32,
    /// Name and version of the host, for people. Valid for ever.
    pub host_name: Str,
    /// Keeps `ctx` valid beyond `destroy`: every function then answers DROGHER_ERR_SHUTDOWN, or does
    /// nothing, instead of being undefined. One `release` each.
    /// [any]
    pub retain: Option<unsafe extern "C" fn(ctx: *mut HostCtx)>,
    /// Gives one `retain` back; `ctx` may be invalid afterwards.
    /// [any]
    pub release: Option<unsafe extern "C" fn(ctx: *mut HostCtx)>,
    /// Writes one line to the log; the text is copied. Level: DROGHER_LOG_*. The host limits rate
    /// and length.
    /// [any]
    pub log:
        Option<unsafe extern "C" fn(ctx: *mut HostCtx, level: u32, text: *const c_char, len: u64)>,
    /// Says why the call that the host is now in will fail: to be called before a negative status
    /// is returned. The text is copied; the last one counts.
    /// [any]
    pub set_last_error:
        Option<unsafe extern "C" fn(ctx: *mut HostCtx, text: *const c_char, len: u64)>,
    /// Declares the device broken, from any thread: it goes to ERROR, its DMA and interrupts have
    /// ended on return, and nothing but `reset` and `destroy` is called. For workers, which have no
    /// status to return. Nothing happens with the plugin's own `ctx`, of `init`.
    /// [any]
    pub fail: Option<unsafe extern "C" fn(ctx: *mut HostCtx, text: *const c_char, len: u64)>,
    /// Triggers MSI-X vector `vector`. Masking and pending bits are the host's. DROGHER_ERR_PERM in
    /// states and NDMA that allow none (it is then lost, and counted as a fault of the device);
    /// DROGHER_ERR_NOENT if there is no such vector.
    /// [any]
    pub irq: Option<unsafe extern "C" fn(ctx: *mut HostCtx, vector: u32) -> i32>,
    /// Returns the host's table for an extension (`drogher_dma` for DROGHER_EXT_DMA) or NULL.
    /// `id` has `id_len` bytes. Unknown ids: NULL.
    /// [any]
    pub get_extension: Option<
        unsafe extern "C" fn(ctx: *mut HostCtx, id: *const c_char, id_len: u64) -> *const c_void,
    >,
}
