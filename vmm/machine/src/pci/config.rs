//! Configuration space of a type-0 function.
//!
//! Two arrays of 256 bytes: the values, and which bits the guest can write. With the masks right,
//! BAR sizing, capabilities and read-only registers need no code of their own, and no order of byte,
//! word or unaligned accesses can produce a state that a dword access could not.

use std::ops::Range;

use thiserror::Error;

use super::bar::{BarKind, BarSpec};
use super::codec::{Reader, StateError, Writer};
use super::regs::{self, BAR_COUNT, CONFIG_SIZE};

/// Who a function says it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID; 0xffff would mean "no function".
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Class, subclass and interface in bits 23:0.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

/// A function that cannot be described by a type-0 header.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Vendor 0xffff, or a class of more than 24 bits.
    #[error("Vendor {vendor:#06x} or class {class:#x} is out of range")]
    Identity {
        /// Vendor ID.
        vendor: u16,
        /// Class code.
        class: u32,
    },
    /// Size no power of two, or index out of range.
    #[error("BAR {index} of {size:#x} bytes is not one that a header can hold")]
    Bar {
        /// BAR index.
        index: u8,
        /// Its size in bytes.
        size: u64,
    },
    /// Two BARs want one register.
    #[error("BAR {index} overlaps another BAR")]
    BarTaken {
        /// BAR index.
        index: u8,
    },
    /// No such BAR.
    #[error("There is no BAR {index}")]
    NoBar {
        /// BAR index.
        index: u8,
    },
    /// An address that the BAR cannot hold.
    #[error("BAR {index} cannot be at {address:#x}")]
    Address {
        /// BAR index.
        index: u8,
        /// The address.
        address: u64,
    },
    /// Capabilities do not fit into 256 bytes.
    #[error("Capability {id:#04x} of {len} bytes does not fit at {offset:#x}")]
    CapabilityFull {
        /// Capability ID.
        id: u8,
        /// Its length.
        len: usize,
        /// Where it would begin.
        offset: usize,
    },
    /// A vector count of 0 or over 2048.
    #[error("{vectors} MSI-X vectors; a table has 1 to 2048")]
    Vectors {
        /// The count.
        vectors: u16,
    },
}

/// What a configuration write changed; the owner acts on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Memory decoding or a BAR changed: the mappings are to be made anew.
    pub mapping: bool,
    /// The bus-master bit changed.
    pub bus_master: bool,
    /// The MSI-X enable or function-mask bit changed.
    pub msix: bool,
    /// A function-level reset was asked for.
    pub function_reset: bool,
}

/// The configuration space of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    values: [u8; CONFIG_SIZE],
    writable: [u8; CONFIG_SIZE],
    power_on: [u8; CONFIG_SIZE],
    bars: [Option<BarSpec>; BAR_COUNT],
    /// Where the next capability begins.
    free: u16,
    /// The pointer that is to name the next capability.
    link: u16,
    msix: Option<u16>,
    advanced_features: Option<u16>,
}

