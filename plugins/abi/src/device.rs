//! The core verbs of a device.

use crate::{HostCtx, HostTable, Str};
use core::ffi::c_void;

/// Largest region, in bytes.
pub const DROGHER_REGION_SIZE_MAX: u64 = 0x1_0000_0000;
/// Smallest region, in bytes.
pub const DROGHER_REGION_SIZE_MIN: u64 = 16;
/// BAR indices 0 to 3 are the plugin's; 4 and 5 are the host's (MSI-X table and PBA).
pub const DROGHER_REGIONS_MAX: u32 = 4;
/// Most MSI-X vectors of a device.
pub const DROGHER_VECTORS_MAX: u32 = 2048;
/// Most doorbells of a device.
pub const DROGHER_DOORBELLS_MAX: u32 = 1024;

/// I/O ports instead of memory.
pub const DROGHER_REGION_IO: u32 = 1;
/// 64-bit memory BAR: takes its own index and the next.
pub const DROGHER_REGION_64BIT: u32 = 2;
/// Prefetchable memory.
pub const DROGHER_REGION_PREFETCH: u32 = 4;
/// All region flags of this version. The others (mapped areas will be one) are refused.
pub const DROGHER_REGION_FLAGS: u32 = 7;

/// One parameter given at creation. The texts are valid during the call. Never grows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct KeyValue {
    /// Name, without duplicates.
    pub key: Str,
    /// Value as text.
    pub value: Str,
}

/// What `create` gets. Valid during the call, except `host`, which is valid for ever, and
/// `host_ctx`, see there.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CreateInfo {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// 0 in this version.
    pub flags: u32,
    /// The host's functions.
    pub host: *const HostTable,
    /// First argument of the host's functions. Valid until `destroy` returns, or this `create` if it
    /// fails; longer with `retain`.
    pub host_ctx: *mut HostCtx,
    /// The instance's name in messages.
    pub name: Str,
    /// `param_count` parameters. Unknown ones are the plugin's to refuse, unless it has params/1:
    /// then the host has refused them.
    pub params: *const KeyValue,
    /// Number of parameters.
    pub param_count: u64,
    /// The requester handle of the device's own requester ID, for the functions of `drogher_dma`.
    /// Handles of further ones (functions, PASIDs) will come from an extension.
    pub requester: u32,
    /// 0 in this version.
    pub reserved: u32,
}

/// What a device is; constant during the life of an instance. The host zeroes it and sets `size`;
/// the plugin fills in the rest, but no field that lies beyond `size`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DeviceInfo {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// PCI vendor id; not 0 or 0xFFFF.
    pub vendor_id: u16,
    /// PCI device id.
    pub device_id: u16,
    /// PCI subsystem vendor id.
    pub subsystem_vendor_id: u16,
    /// PCI subsystem id.
    pub subsystem_id: u16,
    /// PCI class code: base class << 16 | sub-class << 8 | programming interface.
    pub class_code: u32,
    /// PCI revision id.
    pub revision: u8,
    /// Must be 0.
    pub reserved: [u8; 3],
    /// Number of regions, at most DROGHER_REGIONS_MAX.
    pub region_count: u32,
    /// Number of MSI-X vectors, at most DROGHER_VECTORS_MAX; 0: none.
    pub vector_count: u32,
    /// Number of doorbells, at most DROGHER_DOORBELLS_MAX.
    pub doorbell_count: u32,
    /// Device-specific area of the PCI configuration space: offset, a multiple of 4, at least 0x100
    /// (below it all is the host's). 0 if there is none.
    pub config_offset: u32,
    /// Length of that area in bytes, a multiple of 4; offset + length at most 0x1000.
    pub config_len: u32,
    /// Must be 0.
    pub reserved2: u32,
}

/// One region (PCI BAR). Zeroed and sized by the host, filled in by the plugin.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RegionInfo {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// DROGHER_REGION_*; unknown bits are refused.
    pub flags: u32,
    /// BAR index, and the `region` of region_read and region_write.
    pub index: u32,
    /// Reserved for mapped areas; must be 0.
    pub map_flags: u32,
    /// Length in bytes: a power of two.
    pub length: u64,
    /// Reserved for mapped areas; must be 0.
    pub map_offset: u64,
    /// Reserved for mapped areas; must be 0.
    pub map_length: u64,
    /// Reserved for mapped areas; must be 0.
    pub map_fd: i32,
    /// Must be 0.
    pub reserved: u32,
}

