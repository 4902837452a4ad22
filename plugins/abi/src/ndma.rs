//! `drogher.ndma/1`, offered by a plugin: a running device without any DMA.

use core::ffi::c_void;

/// Id of the plugin's NDMA table.
pub const DROGHER_EXT_NDMA: &core::ffi::CStr = c"drogher.ndma/1";

/// NDMA: the device runs on, answers registers and latches doorbells, but issues no DMA and no
/// interrupt at all (a message-signalled interrupt is a DMA write). Orthogonal to the migration
/// state; the host enters it in RUNNING, RUNNING_P2P, PRE_COPY and PRE_COPY_P2P, and it holds, over
/// all state changes, until `leave` or `reset`. It is not part of the saved state.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Ndma {
    /// sizeof, as the plugin was compiled.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// On return accesses in flight have ended and none will start. A failure leaves NDMA not
    /// entered.
    /// [serialised] [deadline: state]
    pub enter: Option<unsafe extern "C" fn(dev: *mut c_void) -> i32>,
    /// DMA and interrupts may start again, latched doorbells are served. Called in the running
    /// states and in STOP.
    /// [serialised] [deadline: state]
    pub leave: Option<unsafe extern "C" fn(dev: *mut c_void) -> i32>,
}
