//! `migration/1` and `ndma/1`.

use super::{answer, bytes, bytes_mut, call};
use crate::{Device, Failure};
use core::ffi::c_void;
use drogher_plugin_abi as abi;

pub(super) const fn table<D: Device>() -> abi::Migration {
    let (flags, version, min_reader, oldest_read) = match D::MIGRATION {
        Some(f) => (f.flags(), f.version, f.min_reader, f.oldest_read),
        None => (0, 0, 0, 0),
    };
    abi::Migration {
        size: size_of::<abi::Migration>() as u32,
        flags,
        state_version: version,
        state_min_reader: min_reader,
        state_oldest_read: oldest_read,
        reserved: 0,
        set_state: Some(set_state::<D>),
        get_state: Some(get_state::<D>),
        precopy_info: Some(precopy_info::<D>),
        stop_copy_size: Some(stop_copy_size::<D>),
        read: Some(read::<D>),
        write: Some(write::<D>),
    }
}

pub(super) const fn ndma<D: Device>() -> abi::Ndma {
    abi::Ndma {
        size: size_of::<abi::Ndma>() as u32,
        flags: 0,
        enter: Some(enter::<D>),
        leave: Some(leave::<D>),
    }
}

unsafe extern "C" fn set_state<D: Device>(dev: *mut c_void, state: u32) -> i32 {
    // SAFETY: the host's promises for `dev`.
    unsafe { call::<D>(dev, |slot| slot.set_state(state).map(|()| abi::DROGHER_OK)) }
}

unsafe extern "C" fn get_state<D: Device>(dev: *mut c_void, state: *mut u32) -> i32 {
    // SAFETY: from `create`, not destroyed, one call at a time; `state` is writable.
    unsafe {
        match (dev.cast::<super::Slot<D>>().as_ref(), state.as_mut()) {
            (Some(slot), Some(state)) => {
                *state = slot.state();
                abi::DROGHER_OK
            }
            _ => abi::DROGHER_ERR_INVAL,
        }
    }
}

unsafe extern "C" fn precopy_info<D: Device>(dev: *mut c_void, out: *mut abi::PrecopyInfo) -> i32 {
    // SAFETY: the host's promises for `dev` and `out`.
    unsafe {
        call::<D>(dev, |slot| {
            let info = slot.precopy_info()?;
            let value = abi::PrecopyInfo {
                size: 0,
                flags: 0,
                initial_bytes: info.initial_bytes,
                dirty_bytes: info.dirty_bytes,
            };
            answer(out, &value)
        })
    }
}

unsafe extern "C" fn stop_copy_size<D: Device>(dev: *mut c_void, out: *mut u64) -> i32 {
    // SAFETY: the host's promises for `dev` and `out`.
    unsafe {
        call::<D>(dev, |slot| {
            let size = slot.device()?.stop_copy_size()?;
            *out.as_mut().ok_or_else(|| Failure::invalid("No place for the answer"))? = size;
            Ok(abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn read<D: Device>(
    dev: *mut c_void,
    data: *mut c_void,
    len: u64,
    done: *mut u64,
) -> i32 {
    // SAFETY: the host's promises for `dev`, `data` and `done`.
    unsafe {
        call::<D>(dev, |slot| {
            let data = bytes_mut(data, len)?;
            let done = done.as_mut().ok_or_else(|| Failure::invalid("No place for the answer"))?;
            *done = 0;
            match slot.read_state(data)? {
                Some(n) => *done = n as u64,
                None => return Ok(abi::DROGHER_ERR_NOMSG),
            }
            Ok(abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn write<D: Device>(dev: *mut c_void, data: *const c_void, len: u64) -> i32 {
    // SAFETY: the host's promises for `dev` and `data`.
    unsafe {
        call::<D>(dev, |slot| {
            let data = bytes(data, len)?;
            slot.write_state(data).map(|()| abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn enter<D: Device>(dev: *mut c_void) -> i32 {
    // SAFETY: the host's promises for `dev`.
    unsafe { call::<D>(dev, |slot| slot.set_ndma(true).map(|()| abi::DROGHER_OK)) }
}

unsafe extern "C" fn leave<D: Device>(dev: *mut c_void) -> i32 {
    // SAFETY: the host's promises for `dev`.
    unsafe { call::<D>(dev, |slot| slot.set_ndma(false).map(|()| abi::DROGHER_OK)) }
}
