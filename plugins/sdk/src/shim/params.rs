//! `params/1`. The SDK keeps the values; the device only hears of changes.

use super::{bytes_mut, call, fill, text};
use crate::{Device, Failure, ParamKind};
use core::ffi::{c_char, c_void};
use drogher_plugin_abi as abi;

pub(super) const fn table<D: Device>() -> abi::Params {
    abi::Params {
        size: size_of::<abi::Params>() as u32,
        flags: 0,
        count: D::PARAMS.len() as u32,
        reserved: 0,
        info: Some(info::<D>),
        get: Some(get::<D>),
        set: Some(set::<D>),
    }
}

unsafe extern "C" fn info<D: Device>(n: u32, out: *mut abi::ParamInfo) -> i32 {
    let Some(spec) = D::PARAMS.get(n as usize) else {
        return abi::DROGHER_ERR_INVAL;
    };
    let (kind, min, max) = match spec.kind {
        ParamKind::Text => (abi::DROGHER_PARAM_TEXT, 0, 0),
        ParamKind::Bool => (abi::DROGHER_PARAM_BOOL, 0, 0),
        ParamKind::Number { min, max } => (abi::DROGHER_PARAM_U64, min, max),
    };
    let value = abi::ParamInfo {
        size: 0,
        kind,
        flags: spec.flags(),
        reserved: 0,
        name: abi::Str::from_static(spec.name),
        default_value: abi::Str::from_static(spec.default),
        doc: abi::Str::from_static(spec.doc),
        min,
        max,
    };
    // SAFETY: the host's promise for `out`.
    if unsafe { fill(out, &value) } { abi::DROGHER_OK } else { abi::DROGHER_ERR_INVAL }
}

unsafe extern "C" fn get<D: Device>(
    dev: *mut c_void,
    name: *const c_char,
    name_len: u64,
    value: *mut c_char,
    cap: u64,
    value_len: *mut u64,
) -> i32 {
    // SAFETY: the host's promises for `dev` and the buffers.
    unsafe {
        call::<D>(dev, |slot| {
            let name =
                text(name, name_len).ok_or_else(|| Failure::invalid("The name is no UTF-8"))?;
            let found = slot.params().text(name)?.as_bytes();
            let len =
                value_len.as_mut().ok_or_else(|| Failure::invalid("No place for the answer"))?;
            *len = found.len() as u64;
            let buffer = bytes_mut(value.cast(), cap)?;
            match buffer.get_mut(..found.len()) {
                Some(to) => to.copy_from_slice(found),
                None => return Ok(abi::DROGHER_ERR_RANGE),
            }
            Ok(abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn set<D: Device>(
    dev: *mut c_void,
    name: *const c_char,
    name_len: u64,
    value: *const c_char,
    value_len: u64,
) -> i32 {
    // SAFETY: the host's promises for `dev` and the texts.
    unsafe {
        call::<D>(dev, |slot| {
            let name =
                text(name, name_len).ok_or_else(|| Failure::invalid("The name is no UTF-8"))?;
            let value =
                text(value, value_len).ok_or_else(|| Failure::invalid("The value is no UTF-8"))?;
            slot.param_set(name, value)?;
            Ok(abi::DROGHER_OK)
        })
    }
}
