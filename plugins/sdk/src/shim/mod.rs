//! The C functions that stand between the host and a [`Device`].
//!
//! Invariant of this module: the pointer that `create` gives out is a `Box<Slot<D>>` in raw form,
//! and the host calls with it, one call at a time, until `destroy` (both promised by the
//! interface). No unwinding leaves these functions: each body runs inside [`guard`].
#![expect(unsafe_code, reason = "C functions with raw pointers from the host")]

mod core_ops;
mod migration;
mod params;
mod pci;
mod sized;
mod slot;
mod tracking;

use crate::{Device, Failure, PinKind};
use core::ffi::{c_char, c_void};
use core::marker::PhantomData;
use drogher_plugin_abi as abi;
use sized::fill;
pub(crate) use sized::known;
use slot::Slot;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The tables of a device: constants, so that references to them live for ever.
pub(crate) struct Tables<D>(PhantomData<D>);

impl<D: Device> Tables<D> {
    pub(crate) const DEVICE: &'static abi::DeviceOps = &core_ops::ops::<D>();
    const MIGRATION: &'static abi::Migration = &migration::table::<D>();
    const NDMA: &'static abi::Ndma = &migration::ndma::<D>();
    const PARAMS: &'static abi::Params = &params::table::<D>();
    const PIN_SOME: &'static abi::DmaPin = &tracking::pin::<D>(PinKind::Some);
    const PIN_ONLY: &'static abi::DmaPin = &tracking::pin::<D>(PinKind::Only);
    const PREFERS: &'static abi::Prefers = &tracking::prefers::<D>();
    const PCI_CAPS: &'static abi::PciCaps = &pci::caps::<D>();
    const NET_PORT: &'static abi::NetPort = &pci::ports::<D>();
}

pub(crate) unsafe extern "C" fn get_extension<D: Device>(
    dev: *mut c_void,
    id: *const c_char,
    id_len: u64,
) -> *const c_void {
    // SAFETY: the host gives `id_len` readable bytes.
    let Ok(id) = (unsafe { bytes(id.cast(), id_len) }) else {
        return core::ptr::null();
    };
    // SAFETY: NULL, or from `create` and not destroyed; one call at a time.
    let slot = unsafe { dev.cast::<Slot<D>>().as_ref() };
    if id == abi::DROGHER_EXT_MIGRATION.to_bytes() && D::MIGRATION.is_some() {
        core::ptr::from_ref(Tables::<D>::MIGRATION).cast()
    } else if id == abi::DROGHER_EXT_NDMA.to_bytes() && slot.map_or(D::NDMA, |slot| slot.has_ndma) {
        core::ptr::from_ref(Tables::<D>::NDMA).cast()
    } else if id == abi::DROGHER_EXT_PARAMS.to_bytes() {
        core::ptr::from_ref(Tables::<D>::PARAMS).cast()
    } else if id == abi::DROGHER_EXT_DMA_LOG.to_bytes() {
        slot.and_then(|slot| slot.log_caps)
            .map_or(core::ptr::null(), |caps| core::ptr::from_ref(tracking::log::<D>(caps)).cast())
    } else if id == abi::DROGHER_EXT_DMA_PIN.to_bytes() {
        match slot.and_then(|slot| slot.pin_kind) {
            None => core::ptr::null(),
            Some(PinKind::Some) => core::ptr::from_ref(Tables::<D>::PIN_SOME).cast(),
            Some(PinKind::Only) => core::ptr::from_ref(Tables::<D>::PIN_ONLY).cast(),
        }
    } else if id == abi::DROGHER_EXT_PREFERS.to_bytes()
        && slot.is_some_and(|slot| slot.preference.is_some())
    {
        core::ptr::from_ref(Tables::<D>::PREFERS).cast()
    } else if id == abi::DROGHER_EXT_PCI_CAPS.to_bytes()
        && slot.is_some_and(|slot| !slot.info.caps.is_empty())
    {
        core::ptr::from_ref(Tables::<D>::PCI_CAPS).cast()
    } else if id == abi::DROGHER_EXT_NET_PORT.to_bytes()
        && slot.is_some_and(|slot| slot.info.ports > 0)
    {
        core::ptr::from_ref(Tables::<D>::NET_PORT).cast()
    } else {
        core::ptr::null()
    }
}

/// Runs `f`; a panic becomes its text.
pub(crate) fn guard<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
        if let Some(text) = payload.downcast_ref::<&str>() {
            (*text).to_owned()
        } else if let Some(text) = payload.downcast_ref::<String>() {
            text.clone()
        } else {
            // Its drop could panic in turn, outside any guard.
            std::mem::forget(payload);
            "(no text)".to_owned()
        }
    })
}

/// Runs one call into the device, unless an earlier panic broke it.
///
/// # Safety
/// `dev` comes from `create`, was not destroyed, and no other call with it runs.
unsafe fn call<D: Device>(
    dev: *mut c_void,
    f: impl FnOnce(&mut Slot<D>) -> Result<i32, crate::Failure>,
) -> i32 {
    // SAFETY: promised by the caller.
    let Some(slot) = (unsafe { dev.cast::<Slot<D>>().as_mut() }) else {
        return abi::DROGHER_ERR_INVAL;
    };
    slot.run(f)
}

/// The length of a buffer, if there can be such a one; NULL only without a length.
fn usable(ptr: *const c_void, len: u64) -> Result<usize, Failure> {
    usize::try_from(len)
        .ok()
        .filter(|&len| isize::try_from(len).is_ok() && (len == 0 || !ptr.is_null()))
        .ok_or_else(|| Failure::invalid("No buffer"))
}

/// Answers with a struct, as much of it as the host knows.
///
/// # Safety
/// As [`fill`].
unsafe fn answer<T>(out: *mut T, value: &T) -> Result<i32, Failure> {
    // SAFETY: the caller's promise.
    let done = unsafe { fill(out, value) };
    done.then_some(abi::DROGHER_OK).ok_or_else(|| Failure::invalid("No place for the answer"))
}

/// Bytes from the host.
///
/// # Safety
/// `ptr` is readable for `len` bytes, during `'a`.
unsafe fn bytes<'a>(ptr: *const c_void, len: u64) -> Result<&'a [u8], Failure> {
    let len = usable(ptr, len)?;
    if len == 0 {
        return Ok(&[]);
    }
    // SAFETY: not NULL, at most isize::MAX, and the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts(ptr.cast(), len) })
}

/// A buffer of the host's.
///
/// # Safety
/// `ptr` is initialised and writable for `len` bytes, by nobody else, during `'a`.
unsafe fn bytes_mut<'a>(ptr: *mut c_void, len: u64) -> Result<&'a mut [u8], Failure> {
    let len = usable(ptr, len)?;
    if len == 0 {
        return Ok(&mut []);
    }
    // SAFETY: not NULL, at most isize::MAX, and the caller's promise.
    Ok(unsafe { core::slice::from_raw_parts_mut(ptr.cast(), len) })
}

/// Text from the host.
///
/// # Safety
/// As [`bytes`].
unsafe fn text<'a>(ptr: *const c_char, len: u64) -> Option<&'a str> {
    // SAFETY: the caller's promise.
    core::str::from_utf8(unsafe { bytes(ptr.cast(), len) }.ok()?).ok()
}
