//! `drogher.dma-log/1`, offered by both sides: a device's own log of the pages that it writes to.

use crate::HostCtx;
use core::ffi::c_void;

/// Id of the plugin's log, and of the host's writes that say where they landed.
pub const DROGHER_EXT_DMA_LOG: &core::ffi::CStr = c"drogher.dma-log/1";

/// Smallest tracking page, in bytes.
pub const DROGHER_DMA_LOG_PAGE_MIN: u64 = 4096;
/// Largest tracking page, in bytes.
pub const DROGHER_DMA_LOG_PAGE_MAX: u64 = 0x20_0000;
/// Most ranges of one start.
pub const DROGHER_DMA_LOG_RANGES_MAX: u32 = 256;

/// The plugin sets bits in the bitmap that `start` gets, by atomic OR with release order, after the
/// store; the host takes them there by itself, at any time. There is no `report`.
pub const DROGHER_DMA_LOG_SHARED: u32 = 1;
/// All flags of this version. The others must be 0.
pub const DROGHER_DMA_LOG_FLAGS: u32 = 1;

/// Bytes `gpa` to `gpa + len` of the guest's physical address space, not beyond 2^64. Never grows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpaRange {
    /// First byte.
    pub gpa: u64,
    /// Bytes.
    pub len: u64,
}

/// Room for where a write landed. Never grows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GpaRuns {
    /// Room for `capacity` runs; the first `count` are filled in, in the order of the bytes written.
    pub runs: *mut GpaRange,
    /// At least 1.
    pub capacity: u64,
    /// Set by the host; also on failure, where it says what was written before.
    pub count: u64,
}

/// What `start` gets, valid during the call, except `words` and `fd`: see there.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LogStart {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// 0 in this version.
    pub flags: u32,
    /// What to log: `range_count` ranges of whole tracking pages, sorted, apart, inside the address
    /// width. Other writes need not be logged.
    pub ranges: *const GpaRange,
    /// 1 to the plugin's `max_ranges`.
    pub range_count: u64,
    /// The tracking page size wished, in bytes, from min_page to max_page. The plugin stores the one
    /// that it takes; with DROGHER_DMA_LOG_SHARED that is this one.
    pub page_size: u64,
    /// DROGHER_DMA_LOG_SHARED: the bitmap, zeroed, valid until `stop`, `reset` or `destroy` returns.
    /// Bit b of word w is the page at `first_gpa + ((64 * w + b) << page_shift)`. NULL without it.
    pub words: *mut u64,
    /// Words of the bitmap.
    pub word_count: u64,
    /// First byte of its first page.
    pub first_gpa: u64,
    /// Logarithm of `page_size` to base 2.
    pub page_shift: u32,
    /// The memfd that holds the bitmap from its first byte on, so that another process of the plugin's
    /// may map it; its size cannot change. Valid as long as `words`; the host's to close. -1 without.
    pub fd: i32,
}

/// A device's log of its own writes, by GPA. It is started and stopped here and by nothing else: no
/// migration state begins or ends it, nor does it change what the device does.
///
/// The bit of a page is set after the store; so a write that a report misses is in the next one, and
/// after `set_state` has returned STOP or STOP_COPY, or `ndma.enter` has returned, none is missing.
/// `reset` ends logging. Every write of the device to the ranges is in its log: those through the
/// host's table of the same id, and those to pinned memory, of which `pin` says the GPA.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DmaLog {
    /// sizeof, as the plugin was compiled.
    pub size: u32,
    /// DROGHER_DMA_LOG_*.
    pub flags: u32,
    /// Smallest tracking page in bytes: a power of two, 4 KiB to 2 MiB.
    pub min_page: u64,
    /// Largest; as above, not below min_page.
    pub max_page: u64,
    /// Most ranges of one `start`, 1 to DROGHER_DMA_LOG_RANGES_MAX.
    pub max_ranges: u32,
    /// Must be 0.
    pub reserved: u32,
    /// From its return on, writes to the ranges are logged. Called when no log runs, in any state but
    /// ERROR. On failure nothing is logged, and nothing kept of `info`.
    /// [serialised] [deadline: call]
    pub start: Option<unsafe extern "C" fn(dev: *mut c_void, info: *mut LogStart) -> i32>,
    /// Moves what was logged in `len` bytes from `gpa`, whole tracking pages inside one range, into
    /// `words`: bit b of word w is page 64 * w + b from there. The words are zeroed, `word_count` is
    /// what the pages need; bits beyond the last page stay 0. On failure what it took may be lost: the
    /// host then takes all memory as written. NULL with DROGHER_DMA_LOG_SHARED.
    /// [serialised] [deadline: call]
    pub report: Option<
        unsafe extern "C" fn(
            dev: *mut c_void,
            gpa: u64,
            len: u64,
            words: *mut u64,
            word_count: u64,
        ) -> i32,
    >,
    /// Ends logging and forgets what was not reported. Called when a log runs, in any state but ERROR.
    /// On return the plugin does not touch the bitmap any more.
    /// [serialised] [deadline: call]
    pub stop: Option<unsafe extern "C" fn(dev: *mut c_void) -> i32>,
}

/// The host's part: the writes of `drogher_dma`, with the same status and memory model, that also say
/// where they landed: an IOVA cannot be translated later. What they store is marked dirty by the host
/// as well. `runs` NULL, or without room for one run, is DROGHER_ERR_INVAL.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DmaLogHost {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// 0 in this version.
    pub flags: u32,
    /// As `write` of `drogher_dma`. If it lands on more runs than there is room for it ends there,
    /// with DROGHER_OK and `*done` less than `len`: go on from there with the room cleared.
    /// [any]
    pub write: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            data: *const c_void,
            len: u64,
            done: *mut u64,
            runs: *mut GpaRuns,
        ) -> i32,
    >,
    /// As `fill` of `drogher_dma`, likewise.
    /// [any]
    pub fill: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            byte: u8,
            len: u64,
            done: *mut u64,
            runs: *mut GpaRuns,
        ) -> i32,
    >,
    /// As there; one run.
    /// [any]
    pub fetch_add_u32: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            add: u32,
            old: *mut u32,
            runs: *mut GpaRuns,
        ) -> i32,
    >,
    /// As there; one run.
    /// [any]
    pub fetch_add_u64: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            add: u64,
            old: *mut u64,
            runs: *mut GpaRuns,
        ) -> i32,
    >,
    /// As there; one run, written or not.
    /// [any]
    pub compare_swap_u32: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            expected: u32,
            desired: u32,
            old: *mut u32,
            runs: *mut GpaRuns,
        ) -> i32,
    >,
    /// As there; one run, written or not.
    /// [any]
    pub compare_swap_u64: Option<
        unsafe extern "C" fn(
            ctx: *mut HostCtx,
            requester: u32,
            iova: u64,
            expected: u64,
            desired: u64,
            old: *mut u64,
            runs: *mut GpaRuns,
        ) -> i32,
    >,
}
