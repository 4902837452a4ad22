//! `drogher.dma-pin/1`, offered by both sides: guest memory by pointer.

use crate::HostCtx;
use core::ffi::c_void;

/// Id of the plugin's side of pinning, and of the host's.
pub const DROGHER_EXT_DMA_PIN: &core::ffi::CStr = c"drogher.dma-pin/1";

/// The device writes to what it has pinned and to nothing else. Its writes through `drogher_dma` and
/// `drogher_dma_log_host` are refused.
pub const DROGHER_PIN_ONLY: u32 = 1;
/// All flags of this version. The others must be 0.
pub const DROGHER_PIN_FLAGS: u32 = 1;

/// To read.
pub const DROGHER_PIN_READ: u32 = 1;
/// To write.
pub const DROGHER_PIN_WRITE: u32 = 2;
/// To read and write.
pub const DROGHER_PIN_READ_WRITE: u32 = 3;

/// Most bytes of one pin.
pub const DROGHER_PIN_LEN_MAX: u64 = 0x400_0000;
/// Most pins of one device at a time.
pub const DROGHER_PINS_MAX: u32 = 0x1_0000;

/// Memory pinned. Never grows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Pinned {
    /// The first byte, in the process that asked; aligned as the IOVA is, up to 8 bytes. The guest and
    /// other devices access it too: use atomic or volatile accesses.
    pub ptr: *mut c_void,
    /// Bytes from there. After DROGHER_ERR_RANGE: how many could be pinned from this IOVA on.
    pub len: u64,
    /// For `unpin`; not 0.
    pub handle: u64,
    /// Where the first byte lies in the guest's physical address space, and the others after it: for a
    /// log of the plugin's own.
    pub gpa: u64,
}

/// The plugin's side. Needs `drogher.migration/1`: a device that is not told of STOP could not unpin.
///
/// A page pinned for writing counts as dirty at each harvest for as long as it is pinned, and once more
/// when it is unpinned. No pin for writing may be left when `set_state` returns STOP, STOP_COPY or
/// RESUMING, and none at all when `reset` returns: the device is in ERROR otherwise. In NDMA pins may
/// stay, but nothing is written. What is still pinned at `destroy` is given back by the host.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DmaPin {
    /// sizeof, as the plugin was compiled.
    pub size: u32,
    /// DROGHER_PIN_ONLY.
    pub flags: u32,
    /// This range of IOVA is about to be unmapped: on return every pin that overlaps it was given back
    /// by `unpin`, and is not used any more. Only called if there is one. A failure, or a pin that is
    /// left, leads to ERROR.
    /// [serialised] [deadline: call]
    pub unmap: Option<unsafe extern "C" fn(dev: *mut c_void, iova: u64, len: u64) -> i32>,
}

/// The host's side. Pins go by IOVA, through the translation and permissions of the requester, and stay
/// with the memory that was there, whatever becomes of the translation.
///
/// Status: DROGHER_OK; DROGHER_ERR_PERM where the device may do no DMA (state, NDMA or ERROR), `unpin`
/// apart; DROGHER_ERR_FAULT for what is not mapped, not permitted, or beyond the address width;
/// DROGHER_ERR_INVAL for NULL, no bytes, a range that wraps, an access that is none;
/// DROGHER_ERR_NOENT for an unknown requester or handle; DROGHER_ERR_NOTSUP if the plugin does not
/// offer this extension itself; DROGHER_ERR_SHUTDOWN.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DmaPinHost {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// 0 in this version.
    pub flags: u32,
    /// Pins `len` bytes for DROGHER_PIN_READ or other. DROGHER_ERR_RANGE, with `out->len`, if they do not
    /// lie together in memory or are more than DROGHER_PIN_LEN_MAX; DROGHER_ERR_NOMEM for one pin too
    /// many; DROGHER_ERR_BUSY for a range that is being unmapped.
    /// [any]
    pub pin: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            len: u64,
            access: u32,
            out: *mut Pinned,
        ) -> i32,
    >,
    /// Gives a pin back: what it pinned is not used any more. In any state, once each.
    /// [any]
    pub unpin: Option<unsafe extern "C" fn(ctx: *mut HostCtx, handle: u64) -> i32>,
    /// The pages of this range were written to by a way that the host does not see: they count as dirty
    /// once. After the store, and before STOP or NDMA is entered.
    /// [any]
    pub mark_dirty:
        Option<unsafe extern "C" fn(ctx: *mut HostCtx, requester: u32, iova: u64, len: u64) -> i32>,
}
