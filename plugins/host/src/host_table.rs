//! The functions that plugins call.
//!
//! Invariant of this module: `host_ctx` is an `Arc<Context>` in raw form whose count the caller holds
//! up (the instance itself until after `destroy`, or by `retain`); the interface obliges plugins to
//! use no other. Nothing here panics or calls into a plugin.
#![expect(unsafe_code, reason = "C functions with raw pointers from plugins")]

use crate::context::{Context, DeviceSide, Irq, LogLevel};
use crate::{host_log, host_pin, text};
use core::ffi::{c_char, c_void};
use drogher_iommu::{DmaError, FaultReason, Requester, RequesterStats};
use drogher_iommu_types::Iova;
use drogher_plugin_abi as abi;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The handle of a device's own requester.
pub(crate) const OWN_REQUESTER: u32 = 0;

pub(crate) static HOST: abi::HostTable = abi::HostTable {
    size: size_of::<abi::HostTable>() as u32,
    abi_major: abi::DROGHER_ABI_MAJOR,
    abi_minor: abi::DROGHER_ABI_MINOR,
    flags: 0,
    host_name: abi::Str::from_static(concat!("drogher ", env!("CARGO_PKG_VERSION"))),
    retain: Some(retain),
    release: Some(release),
    log: Some(log),
    set_last_error: Some(set_last_error),
    fail: Some(fail),
    irq: Some(irq),
    get_extension: Some(get_extension),
};

static DMA: abi::Dma = abi::Dma {
    size: size_of::<abi::Dma>() as u32,
    flags: 0,
    read: Some(read),
    write: Some(write),
    fill: Some(fill),
    fetch_add_u32: Some(fetch_add_u32),
    fetch_add_u64: Some(fetch_add_u64),
    compare_swap_u32: Some(compare_swap_u32),
    compare_swap_u64: Some(compare_swap_u64),
};

/// The raw form of a context, as plugins get it; `context` must outlive its use.
pub(crate) fn raw(context: &Arc<Context>) -> *mut abi::HostCtx {
    Arc::as_ptr(context).cast::<abi::HostCtx>().cast_mut()
}

/// # Safety
/// The module's invariant, during `'a`.
pub(crate) unsafe fn context<'a>(ctx: *mut abi::HostCtx) -> Option<&'a Context> {
    // SAFETY: the caller's promise.
    unsafe { ctx.cast::<Context>().as_ref() }
}

/// # Safety
/// `ptr` is readable for `len` bytes during `'a`.
pub(crate) unsafe fn bytes<'a>(ptr: *const c_void, len: u64) -> Option<&'a [u8]> {
    let len = usize::try_from(len).ok().filter(|&len| isize::try_from(len).is_ok())?;
    if len == 0 {
        return Some(&[]);
    }
    if ptr.is_null() {
        return None;
    }
    // SAFETY: not NULL, at most isize::MAX, and the caller's promise.
    Some(unsafe { core::slice::from_raw_parts(ptr.cast(), len) })
}

/// Text for people, cut to the bound before it is looked at.
///
/// # Safety
/// As [`bytes`].
unsafe fn words(ptr: *const c_char, len: u64) -> String {
    // SAFETY: the caller's promise; fewer bytes than promised are read.
    unsafe { bytes(ptr.cast(), len.min(text::MAX as u64)) }.map(text::lossy).unwrap_or_default()
}

unsafe extern "C" fn retain(ctx: *mut abi::HostCtx) {
    if !ctx.is_null() {
        // SAFETY: an `Arc` in raw form that is alive.
        unsafe { Arc::increment_strong_count(ctx.cast::<Context>()) }
    }
}

unsafe extern "C" fn release(ctx: *mut abi::HostCtx) {
    if !ctx.is_null() {
        // SAFETY: gives back one `retain`.
        unsafe { Arc::decrement_strong_count(ctx.cast::<Context>()) }
    }
}

unsafe extern "C" fn log(ctx: *mut abi::HostCtx, level: u32, ptr: *const c_char, len: u64) {
    // SAFETY: the plugin's promises.
    if let Some(context) = unsafe { context(ctx) }.filter(|context| !context.is_shut()) {
        let level = match level {
            abi::DROGHER_LOG_ERROR => LogLevel::Error,
            abi::DROGHER_LOG_WARN => LogLevel::Warn,
            abi::DROGHER_LOG_INFO => LogLevel::Info,
            _ => LogLevel::Debug,
        };
        // SAFETY: the plugin's promises.
        context.log(level, &unsafe { words(ptr, len) });
    }
}

