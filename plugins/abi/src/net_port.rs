//! `drogher.net-port/1`, offered by both sides: Ethernet ports, and the wires in them.

use crate::HostCtx;
use core::ffi::c_void;

/// Id of the plugin's word about its ports, and of the host's wires.
pub const DROGHER_EXT_NET_PORT: &core::ffi::CStr = c"drogher.net-port/1";

/// Most ports of a device.
pub const DROGHER_NET_PORTS_MAX: u32 = 8;
/// Most bytes of a frame, from the destination address on, without FCS.
pub const DROGHER_NET_FRAME_MAX: u64 = 0x1_0000;
/// Fewest: two addresses and a type.
pub const DROGHER_NET_FRAME_MIN: u64 = 14;
/// Longest wait of one call, in ms.
pub const DROGHER_NET_WAIT_MAX_MS: u32 = 1000;

/// What a plugin says of its ports. Zeroed and sized by the host, filled in by the plugin.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NetPorts {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// Ports: 1 to DROGHER_NET_PORTS_MAX. They are counted from 0.
    pub count: u32,
}

/// The plugin's side. What is at the other end of a port is the operator's choice, and may be nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NetPort {
    /// sizeof, as the plugin was compiled.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Fills in how many ports this instance has; constant during its life. Called after `create`.
    /// [serialised] [deadline: call]
    pub get: Option<unsafe extern "C" fn(dev: *mut c_void, out: *mut NetPorts) -> i32>,
}

/// The host's side. Frames pass where DMA and interrupts do: in the running states, outside NDMA. Where
/// they do not, those that arrive wait, as far as there is room; what then finds none, or a wire that is
/// down, is dropped and counted, as on a real wire. A frame that waits when the device is moved is
/// dropped, unless the device has taken it before: frames in its hands belong into its state.
///
/// Status: DROGHER_OK; DROGHER_ERR_PERM in a state that allows no frames, or in NDMA; DROGHER_ERR_NOENT
/// for a port that the plugin did not declare; DROGHER_ERR_INVAL for NULL or a length that no frame
/// has; DROGHER_ERR_SHUTDOWN. No function but `wait` blocks.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct NetPortHost {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// 0 in this version.
    pub flags: u32,
    /// Sends a frame of DROGHER_NET_FRAME_MIN to DROGHER_NET_FRAME_MAX bytes; it is copied. DROGHER_OK
    /// also if it is dropped.
    /// [any]
    pub send: Option<
        unsafe extern "C" fn(ctx: *mut HostCtx, port: u32, data: *const c_void, len: u64) -> i32,
    >,
    /// Takes the first frame that waits: into `data`, of `cap` bytes, its length into `*len`.
    /// DROGHER_ERR_NOMSG if there is none; DROGHER_ERR_RANGE, with the length needed, if there is no
    /// room for it: it then stays the first.
    /// [any]
    pub receive: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            port: u32,
            data: *mut c_void,
            cap: u64,
            len: *mut u64,
        ) -> i32,
    >,
    /// Returns when a frame may be received at a port of `ports` (bit n: port n), with those ports in
    /// `*ready`; when `wake` was called, or after `timeout_ms`, at most DROGHER_NET_WAIT_MAX_MS, with
    /// none. While no frames pass it waits for the latter two. For a thread of the plugin's own, and
    /// for one at a time.
    /// [any]
    pub wait: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            ports: u64,
            timeout_ms: u32,
            ready: *mut u64,
        ) -> i32,
    >,
    /// Ends the `wait` that is under way, or else the next one.
    /// [any]
    pub wake: Option<unsafe extern "C" fn(ctx: *mut HostCtx) -> i32>,
}
