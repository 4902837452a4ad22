//! Bus 0's configuration space in memory: function by function, 4 KiB each (PCI Express Base 3.0
//! section 7.2.2).

use std::sync::Weak;

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

use super::bus::ConfigPorts;

/// The memory in front of the same bus as the ports. Empty once that is gone.
pub struct Ecam {
    ports: Weak<ConfigPorts>,
}

impl Ecam {
    /// In front of the bus behind `ports`.
    #[must_use]
    pub const fn new(ports: Weak<ConfigPorts>) -> Self {
        Self { ports }
    }
}

/// Bus, device and function, register of an offset.
fn target(offset: MmioAddressOffset) -> Option<(u8, u8, u16)> {
    let bus = u8::try_from(offset >> 20).ok()?;
    let devfn = u8::try_from(offset >> 12 & 0xFF).ok()?;
    Some((bus, devfn, u16::try_from(offset & 0xFFF).ok()?))
}

impl DeviceMmio for Ecam {
    fn mmio_read(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        match (self.ports.upgrade(), target(offset)) {
            (Some(ports), Some((bus, devfn, register))) => {
                ports.bus().read(bus, devfn, register, data);
            }
            _ => data.fill(0xff),
        }
    }

    fn mmio_write(&self, _base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        if let (Some(ports), Some((bus, devfn, register))) = (self.ports.upgrade(), target(offset))
        {
            ports.bus().write(bus, devfn, register, data);
        }
    }
}

#[cfg(test)]
#[path = "ecam_test.rs"]
mod tests;