unsafe extern "C" fn set_last_error(ctx: *mut abi::HostCtx, ptr: *const c_char, len: u64) {
    // SAFETY: the plugin's promises.
    unsafe {
        if let Some(context) = context(ctx) {
            context.set_last_error(words(ptr, len));
        }
    }
}

unsafe extern "C" fn fail(ctx: *mut abi::HostCtx, ptr: *const c_char, len: u64) {
    // SAFETY: the plugin's promises.
    unsafe {
        if let Some(context) = context(ctx).filter(|context| !context.is_shut()) {
            context.break_down(crate::Cause::Failed { text: words(ptr, len) });
        }
    }
}

unsafe extern "C" fn irq(ctx: *mut abi::HostCtx, vector: u32) -> i32 {
    // SAFETY: the plugin's promises.
    let Some(context) = (unsafe { context(ctx) }) else { return abi::DROGHER_ERR_INVAL };
    if context.is_shut() {
        return abi::DROGHER_ERR_SHUTDOWN;
    }
    match context.irq(vector) {
        Irq::Delivered => abi::DROGHER_OK,
        Irq::Refused => abi::DROGHER_ERR_PERM,
        Irq::NoVector => abi::DROGHER_ERR_NOENT,
    }
}

unsafe extern "C" fn get_extension(
    _ctx: *mut abi::HostCtx,
    id: *const c_char,
    id_len: u64,
) -> *const c_void {
    // SAFETY: the plugin's promises.
    let Some(id) = (unsafe { bytes(id.cast(), id_len) }) else { return core::ptr::null() };
    if id == abi::DROGHER_EXT_DMA.to_bytes() {
        core::ptr::from_ref(&DMA).cast()
    } else if id == abi::DROGHER_EXT_DMA_LOG.to_bytes() {
        core::ptr::from_ref(&host_log::TABLE).cast()
    } else if id == abi::DROGHER_EXT_DMA_PIN.to_bytes() {
        core::ptr::from_ref(&host_pin::TABLE).cast()
    } else {
        core::ptr::null()
    }
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Read,
    Write,
}

/// The device that may use this requester now, or the status that says why not.
///
/// # Safety
/// The module's invariant, during `'a`.
pub(crate) unsafe fn device<'a>(
    ctx: *mut abi::HostCtx,
    requester: u32,
) -> Result<(&'a Context, &'a DeviceSide), i32> {
    // SAFETY: the caller's promise.
    let context = unsafe { context(ctx) }.ok_or(abi::DROGHER_ERR_INVAL)?;
    if context.is_shut() {
        return Err(abi::DROGHER_ERR_SHUTDOWN);
    }
    let device = context.device.as_ref().ok_or(abi::DROGHER_ERR_PERM)?;
    if requester != OWN_REQUESTER {
        return Err(abi::DROGHER_ERR_NOENT);
    }
    Ok((context, device))
}

/// Counts a failed access; the plugin's status for it.
pub(crate) fn failed(context: &Context, error: &DmaError) -> i32 {
    match error.fault.reason {
        FaultReason::Revoked => {
            context.dma_refused.fetch_add(1, Ordering::Relaxed);
            abi::DROGHER_ERR_PERM
        }
        FaultReason::Misaligned => abi::DROGHER_ERR_INVAL,
        FaultReason::Busy | FaultReason::PeerBusy => abi::DROGHER_ERR_BUSY,
        _ => {
            context.dma_faults.fetch_add(1, Ordering::Relaxed);
            abi::DROGHER_ERR_FAULT
        }
    }
}

/// Finds the requester and runs one access, which returns how many bytes it did; writes that down.
///
/// # Safety
/// The module's invariant; `done` is NULL or writable.
pub(crate) unsafe fn dma(
    ctx: *mut abi::HostCtx,
    requester: u32,
    way: Way,
    done: *mut u64,
    access: impl FnOnce(&Requester) -> Result<u64, DmaError>,
) -> i32 {
    // SAFETY: the caller's promises.
    unsafe { dma_or(ctx, requester, way, done, |_, requester| access(requester)) }
}