impl ConfigSpace {
    /// A header of this identity with these BARs, all at address 0, decoding off.
    ///
    /// # Errors
    /// [`ConfigError`] if the identity or a BAR cannot be expressed.
    pub fn new(identity: &Identity, bars: &[BarSpec]) -> Result<Self, ConfigError> {
        let Identity { vendor, class, .. } = *identity;
        if vendor == 0xffff || class > 0xff_ffff {
            return Err(ConfigError::Identity { vendor, class });
        }
        let mut config = Self {
            values: [0; CONFIG_SIZE],
            writable: [0; CONFIG_SIZE],
            power_on: [0; CONFIG_SIZE],
            bars: [None; BAR_COUNT],
            free: regs::HEADER_END,
            link: regs::CAPABILITIES,
            msix: None,
            advanced_features: None,
        };
        config.init(regs::VENDOR_ID, &vendor.to_le_bytes());
        config.init(regs::DEVICE_ID, &identity.device.to_le_bytes());
        config.init(regs::REVISION, &[identity.revision]);
        config.init(regs::CLASS, class.to_le_bytes().first_chunk::<3>().unwrap_or(&[0; 3]));
        config.init(regs::SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        config.init(regs::SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        config.allow(regs::COMMAND, &regs::COMMAND_WRITABLE.to_le_bytes());
        config.allow(regs::CACHE_LINE, &[0xff]);
        config.allow(regs::INTERRUPT_LINE, &[0xff]);
        for bar in bars {
            config.add_bar(bar)?;
        }
        Ok(config)
    }

    fn add_bar(&mut self, bar: &BarSpec) -> Result<(), ConfigError> {
        let index = bar.index;
        if !bar.is_valid() {
            return Err(ConfigError::Bar { index, size: bar.size });
        }
        let registers = usize::from(index)..usize::from(index) + bar.registers();
        let overlaps = self.bars.iter().flatten().any(|other| {
            let start = usize::from(other.index);
            start < registers.end && registers.start < start + other.registers()
        });
        if overlaps {
            return Err(ConfigError::BarTaken { index });
        }
        let offset = bar_offset(index);
        self.init(offset, &bar.flags().to_le_bytes());
        let mask = bar.address_mask().to_le_bytes();
        self.allow(offset, mask.get(..4 * bar.registers()).unwrap_or_default());
        if let Some(slot) = self.bars.get_mut(registers.start) {
            *slot = Some(*bar);
        }
        Ok(())
    }

    /// Appends a capability: `body` follows the two header bytes, `writable` (no longer than it) are
    /// the bits of it that the guest can write. Returns the capability's offset.
    ///
    /// # Errors
    /// [`ConfigError::CapabilityFull`] if it does not fit.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, ConfigError> {
        let (offset, len) = (self.free, body.len() + 2);
        let full = ConfigError::CapabilityFull { id, len, offset: offset.into() };
        let end = (usize::from(offset) + len).next_multiple_of(4);
        let (Ok(pointer), Ok(end)) = (u8::try_from(offset), u16::try_from(end)) else {
            return Err(full);
        };
        if usize::from(end) > CONFIG_SIZE {
            return Err(full);
        }
        let status = self.u16_at(regs::STATUS) | regs::STATUS_CAPABILITIES;
        self.init(regs::STATUS, &status.to_le_bytes());
        self.init(self.link, &[pointer]);
        self.init(offset, &[id, 0]);
        self.init(offset + 2, body);
        self.allow(offset + 2, writable.get(..body.len()).unwrap_or(writable));
        self.link = offset + 1;
        self.free = end;
        Ok(offset)
    }

    /// Appends the MSI-X capability: table and PBA in BAR `bar` at these offsets (multiples of 8).
    ///
    /// # Errors
    /// [`ConfigError::Vectors`], [`ConfigError::NoBar`], [`ConfigError::CapabilityFull`].
    pub fn add_msix(
        &mut self,
        vectors: u16,
        bar: u8,
        table: u32,
        pba: u32,
    ) -> Result<(), ConfigError> {
        if vectors == 0 || vectors > regs::MSIX_MAX_VECTORS {
            return Err(ConfigError::Vectors { vectors });
        }
        if self.bar(bar).is_none() {
            return Err(ConfigError::NoBar { index: bar });
        }
        let mut body = Writer::new();
        body.u16(vectors - 1);
        body.u32(table & !7 | u32::from(bar));
        body.u32(pba & !7 | u32::from(bar));
        let control = regs::MSIX_ENABLE | regs::MSIX_FUNCTION_MASK;
        self.msix =
            Some(self.add_capability(regs::CAP_MSIX, &body.finish(), &control.to_le_bytes())?);
        Ok(())
    }

    /// Appends the advanced-features capability, by which a guest can reset the function.
    ///
    /// # Errors
    /// [`ConfigError::CapabilityFull`].
    pub fn add_function_reset(&mut self) -> Result<(), ConfigError> {
        let body = [6, regs::AF_TP_FLR, 0, 0];
        let offset = self.add_capability(regs::CAP_ADVANCED_FEATURES, &body, &[])?;
        self.advanced_features = Some(offset);
        Ok(())
    }

    /// Puts a BAR at an address, as firmware does before the guest starts.
    ///
    /// # Errors
    /// [`ConfigError::NoBar`]; [`ConfigError::Address`] if it is unaligned or too high.
    pub fn assign_bar(&mut self, index: u8, address: u64) -> Result<(), ConfigError> {
        let bar = self.bar(index).ok_or(ConfigError::NoBar { index })?;
        let high = bar.kind == BarKind::Memory32 && u32::try_from(address).is_err();
        if high || address & !bar.address_mask() != 0 {
            return Err(ConfigError::Address { index, address });
        }
        let raw = (address | u64::from(bar.flags())).to_le_bytes();
        let len = 4 * bar.registers();
        self.put(bar_offset(index), raw.get(..len).unwrap_or_default());
        Ok(())
    }

    /// Takes the register values after power-on: BARs 0, decoding, bus master and MSI-X off.
    pub const fn reset(&mut self) {
        self.values = self.power_on;
    }

    /// Reads `data.len()` bytes from `offset`; bytes past the end are 0xff. Any size, any alignment.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(usize::from(offset)..) {
            *byte = self.values.get(at).copied().unwrap_or(0xff);
        }
    }

    /// Writes the writable bits of `data` at `offset`; bytes past the end are ignored. Any size, any
    /// alignment.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Effects {
        let command = self.command();
        let msix = self.msix_control();
        let bars = self.bar_bytes();
        let mut effects = Effects::default();
        let reset_at = self.advanced_features.map(|offset| usize::from(offset + regs::AF_CONTROL));
        for (byte, at) in data.iter().zip(usize::from(offset)..) {
            let (Some(value), Some(mask)) = (self.values.get_mut(at), self.writable.get(at)) else {
                break;
            };
            *value = *value & !mask | byte & mask;
            effects.function_reset |=
                Some(at) == reset_at && byte & regs::AF_INITIATE_FLR == regs::AF_INITIATE_FLR;
        }
        let changed = command ^ self.command();
        effects.bus_master = changed & regs::COMMAND_BUS_MASTER != 0;
        effects.mapping = changed & regs::COMMAND_MEMORY != 0
            || self.memory_decoding() && bars != self.bar_bytes();
        effects.msix = msix != self.msix_control();
        effects
    }

    /// The BARs, by index.
    pub fn bars(&self) -> impl Iterator<Item = &BarSpec> {
        self.bars.iter().flatten()
    }

    /// The BAR whose first register is `index`.
    #[must_use]
    pub fn bar(&self, index: u8) -> Option<&BarSpec> {
        self.bars.get(usize::from(index)).and_then(Option::as_ref)
    }

    /// GPAs that a BAR's registers name now, whether decoded or not. `None`: no such BAR, address 0,
    /// or an address so high that the range would wrap.
    #[must_use]
    pub fn bar_range(&self, index: u8) -> Option<Range<u64>> {
        let bar = self.bar(index)?;
        let low = u64::from(self.u32_at(bar_offset(index)));
        let high = match bar.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => u64::from(self.u32_at(bar_offset(index) + 4)) << 32,
        };
        let start = (high | low) & bar.address_mask();
        let end = start.checked_add(bar.size)?;
        (start != 0).then_some(start..end)
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.u16_at(regs::COMMAND)
    }

    /// True if the function responds to memory accesses.
    #[must_use]
    pub fn memory_decoding(&self) -> bool {
        self.command() & regs::COMMAND_MEMORY != 0
    }

    /// True if the function may do DMA and send MSIs.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.command() & regs::COMMAND_BUS_MASTER != 0
    }

    /// MSI-X enabled, function masked. Both false if there is no MSI-X.
    #[must_use]
    pub fn msix_control(&self) -> (bool, bool) {
        let control = self.msix.map_or(0, |offset| self.u16_at(offset + regs::MSIX_CONTROL));
        (control & regs::MSIX_ENABLE != 0, control & regs::MSIX_FUNCTION_MASK != 0)
    }

    /// Vendor and device ID.
    #[must_use]
    pub fn ids(&self) -> (u16, u16) {
        (self.u16_at(regs::VENDOR_ID), self.u16_at(regs::DEVICE_ID))
    }

    /// Appends the 256 bytes to `out`.
    pub fn save(&self, out: &mut Writer) {
        out.bytes(&self.values);
    }

    /// Takes 256 saved bytes. `self` is untouched if they are refused.
    ///
    /// # Errors
    /// [`StateError::Truncated`]; [`StateError::ReadOnly`] if a bit differs that no guest can change.
    pub fn load(&mut self, from: &mut Reader<'_>) -> Result<(), StateError> {
        let saved = from.bytes("configuration space", CONFIG_SIZE)?;
        let here = self.values.iter().zip(&self.writable);
        for (offset, (&found, (&here, mask))) in saved.iter().zip(here).enumerate() {
            if (found ^ here) & !mask != 0 {
                return Err(StateError::ReadOnly { offset, found, here });
            }
        }
        self.values.copy_from_slice(saved);
        Ok(())
    }

    fn bar_bytes(&self) -> Option<[u8; 4 * BAR_COUNT]> {
        self.values.get(usize::from(regs::BAR0)..).and_then(|bytes| bytes.first_chunk()).copied()
    }

    fn u16_at(&self, offset: u16) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn u32_at(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Sets values and power-on values.
    fn init(&mut self, offset: u16, data: &[u8]) {
        self.put(offset, data);
        for (to, from) in self.power_on.iter_mut().skip(offset.into()).zip(data) {
            *to = *from;
        }
    }

    fn put(&mut self, offset: u16, data: &[u8]) {
        for (to, from) in self.values.iter_mut().skip(offset.into()).zip(data) {
            *to = *from;
        }
    }

    fn allow(&mut self, offset: u16, mask: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(offset.into()).zip(mask) {
            *to |= *from;
        }
    }
}

const fn bar_offset(index: u8) -> u16 {
    regs::BAR0 + 4 * index as u16
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
