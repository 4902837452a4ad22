//! Status codes: 0 or a negative number with the meaning of the Linux errno of that value.

/// Success.
pub const DROGHER_OK: i32 = 0;
/// Not allowed in this state: for example DMA while the device is stopped.
pub const DROGHER_ERR_PERM: i32 = -1;
/// No such parameter, vector, region, requester.
pub const DROGHER_ERR_NOENT: i32 = -2;
/// The device failed at something that it can survive.
pub const DROGHER_ERR_IO: i32 = -5;
/// Out of memory.
pub const DROGHER_ERR_NOMEM: i32 = -12;
/// A DMA access faulted: unmapped, no permission, outside memory. `*done` bytes were accessed.
pub const DROGHER_ERR_FAULT: i32 = -14;
/// Busy; try again later.
pub const DROGHER_ERR_BUSY: i32 = -16;
/// A wrong argument: misaligned, out of range, malformed state data.
pub const DROGHER_ERR_INVAL: i32 = -22;
/// Too large for the buffer; the length that was needed is reported.
pub const DROGHER_ERR_RANGE: i32 = -34;
/// `read` of the migration extension in a pre-copy state: no more data for now.
pub const DROGHER_ERR_NOMSG: i32 = -42;
/// Not supported.
pub const DROGHER_ERR_NOTSUP: i32 = -95;
/// The instance is shut down, or the host has given it up: no host function works any more.
pub const DROGHER_ERR_SHUTDOWN: i32 = -108;
/// The device is broken and its state undefined. A plugin that returns this is moved to ERROR; only
/// a reset may bring it back. Every other negative status refuses one call and changes nothing.
pub const DROGHER_ERR_FATAL: i32 = -131;