/// As [`dma`], for an access that may go to other devices.
///
/// # Safety
/// As there.
unsafe fn dma_or(
    ctx: *mut abi::HostCtx,
    requester: u32,
    way: Way,
    done: *mut u64,
    access: impl FnOnce(&Context, &Requester) -> Result<u64, DmaError>,
) -> i32 {
    let set_done = |value: u64| {
        if !done.is_null() {
            // SAFETY: the caller's promise.
            unsafe { done.write_unaligned(value) }
        }
    };
    set_done(0);
    // SAFETY: the caller's promise.
    let (context, device) = match unsafe { self::device(ctx, requester) } {
        Ok(found) => found,
        Err(status) => return status,
    };
    if way == Way::Write && context.pins.get().is_some_and(|pins| pins.only) {
        context.dma_refused.fetch_add(1, Ordering::Relaxed);
        return abi::DROGHER_ERR_PERM;
    }
    match access(context, &device.requester) {
        Ok(bytes) => {
            set_done(bytes);
            abi::DROGHER_OK
        }
        Err(error) => {
            set_done(error.done);
            failed(context, &error)
        }
    }
}

unsafe extern "C" fn read(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    data: *mut c_void,
    len: u64,
    done: *mut u64,
) -> i32 {
    let size = usize::try_from(len).ok().filter(|&size| isize::try_from(size).is_ok());
    let Some(size) = size.filter(|&size| size == 0 || !data.is_null()) else {
        return abi::DROGHER_ERR_INVAL;
    };
    // SAFETY: the plugin's promises: `data` is initialised and writable for `len` bytes.
    unsafe {
        dma(ctx, requester, Way::Read, done, |requester| {
            if size == 0 {
                return Ok(0);
            }
            let data = core::slice::from_raw_parts_mut(data.cast::<u8>(), size);
            requester.read(Iova(iova), data).map(|()| len)
        })
    }
}

unsafe extern "C" fn write(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    data: *const c_void,
    len: u64,
    done: *mut u64,
) -> i32 {
    // SAFETY: the plugin's promises: `data` is readable for `len` bytes.
    unsafe {
        let Some(data) = bytes(data, len) else { return abi::DROGHER_ERR_INVAL };
        dma_or(ctx, requester, Way::Write, done, |context, requester| {
            let beyond = |gpa, part: &[u8]| context.peer_write(gpa, part);
            requester.write_or(Iova(iova), data, beyond).map(|()| len)
        })
    }
}

unsafe extern "C" fn fill(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    byte: u8,
    len: u64,
    done: *mut u64,
) -> i32 {
    // SAFETY: the plugin's promises.
    unsafe {
        dma_or(ctx, requester, Way::Write, done, |context, requester| {
            let beyond = |gpa, part: &[u8]| context.peer_write(gpa, part);
            requester.fill_or(Iova(iova), byte, len, beyond).map(|()| len)
        })
    }
}

/// One atomic operation; `old` gets the value before.
///
/// # Safety
/// As [`dma`]; `old` is NULL or writable.
unsafe fn atomic<T>(
    ctx: *mut abi::HostCtx,
    requester: u32,
    old: *mut T,
    access: impl FnOnce(&Requester) -> Result<T, DmaError>,
) -> i32 {
    // SAFETY: the caller's promises.
    unsafe {
        dma(ctx, requester, Way::Write, core::ptr::null_mut(), |requester| {
            let value = access(requester)?;
            if !old.is_null() {
                old.write_unaligned(value);
            }
            Ok(0)
        })
    }
}

unsafe extern "C" fn fetch_add_u32(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    add: u32,
    old: *mut u32,
) -> i32 {
    // SAFETY: the plugin's promises.
    unsafe { atomic(ctx, requester, old, |requester| requester.fetch_add_u32(Iova(iova), add)) }
}

unsafe extern "C" fn fetch_add_u64(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    add: u64,
    old: *mut u64,
) -> i32 {
    // SAFETY: the plugin's promises.
    unsafe { atomic(ctx, requester, old, |requester| requester.fetch_add_u64(Iova(iova), add)) }
}

unsafe extern "C" fn compare_swap_u32(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    expected: u32,
    new: u32,
    old: *mut u32,
) -> i32 {
    // SAFETY: the plugin's promises.
    unsafe {
        atomic(ctx, requester, old, |requester| {
            requester.compare_swap_u32(Iova(iova), expected, new)
        })
    }
}

unsafe extern "C" fn compare_swap_u64(
    ctx: *mut abi::HostCtx,
    requester: u32,
    iova: u64,
    expected: u64,
    new: u64,
    old: *mut u64,
) -> i32 {
    // SAFETY: the plugin's promises.
    unsafe {
        atomic(ctx, requester, old, |requester| {
            requester.compare_swap_u64(Iova(iova), expected, new)
        })
    }
}

impl DeviceSide {
    /// What the IOMMU counted.
    pub(crate) fn dma_stats(&self) -> RequesterStats {
        self.requester.stats()
    }
}
