//! What a device says it is, checked.

use drogher_plugin_abi as abi;

/// The description of a device.
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
    /// The regions, by BAR index.
    pub regions: Vec<Region>,
    /// Number of MSI-X vectors, 0 to 2048.
    pub vectors: u16,
    /// The doorbells; a doorbell's number is its place here. Each lies in a region, no two overlap.
    pub doorbells: Vec<Doorbell>,
    /// Offset and length of the device-specific configuration area, in 0x100..0x1000.
    pub config: Option<(u32, u32)>,
    /// Capabilities of its own below 0x100, in order.
    pub caps: Vec<Capability>,
    /// Ethernet ports, 0 to 8.
    pub ports: u32,
}

/// A vendor-specific capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its id.
    pub id: u8,
    /// Its bytes from the third one (its length) on.
    pub body: Vec<u8>,
    /// What lies behind the length is read from the device and written to it.
    pub access: bool,
}

impl Capability {
    /// Where its bytes begin that are the device's.
    pub const OWN: usize = 3;

    /// Bytes of it, with id and pointer.
    pub fn length(&self) -> usize {
        self.body.len() + 2
    }
}

/// A region: one BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// BAR index, 0 to 3.
    pub index: u32,
    /// Length in bytes, a power of two from 16 (I/O: to 256, memory: to 4 GiB).
    pub length: u64,
    /// I/O ports instead of memory.
    pub io: bool,
    /// 64-bit memory: takes the next index too.
    pub wide: bool,
    /// Prefetchable.
    pub prefetch: bool,
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

/// An impossible description.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    /// PCI ids that cannot be.
    #[error("PCI vendor id {vendor:#06x} cannot be")]
    Vendor {
        /// The id.
        vendor: u16,
    },
    /// A class code of more than 24 bits.
    #[error("Class code {class:#x} has more than 24 bits")]
    Class {
        /// The code.
        class: u32,
    },
    /// Too many of something.
    #[error("{count} {what}, at most {max} can be")]
    TooMany {
        /// What.
        what: &'static str,
        /// How many.
        count: u32,
        /// How many there may be.
        max: u32,
    },
    /// Reserved fields or unknown flags.
    #[error("Reserved field {field} is {value:#x}, must be 0")]
    Reserved {
        /// Which.
        field: &'static str,
        /// What is there.
        value: u64,
    },
    /// A region's BAR index is wrong or taken.
    #[error("Region with BAR index {index}: the index is taken, or not from 0 to 3")]
    RegionIndex {
        /// The index.
        index: u32,
    },
    /// A region's length is wrong.
    #[error(
        "Region {index} has {length:#x} bytes: must be a power of two from 16, I/O to 256, 32-bit memory to 2 GiB, 64-bit to 4 GiB"
    )]
    RegionLength {
        /// BAR index.
        index: u32,
        /// The length.
        length: u64,
    },
    /// Flags that exclude each other.
    #[error("Region {index}: I/O ports are neither 64-bit nor prefetchable (flags {flags:#x})")]
    RegionFlags {
        /// BAR index.
        index: u32,
        /// The flags.
        flags: u32,
    },
    /// A doorbell that is outside its region, misaligned, or over another one.
    #[error("Doorbell {number} (region {region}, offset {offset:#x}, width {width}) {problem}")]
    Doorbell {
        /// Its number.
        number: u32,
        /// Its region.
        region: u32,
        /// Its offset.
        offset: u64,
        /// Its width.
        width: u32,
        /// What is wrong.
        problem: &'static str,
    },
    /// A capability that a plugin may not have, or that is wrong.
    #[error("PCI capability {number} of id {id:#04x} and {length} bytes {problem}")]
    Capability {
        /// Its number.
        number: usize,
        /// Its id.
        id: u8,
        /// Its length.
        length: u8,
        /// What is wrong.
        problem: &'static str,
    },
    /// The extension for ports without any, or with too many.
    #[error("{count} Ethernet ports; with drogher.net-port/1 there are 1 to {max}")]
    Ports {
        /// How many.
        count: u32,
        /// How many there may be.
        max: u32,
    },
    /// The configuration area is wrong.
    #[error("Configuration area {offset:#x}+{len:#x} is not in 0x100..0x1000 in steps of 4")]
    Config {
        /// Its offset.
        offset: u32,
        /// Its length.
        len: u32,
    },
}

