//! `drogher.migration/1`, offered by a plugin: the VFIO v2 device states.

use core::ffi::c_void;

/// Id of the plugin's migration table.
pub const DROGHER_EXT_MIGRATION: &core::ffi::CStr = c"drogher.migration/1";

/// Broken; left by reset only. Never requested.
pub const DROGHER_STATE_ERROR: u32 = 0;
/// Nothing runs: no DMA, no interrupt, no change inside.
pub const DROGHER_STATE_STOP: u32 = 1;
/// Runs.
pub const DROGHER_STATE_RUNNING: u32 = 2;
/// Stopped, its state can be read.
pub const DROGHER_STATE_STOP_COPY: u32 = 3;
/// Stopped, a state can be written.
pub const DROGHER_STATE_RESUMING: u32 = 4;
/// Runs, but starts no access to another device. (A device that cannot tell another device's BAR
/// from RAM starts none at all.)
pub const DROGHER_STATE_RUNNING_P2P: u32 = 5;
/// Runs, and state can be read in advance.
pub const DROGHER_STATE_PRE_COPY: u32 = 6;
/// PRE_COPY and RUNNING_P2P at once.
pub const DROGHER_STATE_PRE_COPY_P2P: u32 = 7;

/// STOP, STOP_COPY, RESUMING and RUNNING: every plugin with this extension has them.
pub const DROGHER_MIGRATION_STOP_COPY: u32 = 1;
/// Has the P2P states.
pub const DROGHER_MIGRATION_P2P: u32 = 2;
/// Has the PRE_COPY states (PRE_COPY_P2P if it has both).
pub const DROGHER_MIGRATION_PRE_COPY: u32 = 4;
/// All flags of this version. The others must be 0.
pub const DROGHER_MIGRATION_FLAGS: u32 = 7;

/// How much there is to read in a pre-copy state. Zeroed and sized by the host.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PrecopyInfo {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Bytes of the first part that are still to be read: falls as data are read. To stop before it
    /// is 0 makes the downtime longer.
    pub initial_bytes: u64,
    /// Estimate of the bytes that changed since they were read.
    pub dirty_bytes: u64,
}

/// Save, load and the states between. A session of reading opens on the arcs RUNNING->PRE_COPY,
/// RUNNING_P2P->PRE_COPY_P2P and STOP->STOP_COPY, goes on through arcs among these three states, and
/// ends when they are left. All that was read in it, in order, is one byte stream without message
/// boundaries, to be written in one RESUMING session by any pieces.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// sizeof, as the plugin was compiled.
    pub size: u32,
    /// DROGHER_MIGRATION_*. DROGHER_MIGRATION_STOP_COPY must be set.
    pub flags: u32,
    /// Version of the state format that this plugin writes; at least 1.
    pub state_version: u32,
    /// Lowest version of a reader that understands what this plugin writes; <= state_version.
    pub state_min_reader: u32,
    /// Oldest version that this plugin reads; <= state_version.
    pub state_oldest_read: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Goes to `state` by one arc; the host asks for no others than these:
    /// STOP<->RUNNING (without P2P), STOP<->RUNNING_P2P, RUNNING<->RUNNING_P2P, STOP<->STOP_COPY,
    /// STOP<->RESUMING, RUNNING<->PRE_COPY, PRE_COPY->STOP_COPY (without P2P), PRE_COPY<->PRE_COPY_P2P,
    /// RUNNING_P2P<->PRE_COPY_P2P, PRE_COPY_P2P->STOP_COPY.
    /// The whole change is done on return; the plugin never changes the state by itself. When it
    /// returns STOP or STOP_COPY, accesses in flight have ended and its workers are parked.
    /// RESUMING->STOP checks and takes what was written; all that is wrong with it must be found
    /// here at the latest. A failure leaves the old state, or ERROR (DROGHER_ERR_FATAL). The host
    /// asks `get_state` after each call and believes neither alone.
    /// [serialised] [deadline: state]
    pub set_state: Option<unsafe extern "C" fn(dev: *mut c_void, state: u32) -> i32>,
    /// The present state.
    /// [serialised] [deadline: call]
    pub get_state: Option<unsafe extern "C" fn(dev: *mut c_void, state: *mut u32) -> i32>,
    /// Called in the pre-copy states only. NULL without PRE_COPY.
    /// [serialised] [deadline: call]
    pub precopy_info: Option<unsafe extern "C" fn(dev: *mut c_void, out: *mut PrecopyInfo) -> i32>,
    /// Estimate of the bytes that STOP_COPY would give if the device stopped now. In any state but
    /// ERROR. A device that then gives very much more may be refused.
    /// [serialised] [deadline: call]
    pub stop_copy_size: Option<unsafe extern "C" fn(dev: *mut c_void, bytes: *mut u64) -> i32>,
    /// Reads the next state data: `*done` <= `len` bytes into `data`, more than 0 (`len` is). In a pre-copy
    /// state DROGHER_ERR_NOMSG says: no more for now. In STOP_COPY DROGHER_OK with `*done` 0 says:
    /// the end, now and for ever.
    /// [serialised] [deadline: call]
    pub read: Option<
        unsafe extern "C" fn(dev: *mut c_void, data: *mut c_void, len: u64, done: *mut u64) -> i32,
    >,
    /// Takes all `len` bytes in RESUMING. The data may come from anywhere: trust no length, index or
    /// value in them.
    /// [serialised] [deadline: call]
    pub write: Option<unsafe extern "C" fn(dev: *mut c_void, data: *const c_void, len: u64) -> i32>,
}
