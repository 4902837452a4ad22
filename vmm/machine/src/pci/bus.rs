//! Bus 0 and configuration mechanism 1: an address port and a data port (PCI Local Bus 3.0 section
//! 3.2.2.3.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_device::DevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset};

use super::codec::{Reader, StateError, Writer};

/// CONFIG_ADDRESS, 32 bits.
pub const CONFIG_ADDRESS_PORT: u16 = 0xcf8;
/// CONFIG_DATA, four byte lanes.
pub const CONFIG_DATA_PORT: u16 = 0xcfc;
/// Device numbers on one bus.
pub const SLOTS: usize = 32;

const ADDRESS_ENABLE: u32 = 1 << 31;
/// Enable, bus, device, function, register; the rest reads as zero.
const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;

/// What bus 0 sees of a function. Called from any vCPU thread.
pub trait Function: Send + Sync {
    /// Reads configuration space from `offset`, any size.
    fn config_read(&self, offset: u16, data: &mut [u8]);
    /// Writes configuration space from `offset`, any size.
    fn config_write(&self, offset: u16, data: &[u8]);
}

/// Bus 0: up to 32 single-function devices.
#[derive(Default)]
pub struct Bus {
    slots: [Option<Arc<dyn Function>>; SLOTS],
}

impl Bus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a function at `slot` (function 0). Gives it back if the slot is taken or none.
    ///
    /// # Errors
    /// The function itself.
    pub fn insert(
        &mut self,
        slot: u8,
        function: Arc<dyn Function>,
    ) -> Result<(), Arc<dyn Function>> {
        match self.slots.get_mut(usize::from(slot)) {
            Some(place @ None) => {
                *place = Some(function);
                Ok(())
            }
            _ => Err(function),
        }
    }

    /// Reads a function's configuration space; all ones where there is none. `devfn` is slot << 3 |
    /// function, `offset` may go up to 4095 (ECAM).
    pub fn read(&self, bus: u8, devfn: u8, offset: u16, data: &mut [u8]) {
        match self.function(bus, devfn) {
            Some(function) => function.config_read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes a function's configuration space; ignored where there is none.
    pub fn write(&self, bus: u8, devfn: u8, offset: u16, data: &[u8]) {
        if let Some(function) = self.function(bus, devfn) {
            function.config_write(offset, data);
        }
    }

    fn function(&self, bus: u8, devfn: u8) -> Option<&dyn Function> {
        if bus != 0 || devfn & 7 != 0 {
            return None;
        }
        self.slots.get(usize::from(devfn >> 3)).and_then(Option::as_deref)
    }
}

/// The two ports in front of a [`Bus`]. Called from any vCPU thread; as in hardware, a guest must not
/// let two CPUs use them at once.
pub struct ConfigPorts {
    bus: Bus,
    address: AtomicU32,
}

impl ConfigPorts {
    /// Ports in front of `bus`, address 0 (disabled).
    #[must_use]
    pub const fn new(bus: Bus) -> Self {
        Self { bus, address: AtomicU32::new(0) }
    }

    /// The bus behind the ports.
    #[must_use]
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// A port read of any size at any port. Ports and sizes that are not ours read as ones.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        // Only a dword access reaches the address register; others go to the ports beside it.
        // (All ones also tells a probing guest that mechanism 2 is not here.)
        if port == CONFIG_ADDRESS_PORT && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
            return;
        }
        let Some((lane, count)) = lanes(port, data.len()) else {
            return data.fill(0xff);
        };
        let (ours, beyond) = data.split_at_mut(count);
        beyond.fill(0xff);
        match self.target() {
            Some((bus, devfn, register)) => self.bus.read(bus, devfn, register + lane, ours),
            None => ours.fill(0xff),
        }
    }

    /// A port write of any size at any port. Ports and sizes that are not ours are ignored.
    pub fn write(&self, port: u16, data: &[u8]) {
        if port == CONFIG_ADDRESS_PORT
            && let Ok(bytes) = data.try_into()
        {
            let address = u32::from_le_bytes(bytes) & ADDRESS_WRITABLE;
            self.address.store(address, Ordering::Relaxed);
            return;
        }
        let Some((lane, count)) = lanes(port, data.len()) else {
            return;
        };
        if let (Some((bus, devfn, register)), Some(ours)) = (self.target(), data.get(..count)) {
            self.bus.write(bus, devfn, register + lane, ours);
        }
    }

    /// Back to power-on: address 0.
    pub fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
    }

    /// Appends the address register to `out`.
    pub fn save(&self, out: &mut Writer) {
        out.u32(self.address.load(Ordering::Relaxed));
    }

    /// Checks a saved address register without taking it; the result goes to
    /// [`accept`](Self::accept).
    ///
    /// # Errors
    /// [`StateError::Truncated`]; [`StateError::Invalid`] if a reserved bit is set.
    pub fn parse(&self, from: &mut Reader<'_>) -> Result<u32, StateError> {
        let (field, expected) = ("CONFIG_ADDRESS", "no reserved bit set");
        let found = from.u32(field)?;
        if found & !ADDRESS_WRITABLE != 0 {
            return Err(StateError::Invalid { field, found: found.into(), expected });
        }
        Ok(found)
    }

    /// Takes an address that [`parse`](Self::parse) gave.
    pub fn accept(&self, address: u32) {
        self.address.store(address & ADDRESS_WRITABLE, Ordering::Relaxed);
    }

    /// Bus, device and function, register that the address names.
    fn target(&self) -> Option<(u8, u8, u16)> {
        let address = self.address.load(Ordering::Relaxed);
        let [register, devfn, bus, _] = address.to_le_bytes();
        (address & ADDRESS_ENABLE != 0).then_some((bus, devfn, register.into()))
    }
}

impl DevicePio for ConfigPorts {
    fn pio_read(&self, base: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.read(base.0.saturating_add(offset), data);
    }

    fn pio_write(&self, base: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.write(base.0.saturating_add(offset), data);
    }
}

/// The data port's byte lane that an access begins at, and how many of its bytes are in the port.
fn lanes(port: u16, len: usize) -> Option<(u16, usize)> {
    let lane = port.checked_sub(CONFIG_DATA_PORT).filter(|&lane| lane < 4)?;
    Some((lane, len.min(usize::from(4 - lane))))
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod tests;