fn zero(field: &'static str, value: u64) -> Result<(), InfoError> {
    if value == 0 { Ok(()) } else { Err(InfoError::Reserved { field, value }) }
}

/// The head of the description, without regions and doorbells, and how many of them there are.
pub(crate) fn head(raw: &abi::DeviceInfo) -> Result<(DeviceInfo, u32, u32), InfoError> {
    zero("device_info.flags", u64::from(raw.flags))?;
    zero("device_info.reserved", u64::from(raw.reserved.iter().fold(0, |all, byte| all | byte)))?;
    zero("device_info.reserved2", u64::from(raw.reserved2))?;
    if matches!(raw.vendor_id, 0 | 0xFFFF) {
        return Err(InfoError::Vendor { vendor: raw.vendor_id });
    }
    if raw.class_code >> 24 != 0 {
        return Err(InfoError::Class { class: raw.class_code });
    }
    let bounds = [
        ("regions", raw.region_count, abi::DROGHER_REGIONS_MAX),
        ("MSI-X vectors", raw.vector_count, abi::DROGHER_VECTORS_MAX),
        ("doorbells", raw.doorbell_count, abi::DROGHER_DOORBELLS_MAX),
    ];
    for (what, count, max) in bounds {
        if count > max {
            return Err(InfoError::TooMany { what, count, max });
        }
    }
    let vectors = u16::try_from(raw.vector_count).unwrap_or(0);
    let info = DeviceInfo {
        vendor_id: raw.vendor_id,
        device_id: raw.device_id,
        subsystem_vendor_id: raw.subsystem_vendor_id,
        subsystem_id: raw.subsystem_id,
        class_code: raw.class_code,
        revision: raw.revision,
        regions: Vec::new(),
        vectors,
        doorbells: Vec::new(),
        config: config(raw.config_offset, raw.config_len)?,
        caps: Vec::new(),
        ports: 0,
    };
    Ok((info, raw.region_count, raw.doorbell_count))
}

fn config(offset: u32, len: u32) -> Result<Option<(u32, u32)>, InfoError> {
    if (offset, len) == (0, 0) {
        return Ok(None);
    }
    let end = u64::from(offset) + u64::from(len);
    let good = offset.is_multiple_of(4)
        && len.is_multiple_of(4)
        && len > 0
        && offset >= 0x100
        && end <= 0x1000;
    if good { Ok(Some((offset, len))) } else { Err(InfoError::Config { offset, len }) }
}

impl DeviceInfo {
    /// Before the plugin has said anything.
    pub(crate) fn none() -> Self {
        DeviceInfo {
            vendor_id: 0xFFFF,
            device_id: 0xFFFF,
            subsystem_vendor_id: 0,
            subsystem_id: 0,
            class_code: 0,
            revision: 0,
            regions: Vec::new(),
            vectors: 0,
            doorbells: Vec::new(),
            config: None,
            caps: Vec::new(),
            ports: 0,
        }
    }

    /// Takes one more region.
    pub(crate) fn add_region(&mut self, raw: &abi::RegionInfo) -> Result<(), InfoError> {
        zero("region_info.flags", u64::from(raw.flags & !abi::DROGHER_REGION_FLAGS))?;
        zero("region_info.map_flags", u64::from(raw.map_flags))?;
        zero("region_info.map_offset", raw.map_offset)?;
        zero("region_info.map_length", raw.map_length)?;
        zero("region_info.map_fd", u64::from(raw.map_fd.unsigned_abs()))?;
        zero("region_info.reserved", u64::from(raw.reserved))?;
        let flag = |flag| raw.flags & flag != 0;
        let region = Region {
            index: raw.index,
            length: raw.length,
            io: flag(abi::DROGHER_REGION_IO),
            wide: flag(abi::DROGHER_REGION_64BIT),
            prefetch: flag(abi::DROGHER_REGION_PREFETCH),
        };
        let index = region.index;
        if region.io && (region.wide || region.prefetch) {
            return Err(InfoError::RegionFlags { index, flags: raw.flags });
        }
        let max = match (region.io, region.wide) {
            (true, _) => 256,
            (false, false) => abi::DROGHER_REGION_SIZE_MAX / 2,
            (false, true) => abi::DROGHER_REGION_SIZE_MAX,
        };
        let length = region.length;
        if !length.is_power_of_two() || length < abi::DROGHER_REGION_SIZE_MIN || length > max {
            return Err(InfoError::RegionLength { index, length });
        }
        let taken = |region: &Region| {
            let last = region.index.saturating_add(u32::from(region.wide));
            region.index..=last
        };
        let clash = |other: &Region| {
            taken(other).contains(taken(&region).start())
                || taken(&region).contains(taken(other).start())
        };
        if *taken(&region).end() >= abi::DROGHER_REGIONS_MAX || self.regions.iter().any(clash) {
            return Err(InfoError::RegionIndex { index });
        }
        self.regions.push(region);
        self.regions.sort_by_key(|region| region.index);
        Ok(())
    }

