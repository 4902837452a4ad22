//! Structs that begin with their size and grow at the end.
#![expect(unsafe_code, reason = "Reads structs of plugins as far as they go")]

use crate::load_error::TableError;
use core::mem::MaybeUninit;
use drogher_plugin_abi as abi;

/// A struct that begins with its size as a `u32`.
///
/// # Safety
/// That is promised by the implementation, and that all zero bytes are a value, also where they begin
/// in the middle: integers, pointers and optional functions only.
pub(crate) unsafe trait Sized1: Copy {
    /// For messages.
    const NAME: &'static str;
}

/// One that plugins provide.
pub(crate) trait Table: Sized1 {
    /// Its size in the first version that had it, for ever: of less there is nothing to be made.
    const FIRST: usize;
}

macro_rules! sized {
    ($($name:ident $c:literal)*) => {
        $(
            // SAFETY: a `u32` size first, then integers, pointers and optional functions.
            unsafe impl Sized1 for abi::$name {
                const NAME: &'static str = $c;
            }
        )*
    };
}

sized! {
    DeviceOps "drogher_device_ops"
    Migration "drogher_migration"
    Ndma "drogher_ndma"
    Params "drogher_params"
    DeviceInfo "drogher_device_info"
    RegionInfo "drogher_region_info"
    DoorbellInfo "drogher_doorbell_info"
    PrecopyInfo "drogher_precopy_info"
    ParamInfo "drogher_param_info"
    DmaLog "drogher_dma_log"
    LogStart "drogher_log_start"
    DmaPin "drogher_dma_pin"
    Prefers "drogher_prefers"
    Preference "drogher_preference"
}

impl Table for abi::DeviceOps {
    const FIRST: usize = 96;
}
impl Table for abi::Migration {
    const FIRST: usize = 72;
}
impl Table for abi::Ndma {
    const FIRST: usize = 24;
}
impl Table for abi::Params {
    const FIRST: usize = 40;
}

impl Table for abi::DmaLog {
    const FIRST: usize = 56;
}
impl Table for abi::DmaPin {
    const FIRST: usize = 16;
}
impl Table for abi::Prefers {
    const FIRST: usize = 16;
}

/// Copies a table of a plugin's, as much of it as both sides know; the rest is zero.
///
/// # Safety
/// `ptr` is NULL or points to as many readable bytes as its first field says.
pub(crate) unsafe fn table<T: Table>(ptr: *const T) -> Result<T, TableError> {
    let table = T::NAME;
    if ptr.is_null() {
        return Err(TableError::Missing { table });
    }
    if !ptr.cast::<u64>().is_aligned() {
        return Err(TableError::Misaligned { table });
    }
    // SAFETY: the caller's promise.
    let found = unsafe { ptr.cast::<u32>().read() };
    if (found as usize) < T::FIRST {
        return Err(TableError::TooSmall { table, found, need: T::FIRST });
    }
    let mut value = MaybeUninit::<T>::zeroed();
    let len = (found as usize).min(size_of::<T>());
    // SAFETY: `len` bytes are there on both sides; the rest is zero, which `Sized1` takes.
    unsafe {
        core::ptr::copy_nonoverlapping(ptr.cast::<u8>(), value.as_mut_ptr().cast(), len);
        Ok(value.assume_init())
    }
}

/// A zeroed struct for the plugin to fill in, with its size.
pub(crate) fn blank<T: Sized1>() -> T {
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: it begins with a `u32`, and zero bytes are a value: promised by `Sized1`.
    unsafe {
        value.as_mut_ptr().cast::<u32>().write(size_of::<T>() as u32);
        value.assume_init()
    }
}

#[cfg(test)]
#[path = "sized_test.rs"]
mod tests;
