//! Port and MMIO accesses of the guest, to the device that claimed the address.
//!
//! The lock is held only to look the device up, so a device may claim, move or release ranges from
//! inside an access. What nobody claimed reads as all ones and swallows writes.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vm_device::bus::{
    MmioAddress, MmioAddressOffset, MmioRange, PioAddress, PioAddressOffset, PioRange,
};
use vm_device::device_manager::{IoManager, MmioManager, PioManager};
use vm_device::{DeviceMmio, DevicePio};

use crate::events::GuestEvent;
use crate::power;
use crate::wiring::WiringError;

/// The two address spaces of one machine. May be used from any thread.
#[derive(Default)]
pub struct Bus {
    manager: RwLock<IoManager>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").finish_non_exhaustive()
    }
}

type Pio = Arc<dyn DevicePio + Send + Sync>;
type Mmio = Arc<dyn DeviceMmio + Send + Sync>;

impl Bus {
    fn read(&self) -> RwLockReadGuard<'_, IoManager> {
        self.manager.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, IoManager> {
        self.manager.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn find_pio(&self, port: u16, len: usize) -> Option<(Pio, PioAddress, PioAddressOffset)> {
        let manager = self.read();
        let (range, device) = manager.pio_device(PioAddress(port))?;
        let offset = port - range.base().0;
        let end = usize::from(offset).checked_add(len)?;
        (end <= usize::from(range.size())).then(|| (Arc::clone(device), range.base(), offset))
    }

    fn find_mmio(&self, gpa: u64, len: usize) -> Option<(Mmio, MmioAddress, MmioAddressOffset)> {
        let manager = self.read();
        let (range, device) = manager.mmio_device(MmioAddress(gpa))?;
        let offset = gpa - range.base().0;
        let end = offset.checked_add(len as u64)?;
        (end <= range.size()).then(|| (Arc::clone(device), range.base(), offset))
    }

    /// One `in` of 1, 2 or 4 bytes.
    pub fn pio_read(&self, port: u16, data: &mut [u8]) {
        data.fill(0xFF);
        if let Some((device, base, offset)) = self.find_pio(port, data.len()) {
            device.pio_read(base, offset, data);
        }
    }

    /// One `out` of 1, 2 or 4 bytes. Says so if it turned the machine off or resets it.
    pub fn pio_write(&self, port: u16, data: &[u8]) -> Option<GuestEvent> {
        if let Some(event) = power::decode(port, data) {
            return Some(event);
        }
        if let Some((device, base, offset)) = self.find_pio(port, data.len()) {
            device.pio_write(base, offset, data);
        }
        None
    }

    /// One MMIO read of up to 8 bytes.
    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        data.fill(0xFF);
        if let Some((device, base, offset)) = self.find_mmio(gpa, data.len()) {
            device.mmio_read(base, offset, data);
        }
    }

    /// One MMIO write of up to 8 bytes.
    pub fn mmio_write(&self, gpa: u64, data: &[u8]) {
        if let Some((device, base, offset)) = self.find_mmio(gpa, data.len()) {
            device.mmio_write(base, offset, data);
        }
    }

    /// See [`Wiring::claim_pio`](crate::wiring::Wiring::claim_pio).
    ///
    /// # Errors
    /// `Range`.
    pub fn claim_pio(&self, range: Range<u16>, device: Pio) -> Result<(), WiringError> {
        let taken =
            || WiringError::Range { bus: "PIO", start: range.start.into(), end: range.end.into() };
        let size = range.end.checked_sub(range.start).ok_or_else(taken)?;
        let at = PioRange::new(PioAddress(range.start), size).map_err(|_| taken())?;
        self.write().register_pio(at, device).map_err(|_| taken())
    }

    /// See [`Wiring::claim_mmio`](crate::wiring::Wiring::claim_mmio).
    ///
    /// # Errors
    /// `Range`.
    pub fn claim_mmio(&self, range: Range<u64>, device: Mmio) -> Result<(), WiringError> {
        let size = range.end.saturating_sub(range.start);
        let at = mmio_range(range.start, size)?;
        self.write().register_mmio(at, device).map_err(|_| taken(range.start, size))
    }

    /// See [`Wiring::move_mmio`](crate::wiring::Wiring::move_mmio).
    ///
    /// # Errors
    /// `NotClaimed`, `Range`.
    pub fn move_mmio(&self, from: u64, to: u64) -> Result<(), WiringError> {
        let mut manager = self.write();
        let size = claimed(&manager, from)?;
        let at = mmio_range(to, size)?;
        let Some((old, device)) = manager.deregister_mmio(MmioAddress(from)) else {
            return Err(WiringError::NotClaimed { bus: "MMIO", base: from });
        };
        if manager.register_mmio(at, Arc::clone(&device)).is_err() {
            // Its old place is still free: the lock was not let go.
            let _ = manager.register_mmio(old, device);
            return Err(taken(to, size));
        }
        Ok(())
    }

    /// See [`Wiring::release_mmio`](crate::wiring::Wiring::release_mmio).
    ///
    /// # Errors
    /// `NotClaimed`.
    pub fn release_mmio(&self, base: u64) -> Result<(), WiringError> {
        let mut manager = self.write();
        claimed(&manager, base)?;
        manager.deregister_mmio(MmioAddress(base));
        Ok(())
    }
}

fn taken(start: u64, size: u64) -> WiringError {
    WiringError::Range { bus: "MMIO", start, end: start.saturating_add(size) }
}

fn mmio_range(start: u64, size: u64) -> Result<MmioRange, WiringError> {
    MmioRange::new(MmioAddress(start), size).map_err(|_| taken(start, size))
}

/// Size of the range that begins at `base`.
fn claimed(manager: &IoManager, base: u64) -> Result<u64, WiringError> {
    manager
        .mmio_device(MmioAddress(base))
        .filter(|(range, _)| range.base().0 == base)
        .map(|(range, _)| range.size())
        .ok_or(WiringError::NotClaimed { bus: "MMIO", base })
}

#[cfg(test)]
#[path = "bus_test.rs"]
mod tests;