    /// Takes one more doorbell; all regions are there.
    pub(crate) fn add_doorbell(&mut self, raw: &abi::DoorbellInfo) -> Result<(), InfoError> {
        zero("doorbell_info.flags", u64::from(raw.flags))?;
        zero("doorbell_info.match_value", raw.match_value)?;
        let new = Doorbell { region: raw.region, offset: raw.offset, width: raw.width };
        let wrong = |problem| InfoError::Doorbell {
            number: u32::try_from(self.doorbells.len()).unwrap_or(u32::MAX),
            region: new.region,
            offset: new.offset,
            width: new.width,
            problem,
        };
        if !matches!(new.width, 1 | 2 | 4 | 8) {
            return Err(wrong("has no width of 1, 2, 4 or 8"));
        }
        let width = u64::from(new.width);
        if !new.offset.is_multiple_of(width) {
            return Err(wrong("is misaligned"));
        }
        let region = self.region(new.region).ok_or_else(|| wrong("is in no region"))?;
        if new.offset.checked_add(width).is_none_or(|end| end > region.length) {
            return Err(wrong("ends outside its region"));
        }
        let over = |other: &Doorbell| {
            other.region == new.region
                && other.offset < new.offset + width
                && new.offset < other.offset + u64::from(other.width)
        };
        if self.doorbells.iter().any(over) {
            return Err(wrong("lies over another one"));
        }
        self.doorbells.push(new);
        Ok(())
    }

    /// Takes one more capability.
    pub(crate) fn add_capability(&mut self, raw: &abi::PciCap) -> Result<(), InfoError> {
        let number = self.caps.len();
        let wrong = |problem| {
            let (id, length) = (raw.id, raw.length);
            Err(InfoError::Capability { number, id, length, problem })
        };
        zero("pci_cap.flags", u64::from(raw.flags & !abi::DROGHER_PCI_CAP_FLAGS))?;
        zero("pci_cap.reserved", u64::from(raw.reserved.iter().fold(0, |all, byte| all | byte)))?;
        if number >= abi::DROGHER_PCI_CAPS_MAX as usize {
            return wrong("is one too many; 16 can be");
        }
        if raw.id != abi::DROGHER_PCI_CAP_VENDOR {
            return wrong("is not the plugin's to have; only id 0x09 is");
        }
        let length = usize::from(raw.length);
        let bytes = raw.data.get(Capability::OWN..length).filter(|bytes| !bytes.is_empty());
        let Some(bytes) = bytes else {
            return wrong("is not of 4 to 64 bytes");
        };
        let (head, tail) = (raw.data.iter().take(Capability::OWN), raw.data.iter().skip(length));
        if head.chain(tail).any(|byte| *byte != 0) {
            return wrong("has bytes in its head or behind its end");
        }
        let body = std::iter::once(raw.length).chain(bytes.iter().copied()).collect();
        let access = raw.flags & abi::DROGHER_PCI_CAP_ACCESS != 0;
        self.caps.push(Capability { id: raw.id, body, access });
        Ok(())
    }

    /// Takes the number of ports of a plugin with the extension for them.
    pub(crate) fn set_ports(&mut self, count: u32) -> Result<(), InfoError> {
        let max = abi::DROGHER_NET_PORTS_MAX;
        if count == 0 || count > max {
            return Err(InfoError::Ports { count, max });
        }
        self.ports = count;
        Ok(())
    }

    /// The region with this BAR index.
    pub fn region(&self, index: u32) -> Option<&Region> {
        self.regions.iter().find(|region| region.index == index)
    }
}

#[cfg(test)]
#[path = "device_info_test.rs"]
mod tests;
