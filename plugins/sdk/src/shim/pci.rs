//! `pci-caps/1` and the plugin's side of `net-port/1`.

use super::{answer, bytes, bytes_mut, call};
use crate::{Device, Failure};
use core::ffi::c_void;
use drogher_plugin_abi as abi;

/// Id, pointer and length come before a capability's own bytes.
const HEAD: usize = 3;

pub(super) const fn caps<D: Device>() -> abi::PciCaps {
    abi::PciCaps {
        size: size_of::<abi::PciCaps>() as u32,
        flags: 0,
        get: Some(cap_get::<D>),
        read: Some(cap_read::<D>),
        write: Some(cap_write::<D>),
    }
}

pub(super) const fn ports<D: Device>() -> abi::NetPort {
    abi::NetPort { size: size_of::<abi::NetPort>() as u32, flags: 0, get: Some(ports_get::<D>) }
}

unsafe extern "C" fn cap_get<D: Device>(dev: *mut c_void, n: u32, out: *mut abi::PciCap) -> i32 {
    // SAFETY: the host's promises for `dev` and `out`.
    unsafe {
        call::<D>(dev, |slot| {
            let Some(cap) = slot.info.caps.get(n as usize) else {
                return Ok(abi::DROGHER_ERR_NOENT);
            };
            let length = cap.body.len() + HEAD;
            let mut data = [0; abi::DROGHER_PCI_CAP_LEN_MAX as usize];
            let room = data.get_mut(HEAD..length).filter(|room| !room.is_empty());
            let room = room.ok_or_else(|| {
                Failure::invalid(format!("Capability {n} has {} bytes", cap.body.len()))
            })?;
            room.copy_from_slice(&cap.body);
            let value = abi::PciCap {
                size: 0,
                flags: if cap.access { abi::DROGHER_PCI_CAP_ACCESS } else { 0 },
                id: abi::DROGHER_PCI_CAP_VENDOR,
                // At most 64.
                length: length as u8,
                reserved: [0; 6],
                data,
            };
            answer(out, &value)
        })
    }
}

unsafe extern "C" fn cap_read<D: Device>(
    dev: *mut c_void,
    n: u32,
    offset: u32,
    data: *mut c_void,
    len: u32,
) -> i32 {
    // SAFETY: the host's promises for `dev` and `data`.
    unsafe {
        call::<D>(dev, |slot| {
            let data = bytes_mut(data, u64::from(len))?;
            data.fill(0);
            slot.device()?.cap_read(n, offset, data)?;
            Ok(abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn cap_write<D: Device>(
    dev: *mut c_void,
    n: u32,
    offset: u32,
    data: *const c_void,
    len: u32,
) -> i32 {
    // SAFETY: the host's promises for `dev` and `data`.
    unsafe {
        call::<D>(dev, |slot| {
            let data = bytes(data, u64::from(len))?;
            slot.device()?.cap_write(n, offset, data)?;
            Ok(abi::DROGHER_OK)
        })
    }
}

unsafe extern "C" fn ports_get<D: Device>(dev: *mut c_void, out: *mut abi::NetPorts) -> i32 {
    // SAFETY: the host's promises for `dev` and `out`.
    unsafe {
        call::<D>(dev, |slot| {
            let value = abi::NetPorts { size: 0, count: slot.info.ports };
            answer(out, &value)
        })
    }
}
