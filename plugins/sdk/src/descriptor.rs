//! Builds the exported descriptor at compile time.

use crate::{Device, shim};
use core::ffi::c_char;
use drogher_plugin_abi as abi;

/// Who a plugin is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Names the plugin for ever: reverse domain style, of `a-z 0-9 . - _`, at most 63 bytes.
    pub id: &'static str,
    /// For people, at most 63 bytes.
    pub name: &'static str,
    /// For people, at most 31 bytes.
    pub version: &'static str,
    /// Who made it, at most 63 bytes.
    pub vendor: &'static str,
    /// SPDX expression, at most 63 bytes.
    pub licence: &'static str,
    /// A panic ends the process.
    pub aborts: bool,
    /// May change without notice.
    pub experimental: bool,
}

const fn inline<const N: usize>(text: &str) -> [c_char; N] {
    let bytes = text.as_bytes();
    assert!(!bytes.is_empty(), "A text of the plugin's identity is empty");
    assert!(bytes.len() < N, "A text of the plugin's identity is too long");
    let mut array = [0; N];
    let mut i = 0;
    while i < bytes.len() {
        array[i] = bytes[i] as c_char;
        i += 1;
    }
    array
}

/// The descriptor of device `D`. A wrong identity is a compile error.
pub const fn descriptor<D: Device>(identity: &Identity) -> abi::Descriptor {
    if let Some(format) = D::MIGRATION {
        assert!(format.version >= 1, "State format version 0");
        assert!(format.min_reader <= format.version, "min_reader above version");
        assert!(format.oldest_read <= format.version, "oldest_read above version");
    }
    abi::Descriptor {
        magic: abi::DROGHER_PLUGIN_MAGIC,
        struct_size: size_of::<abi::Descriptor>() as u32,
        abi_major: abi::DROGHER_ABI_MAJOR,
        abi_minor: abi::DROGHER_ABI_MINOR,
        flags: (if identity.aborts { abi::DROGHER_PLUGIN_ABORTS } else { 0 })
            | (if identity.experimental { abi::DROGHER_PLUGIN_EXPERIMENTAL } else { 0 }),
        id: inline(identity.id),
        name: inline(identity.name),
        version: inline(identity.version),
        vendor: inline(identity.vendor),
        licence: inline(identity.licence),
        reserved: [0; 4],
        init: None,
        deinit: None,
        device: shim::Tables::<D>::DEVICE,
        get_extension: Some(shim::get_extension::<D>),
    }
}
