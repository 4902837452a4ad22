//! Who answers at an address of the MMIO window: the BARs that are decoded now.
//!
//! One claim on the machine's bus covers the whole window, because guests may put BARs anywhere in
//! it, on top of each other too (while they size them, for instance). The device in the lowest slot
//! wins then.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset};

/// What answers accesses to BARs. Called on vCPU threads, with no lock held.
pub trait BarAccess: Send + Sync {
    /// Reads `data.len()` bytes; the access lies inside the BAR.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]);
    /// Writes; the access lies inside the BAR.
    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]);
}

struct Mapped {
    range: Range<u64>,
    slot: u8,
    bar: u8,
    device: Arc<dyn BarAccess>,
}

/// The decoded BARs of all functions, by slot.
#[derive(Default)]
pub struct MmioMap {
    bars: RwLock<Vec<Mapped>>,
}

impl MmioMap {
    /// Replaces what `slot` decodes.
    pub fn replace(&self, slot: u8, device: &Arc<dyn BarAccess>, bars: Vec<(u8, Range<u64>)>) {
        let mut map = self.bars.write().unwrap_or_else(PoisonError::into_inner);
        map.retain(|mapped| mapped.slot != slot);
        map.extend(bars.into_iter().map(|(bar, range)| Mapped {
            range,
            slot,
            bar,
            device: Arc::clone(device),
        }));
        map.sort_by_key(|mapped| (mapped.slot, mapped.bar));
    }

    /// BAR and offset of an access; it must lie inside the BAR as a whole.
    fn with<T>(&self, gpa: u64, len: usize, act: impl FnOnce(&Mapped, u64) -> T) -> Option<T> {
        let map = self.bars.read().unwrap_or_else(PoisonError::into_inner);
        let mapped = map.iter().find(|mapped| mapped.range.contains(&gpa))?;
        let inside = u64::try_from(len).is_ok_and(|len| len <= mapped.range.end - gpa);
        inside.then(|| act(mapped, gpa - mapped.range.start))
    }

    fn find(&self, gpa: u64, len: usize) -> Option<(Arc<dyn BarAccess>, u8, u64)> {
        self.with(gpa, len, |mapped, offset| (Arc::clone(&mapped.device), mapped.bar, offset))
    }

    /// Slot, BAR and offset of an access that lies inside a BAR.
    pub fn place(&self, gpa: u64, len: usize) -> Option<(u8, u8, u64)> {
        self.with(gpa, len, |mapped, offset| (mapped.slot, mapped.bar, offset))
    }

    /// Reads at a GPA; all ones where nothing answers.
    pub fn read(&self, gpa: u64, data: &mut [u8]) {
        match self.find(gpa, data.len()) {
            Some((device, bar, offset)) => device.bar_read(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes at a GPA; ignored where nothing answers.
    pub fn write(&self, gpa: u64, data: &[u8]) {
        if let Some((device, bar, offset)) = self.find(gpa, data.len()) {
            device.bar_write(bar, offset, data);
        }
    }

    /// Forgets all; the devices are let go.
    pub fn clear(&self) {
        self.bars.write().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl DeviceMmio for MmioMap {
    fn mmio_read(&self, base: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.read(base.0.saturating_add(offset), data);
    }

    fn mmio_write(&self, base: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.write(base.0.saturating_add(offset), data);
    }
}