/// A doorbell: a place in a region where a write of any value, of exactly this width, only says
/// "look". The host may take such writes without stopping the guest (ioeventfd), may merge several
/// into one, and calls `doorbell`, never `region_write`, for them. Reads there, and writes of another
/// width, are `region_read` and `region_write` as anywhere. Doorbells do not overlap.
/// Zeroed and sized by the host, filled in by the plugin.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DoorbellInfo {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// Must be 0 (reserved for matching the value).
    pub flags: u32,
    /// Region (BAR index).
    pub region: u32,
    /// Width in bytes: 1, 2, 4 or 8.
    pub width: u32,
    /// Offset in the region, a multiple of the width.
    pub offset: u64,
    /// Must be 0.
    pub match_value: u64,
}

/// The core verbs. `dev` is what `create` stored. Functions may be NULL only where it is said.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DeviceOps {
    /// sizeof, as the plugin was compiled.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Makes an instance and stores its pointer (not NULL) in `*dev_out`. The instance is as after
    /// power-on, and stopped (state STOP): no DMA, no interrupt before `set_state` lets it run. A
    /// device without migration/1 is not told: it runs whenever its DMA and interrupts are let
    /// through. On failure `*dev_out` is ignored, `destroy` is not called, and nothing of it may be
    /// left running.
    /// [serialised: with every create of this plugin] [deadline: call, together with the describe,
    /// region_info, doorbell_info and get_extension that follow]
    pub create:
        Option<unsafe extern "C" fn(info: *const CreateInfo, dev_out: *mut *mut c_void) -> i32>,
    /// Ends the instance; on return nothing of it runs and no host function will be called with its
    /// `host_ctx` (unless retained). Called in any state, also in ERROR. A process may end without it.
    /// [serialised] [deadline: call]
    pub destroy: Option<unsafe extern "C" fn(dev: *mut c_void)>,
    /// Fills in what the device is. Called once, right after `create`.
    /// [serialised] [deadline: call]
    pub describe: Option<unsafe extern "C" fn(dev: *mut c_void, out: *mut DeviceInfo) -> i32>,
    /// Fills in region number `n` (not the BAR index), `n` < region_count. NULL if there is none.
    /// [serialised] [deadline: call]
    pub region_info:
        Option<unsafe extern "C" fn(dev: *mut c_void, n: u32, out: *mut RegionInfo) -> i32>,
    /// Fills in doorbell `n` < doorbell_count. NULL if there is none.
    /// [serialised] [deadline: call]
    pub doorbell_info:
        Option<unsafe extern "C" fn(dev: *mut c_void, n: u32, out: *mut DoorbellInfo) -> i32>,
    /// Back to power-on contents, out of ERROR and NDMA, sessions dropped, pending doorbells
    /// forgotten; the state is then STOP, and on return nothing runs. Parameters keep their values.
    /// In any state. A failure leaves the device in ERROR.
    /// [serialised] [deadline: state]
    pub reset: Option<unsafe extern "C" fn(dev: *mut c_void) -> i32>,
    /// Reads `len` bytes of the device-specific configuration area. `offset` is the one in the
    /// configuration space; the access lies inside the area, and may be of any length and alignment.
    /// In any state but ERROR. NULL if there is no such area.
    /// [serialised] [deadline: call]
    pub config_read: Option<
        unsafe extern "C" fn(dev: *mut c_void, offset: u32, data: *mut c_void, len: u32) -> i32,
    >,
    /// Writes to that area. NULL if there is no such area.
    /// [serialised] [deadline: call]
    pub config_write: Option<
        unsafe extern "C" fn(dev: *mut c_void, offset: u32, data: *const c_void, len: u32) -> i32,
    >,
    /// Reads `len` bytes (the guest's access width, 1 to 8; aligned or not) at `offset` of a region,
    /// little endian. The access lies inside the region. Called only in the states RUNNING,
    /// RUNNING_P2P, PRE_COPY and PRE_COPY_P2P. On failure the guest reads all ones. NULL if there
    /// is no region.
    /// [serialised] [deadline: call]
    pub region_read: Option<
        unsafe extern "C" fn(
            dev: *mut c_void,
            region: u32,
            offset: u64,
            data: *mut c_void,
            len: u32,
        ) -> i32,
    >,
    /// Writes to a region; as above. On failure the write is lost.
    /// [serialised] [deadline: call]
    pub region_write: Option<
        unsafe extern "C" fn(
            dev: *mut c_void,
            region: u32,
            offset: u64,
            data: *const c_void,
            len: u32,
        ) -> i32,
    >,
    /// Doorbell `n` was rung, once or more. While the device may not act (NDMA, STOP, STOP_COPY) it
    /// latches the fact, which is part of its state. Not called in RESUMING and ERROR, nor in
    /// STOP_COPY once the first state data were read. NULL if there is none.
    /// [serialised] [deadline: call]
    pub doorbell: Option<unsafe extern "C" fn(dev: *mut c_void, n: u32) -> i32>,
}
