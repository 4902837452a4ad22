//! `drogher.dma/1`, offered by the host.

use crate::HostCtx;
use core::ffi::c_void;

/// Id of the host's DMA table.
pub const DROGHER_EXT_DMA: &core::ffi::CStr = c"drogher.dma/1";

/// DMA. Addresses are IOVAs of the requester named, which `create` was given; each access goes
/// through its translation and permissions and marks what it writes as dirty. No pointer to guest
/// memory leaves the host here.
///
/// Memory model: an aligned access of 1, 2, 4 or 8 bytes is single-copy atomic. Calls of one thread
/// take effect in program order, as all observers see it, also towards a following `irq`. Inside one
/// longer access order is undefined. Atomic operations are sequentially consistent.
///
/// Status: DROGHER_OK; DROGHER_ERR_FAULT with `*done` = bytes accessed, from the start, before the
/// fault; DROGHER_ERR_PERM where the device may do no DMA (state, NDMA or ERROR), also in the middle
/// of an access; DROGHER_ERR_BUSY if too many threads do DMA, or another device takes no more for now:
/// `*done` bytes were accessed, try the rest later; DROGHER_ERR_NOENT for an unknown requester;
/// DROGHER_ERR_INVAL for NULL, a length that cannot be, a misaligned atomic operation;
/// DROGHER_ERR_SHUTDOWN. `done` and `old` may be NULL. `len` 0 is allowed and does nothing.
///
/// `write` and `fill` reach the BARs of other devices too, where the configuration allows it. Such a
/// write is posted: it returns before the other device has it, and those of one thread arrive in order,
/// cut into naturally aligned accesses of 1, 2, 4 and 8 bytes. In RUNNING_P2P and PRE_COPY_P2P they
/// are not allowed (DROGHER_ERR_PERM). Reads and atomic operations there are faults, and so is the
/// device's own BAR.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Dma {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// 0 in this version.
    pub flags: u32,
    /// Reads guest memory into `data`; what lies behind `*done` bytes is unchanged.
    /// [any]
    pub read: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            data: *mut c_void,
            len: u64,
            done: *mut u64,
        ) -> i32,
    >,
    /// Writes `data` to guest memory, or to another device.
    /// [any]
    pub write: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            data: *const c_void,
            len: u64,
            done: *mut u64,
        ) -> i32,
    >,
    /// Sets `len` bytes of guest memory, or of another device, to `byte`.
    /// [any]
    pub fill: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            byte: u8,
            len: u64,
            done: *mut u64,
        ) -> i32,
    >,
    /// Adds, wrapping; `*old` is the value before. `iova` must be a multiple of 4.
    /// [any]
    pub fetch_add_u32: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            add: u32,
            old: *mut u32,
        ) -> i32,
    >,
    /// As above for 64 bits; `iova` must be a multiple of 8.
    /// [any]
    pub fetch_add_u64: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            add: u64,
            old: *mut u64,
        ) -> i32,
    >,
    /// Stores `desired` if the value is `expected`; `*old` is the value before. Multiple of 4.
    /// [any]
    pub compare_swap_u32: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            expected: u32,
            desired: u32,
            old: *mut u32,
        ) -> i32,
    >,
    /// As above for 64 bits; multiple of 8.
    /// [any]
    pub compare_swap_u64: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            expected: u64,
            desired: u64,
            old: *mut u64,
        ) -> i32,
    >,
}
