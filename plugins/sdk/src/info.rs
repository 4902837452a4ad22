//! What a device is, as PCI sees it.

use drogher_plugin_abi as abi;

/// The description of a device; constant during an instance's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// PCI vendor id.
    pub vendor_id: u16,
    /// PCI device id.
    pub device_id: u16,
    /// PCI subsystem vendor id.
    pub subsystem_vendor_id: u16,
    /// PCI subsystem id.
    pub subsystem_id: u16,
    /// Class << 16 | sub-class << 8 | programming interface.
    pub class_code: u32,
    /// PCI revision.
    pub revision: u8,
    /// The regions (BARs).
    pub regions: Vec<Region>,
    /// Number of MSI-X vectors.
    pub vectors: u16,
    /// The doorbells; a doorbell's number is its place here.
    pub doorbells: Vec<Doorbell>,
    /// Offset and length of the device-specific configuration area, both multiples of 4, within
    /// 0x100..0x1000.
    pub config: Option<(u32, u32)>,
    /// Vendor-specific capabilities below 0x100, in order; at most 16.
    pub caps: Vec<PciCap>,
    /// Ethernet ports, 0 to 8. Such a device gets frames by [`Host::net_receive`](crate::Host::net_receive).
    pub ports: u32,
}

impl DeviceInfo {
    /// A device without regions, vectors and doorbells; subsystem ids equal the others.
    pub fn new(vendor_id: u16, device_id: u16, class_code: u32) -> Self {
        DeviceInfo {
            vendor_id,
            device_id,
            subsystem_vendor_id: vendor_id,
            subsystem_id: device_id,
            class_code,
            revision: 0,
            regions: Vec::new(),
            vectors: 0,
            doorbells: Vec::new(),
            config: None,
            caps: Vec::new(),
            ports: 0,
        }
    }
}

/// A region: one BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// BAR index, 0 to 3. A 64-bit BAR takes the next one too.
    pub index: u32,
    /// Length in bytes, a power of two from 16.
    pub length: u64,
    /// I/O ports instead of memory.
    pub io: bool,
    /// 64-bit memory.
    pub wide: bool,
    /// Prefetchable.
    pub prefetch: bool,
}

impl Region {
    /// A 32-bit memory BAR.
    pub fn memory(index: u32, length: u64) -> Self {
        Region { index, length, io: false, wide: false, prefetch: false }
    }

    pub(crate) fn flags(&self) -> u32 {
        let mut flags = 0;
        if self.io {
            flags |= abi::DROGHER_REGION_IO;
        }
        if self.wide {
            flags |= abi::DROGHER_REGION_64BIT;
        }
        if self.prefetch {
            flags |= abi::DROGHER_REGION_PREFETCH;
        }
        flags
    }
}

/// A vendor-specific capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciCap {
    /// Its bytes behind id, pointer and length: 1 to 61, constant for the guest.
    pub body: Vec<u8>,
    /// The bytes are read by `cap_read` and written by `cap_write` instead.
    pub access: bool,
}

/// A place where a write of this width, of any value, only says "look".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Region (BAR index).
    pub region: u32,
    /// Offset in it, a multiple of the width.
    pub offset: u64,
    /// 1, 2, 4 or 8 bytes.
    pub width: u32,
}
