//! Create, destroy, describe, registers.

use super::{Slot, answer, bytes, bytes_mut, call, guard, text};
use crate::{Device, Failure, Host, Params};
use core::ffi::c_void;
use drogher_plugin_abi as abi;

pub(super) const fn ops<D: Device>() -> abi::DeviceOps {
    abi::DeviceOps {
        size: size_of::<abi::DeviceOps>() as u32,
        flags: 0,
        create: Some(create::<D>),
        destroy: Some(destroy::<D>),
        describe: Some(describe::<D>),
        region_info: Some(region_info::<D>),
        doorbell_info: Some(doorbell_info::<D>),
        reset: Some(reset::<D>),
        config_read: Some(config_read::<D>),
        config_write: Some(config_write::<D>),
        region_read: Some(region_read::<D>),
        region_write: Some(region_write::<D>),
        doorbell: Some(doorbell::<D>),
    }
}

/// Size of what `create` gets in version 1.0: no host gives less.
const CREATE_INFO_FIRST: usize = 64;

unsafe extern "C" fn create<D: Device>(
    info: *const abi::CreateInfo,
    dev_out: *mut *mut c_void,
) -> i32 {
    // SAFETY: the host gives a valid struct or breaks its promise.
    let Some(info) = (unsafe { super::known(info, CREATE_INFO_FIRST) }) else {
        return abi::DROGHER_ERR_INVAL;
    };
    if dev_out.is_null() {
        return abi::DROGHER_ERR_INVAL;
    }
    // SAFETY: table and context come from the host.
    let host = guard(|| unsafe { Host::new(info.host, info.host_ctx, info.requester) });
    let Ok(Some(host)) = host else {
        return abi::DROGHER_ERR_INVAL;
    };
    let slot = guard(|| {
        // SAFETY: the parameters are valid during this call.
        let given = unsafe { given(&info) }
            .ok_or_else(|| Failure::invalid("A parameter is no UTF-8 text"))?;
        Slot::<D>::new(host.clone(), Params::new(D::PARAMS, &given)?)
    });
    let failure = match slot {
        Ok(Ok(slot)) => {
            // SAFETY: checked for NULL; the host's to write.
            unsafe { dev_out.write(Box::into_raw(Box::new(slot)).cast()) };
            return abi::DROGHER_OK;
        }
        Ok(Err(failure)) => failure,
        Err(text) => Failure::fatal(format!("Panicked: {text}")),
    };
    host.set_last_error(failure.text());
    failure.status()
}

/// # Safety
/// The parameters of `info` are valid during `'a`.
unsafe fn given<'a>(info: &abi::CreateInfo) -> Option<Vec<(&'a str, &'a str)>> {
    let count = usize::try_from(info.param_count).ok()?;
    let pairs = if count == 0 {
        &[]
    } else if info.params.is_null() {
        return None;
    } else {
        // SAFETY: the caller's promise.
        unsafe { core::slice::from_raw_parts(info.params, count) }
    };
    // SAFETY: the caller's promise.
    pairs
        .iter()
        .map(|pair| unsafe {
            Some((text(pair.key.ptr, pair.key.len)?, text(pair.value.ptr, pair.value.len)?))
        })
        .collect()
}

unsafe extern "C" fn destroy<D: Device>(dev: *mut c_void) {
    if dev.is_null() {
        return;
    }
    // SAFETY: from `create`, and this is the last call.
    let slot = unsafe { Box::from_raw(dev.cast::<Slot<D>>()) };
    // A panic in a drop leaks the rest, nothing more.
    let _ = guard(|| drop(slot));
}

unsafe extern "C" fn describe<D: Device>(dev: *mut c_void, out: *mut abi::DeviceInfo) -> i32 {
    // SAFETY: the host's promises for `dev` and `out`.
    unsafe {
        call::<D>(dev, |slot| {
            let info = &slot.info;
            let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
            let (config_offset, config_len) = info.config.unwrap_or((0, 0));
            let value = abi::DeviceInfo {
                size: 0,
                flags: 0,
                vendor_id: info.vendor_id,
                device_id: info.device_id,
                subsystem_vendor_id: info.subsystem_vendor_id,
                subsystem_id: info.subsystem_id,
                class_code: info.class_code,
                revision: info.revision,
                reserved: [0; 3],
                region_count: count(info.regions.len()),
                vector_count: u32::from(info.vectors),
                doorbell_count: count(info.doorbells.len()),
                config_offset,
                config_len,
                reserved2: 0,
            };
            answer(out, &value)
        })
    }
}

