//! `drogher.pci-caps/1`, offered by a plugin: capabilities of its own below 0x100.

use core::ffi::c_void;

/// Id of the plugin's PCI capabilities.
pub const DROGHER_EXT_PCI_CAPS: &core::ffi::CStr = c"drogher.pci-caps/1";

/// The id of a vendor-specific capability, the only one that a plugin may have; all others are the
/// host's.
pub const DROGHER_PCI_CAP_VENDOR: u8 = 9;
/// Most bytes of one capability.
pub const DROGHER_PCI_CAP_LEN_MAX: u8 = 64;
/// Most capabilities of a device. All of them, each rounded up to 4 bytes, have to fit into the 172
/// bytes that the host leaves.
pub const DROGHER_PCI_CAPS_MAX: u32 = 16;

/// What lies behind the first three bytes is the plugin's to `read` and `write`; `data` is not looked
/// at there.
pub const DROGHER_PCI_CAP_ACCESS: u32 = 1;
/// All flags of this version. The others must be 0.
pub const DROGHER_PCI_CAP_FLAGS: u32 = 1;

/// One capability. Zeroed and sized by the host, filled in by the plugin.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PciCap {
    /// sizeof, as the host was compiled.
    pub size: u32,
    /// DROGHER_PCI_CAP_ACCESS.
    pub flags: u32,
    /// DROGHER_PCI_CAP_VENDOR.
    pub id: u8,
    /// Bytes of it, its id, pointer and length included: 4 to DROGHER_PCI_CAP_LEN_MAX.
    pub length: u8,
    /// Must be 0.
    pub reserved: [u8; 6],
    /// Its bytes, constant for the guest. The first three, id, pointer and length, are the host's and
    /// must be 0; so must be those from `length` on.
    pub data: [u8; 64],
}

/// Capabilities of a device in the list that begins at offset 0x34, behind the host's own, in order.
/// Constant during the life of an instance.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PciCaps {
    /// sizeof, as the plugin was compiled.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Fills in capability `n`; DROGHER_ERR_NOENT behind the last one. Called after `create`.
    /// [serialised] [deadline: call]
    pub get: Option<unsafe extern "C" fn(dev: *mut c_void, n: u32, out: *mut PciCap) -> i32>,
    /// Reads `len` bytes of capability `n`, which has DROGHER_PCI_CAP_ACCESS, from its byte `offset`
    /// on: 3 or more, and inside it. In any state but ERROR. On failure the guest reads all ones. NULL
    /// if no capability has the flag.
    /// [serialised] [deadline: call]
    pub read: Option<
        unsafe extern "C" fn(
            dev: *mut c_void,
            n: u32,
            offset: u32,
            data: *mut c_void,
            len: u32,
        ) -> i32,
    >,
    /// Writes to it; likewise. On failure the write is lost.
    /// [serialised] [deadline: call]
    pub write: Option<
        unsafe extern "C" fn(
            dev: *mut c_void,
            n: u32,
            offset: u32,
            data: *const c_void,
            len: u32,
        ) -> i32,
    >,
}
