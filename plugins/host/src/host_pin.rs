//! `drogher.dma-pin/1`, the host's side.
//!
//! The invariant is that of `host_table.rs`. A pointer that goes out stays good for as long as the
//! context holds the requester, and so its domain and memory: until after `destroy`.
#![expect(unsafe_code, reason = "C functions with raw pointers from plugins")]

use crate::context::{Context, DeviceSide};
use crate::host_table::{context, device, failed};
use crate::pin_table::{Given, PinRefusal, PinTable};
use core::ptr::null_mut;
use drogher_iommu::Access;
use drogher_plugin_abi as abi;
use std::sync::atomic::Ordering;

pub(crate) static TABLE: abi::DmaPinHost = abi::DmaPinHost {
    size: size_of::<abi::DmaPinHost>() as u32,
    flags: 0,
    pin: Some(pin),
    unpin: Some(unpin),
    mark_dirty: Some(mark_dirty),
};

/// The device and its pins; a range that may be accessed.
///
/// # Safety
/// As [`device`].
unsafe fn checked<'a>(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    len: u64,
) -> Result<(&'a Context, &'a DeviceSide, &'a PinTable), i32> {
    // SAFETY: the caller's promise.
    let (context, device) = unsafe { device(ctx, requester) }?;
    let pins = context.pins.get().ok_or(abi::DROGHER_ERR_NOTSUP)?;
    if len == 0 || iova.checked_add(len - 1).is_none() {
        return Err(abi::DROGHER_ERR_INVAL);
    }
    if device.requester.is_revoked() {
        // Without a fault in the domain's log: nothing was accessed.
        context.dma_refused.fetch_add(1, Ordering::Relaxed);
        return Err(abi::DROGHER_ERR_PERM);
    }
    Ok((context, device, pins))
}

/// The status of a refusal.
fn refused(context: &Context, refusal: &PinRefusal) -> i32 {
    match refusal {
        PinRefusal::Dma(error) => failed(context, error),
        PinRefusal::Short(_) => abi::DROGHER_ERR_RANGE,
        PinRefusal::TooMany => abi::DROGHER_ERR_NOMEM,
        PinRefusal::Unmapping => abi::DROGHER_ERR_BUSY,
        PinRefusal::NoMemory => abi::DROGHER_ERR_FAULT,
    }
}

unsafe extern "C" fn pin(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    len: u64,
    access: u32,
    out: *mut abi::Pinned,
) -> i32 {
    if out.is_null() {
        return abi::DROGHER_ERR_INVAL;
    }
    let mut answer = abi::Pinned { ptr: null_mut(), len: 0, handle: 0, gpa: 0 };
    // SAFETY: the plugin's promises.
    let result = unsafe { checked(ctx, requester, iova, len) };
    let status = result.and_then(|(context, device, pins)| {
        let access = match access {
            abi::DROGHER_PIN_READ => Access::Read,
            abi::DROGHER_PIN_WRITE => Access::Write,
            abi::DROGHER_PIN_READ_WRITE => Access::Atomic,
            _ => return Err(abi::DROGHER_ERR_INVAL),
        };
        let given = pins.pin(&device.requester, iova, len, access).map_err(|refusal| {
            if let PinRefusal::Short(possible) = refusal {
                answer.len = possible;
            }
            refused(context, &refusal)
        })?;
        let Given { ptr, handle, gpa } = given;
        answer = abi::Pinned { ptr: ptr.as_ptr().cast(), len, handle, gpa: gpa.0 };
        Ok(())
    });
    // SAFETY: not NULL, and the plugin's promise.
    unsafe { out.write_unaligned(answer) };
    status.map_or_else(|status| status, |()| abi::DROGHER_OK)
}

unsafe extern "C" fn unpin(ctx: *mut abi::HostCtx, handle: u64) -> i32 {
    // SAFETY: the plugin's promises.
    let Some(context) = (unsafe { context(ctx) }) else { return abi::DROGHER_ERR_INVAL };
    if context.is_shut() {
        return abi::DROGHER_ERR_SHUTDOWN;
    }
    match context.pins.get() {
        None => abi::DROGHER_ERR_NOTSUP,
        Some(pins) if pins.unpin(handle) => abi::DROGHER_OK,
        Some(_) => abi::DROGHER_ERR_NOENT,
    }
}

unsafe extern "C" fn mark_dirty(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    len: u64,
) -> i32 {
    // SAFETY: the plugin's promises.
    let result = unsafe { checked(ctx, requester, iova, len) };
    let marked = result.and_then(|(context, device, pins)| {
        let marked = pins.mark_dirty(&device.requester, iova, len);
        marked.map_err(|refusal| refused(context, &refusal))
    });
    marked.map_or_else(|status| status, |()| abi::DROGHER_OK)
}