unsafe extern "C" fn region_info<D: Device>(
    dev: *mut c_void,
    n: u32,
    out: *mut abi::RegionInfo,
) -> i32 {
    // SAFETY: the host's promises for `dev` and `out`.
    unsafe {
        call::<D>(dev, |slot| {
            let region = slot
                .info
                .regions
                .get(n as usize)
                .ok_or_else(|| Failure::invalid(format!("No region number {n}")))?;
            let value = abi::RegionInfo {
                size: 0,
                flags: region.flags(),
                index: region.index,
                map_flags: 0,
                length: region.length,
                map_offset: 0,
                map_length: 0,
                map_fd: 0,
                reserved: 0,
            };
            answer(out, &value)
        })
    }
}

unsafe extern "C" fn doorbell_info<D: Device>(
    dev: *mut c_void,
    n: u32,
    out: *mut abi::DoorbellInfo,
) -> i32 {
    // SAFETY: the host's promises for `dev` and `out`.
    unsafe {
        call::<D>(dev, |slot| {
            let doorbell = slot
                .info
                .doorbells
                .get(n as usize)
                .ok_or_else(|| Failure::invalid(format!("No doorbell number {n}")))?;
            let value = abi::DoorbellInfo {
                size: 0,
                flags: 0,
                region: doorbell.region,
                width: doorbell.width,
                offset: doorbell.offset,
                match_value: 0,
            };
            answer(out, &value)
        })
    }
}

unsafe extern "C" fn reset<D: Device>(dev: *mut c_void) -> i32 {
    // SAFETY: from `create`, not destroyed, one call at a time.
    match unsafe { dev.cast::<Slot<D>>().as_mut() } {
        Some(slot) => slot.reset(),
        None => abi::DROGHER_ERR_INVAL,
    }
}

unsafe extern "C" fn config_read<D: Device>(
    dev: *mut c_void,
    offset: u32,
    data: *mut c_void,
    len: u32,
) -> i32 {
    // SAFETY: the host's promises for `dev` and `data`.
    unsafe {
        call::<D>(dev, |slot| {
            let data = bytes_mut(data, u64::from(len))?;
            data.fill(0);
            slot.device()?.config_read(offset, data)?;
            Ok(abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn config_write<D: Device>(
    dev: *mut c_void,
    offset: u32,
    data: *const c_void,
    len: u32,
) -> i32 {
    // SAFETY: the host's promises for `dev` and `data`.
    unsafe {
        call::<D>(dev, |slot| {
            let data = bytes(data, u64::from(len))?;
            slot.device()?.config_write(offset, data)?;
            Ok(abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn region_read<D: Device>(
    dev: *mut c_void,
    region: u32,
    offset: u64,
    data: *mut c_void,
    len: u32,
) -> i32 {
    // SAFETY: the host's promises for `dev` and `data`.
    unsafe {
        call::<D>(dev, |slot| {
            slot.need_running("Register read")?;
            let data = bytes_mut(data, u64::from(len))?;
            data.fill(0);
            slot.device()?.region_read(region, offset, data)?;
            Ok(abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn region_write<D: Device>(
    dev: *mut c_void,
    region: u32,
    offset: u64,
    data: *const c_void,
    len: u32,
) -> i32 {
    // SAFETY: the host's promises for `dev` and `data`.
    unsafe {
        call::<D>(dev, |slot| {
            slot.need_running("Register write")?;
            let data = bytes(data, u64::from(len))?;
            slot.device()?.region_write(region, offset, data)?;
            Ok(abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn doorbell<D: Device>(dev: *mut c_void, n: u32) -> i32 {
    // SAFETY: the host's promises for `dev`.
    unsafe {
        call::<D>(dev, |slot| {
            slot.doorbell(n)?;
            Ok(abi::DROGHER_OK)
        })
    }
}
