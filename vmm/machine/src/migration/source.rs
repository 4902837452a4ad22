//! The engine's hands on a guest that is moved away.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use drogher_iommu::Oa;
use drogher_iommu_types::{DirtyBitmap, Gpa, mutant};
use drogher_migrate::{
    ConfigBlock, DevicePending, DeviceRead, Extent, Harvest, Paused, Permits, SourceHost,
    StateDigest,
};

use super::describe;
use super::error::HostError;
use super::guest::Guest;
use crate::device::StateRead;
use crate::dirty_log::DirtyLog;
use crate::memory::{GuestRam, RamRange};
use crate::tracking::Wishes;

/// Longest time for the I/O thread to come out of its handlers.
const IO_DEADLINE: Duration = Duration::from_secs(2);

/// A guest as the source of a migration.
#[derive(Debug)]
pub struct SourceGuest {
    guest: Arc<Guest>,
    wishes: Wishes,
    log: DirtyLog,
    extents: Extents,
    /// The saved state of vCPUs, with room reserved: nothing is allocated in the blackout.
    cpu_state: Vec<u8>,
}

impl SourceGuest {
    /// The source side of `guest`, its devices tracked as `wishes` of this migration have it.
    #[must_use]
    pub fn new(guest: Arc<Guest>, wishes: Wishes) -> Self {
        let log = guest.machine().dirty_log();
        let cpu_state = guest.machine().state_buffer();
        Self { guest, wishes, log, extents: Extents::default(), cpu_state }
    }

    fn region(&self, region: usize) -> Result<RamRange, HostError> {
        let ranges = self.guest.machine().ram().ranges();
        ranges.get(region).cloned().ok_or(HostError::NoRegion(region))
    }
}

/// Where pages from `first` on lie in the RAM mapping.
pub(super) fn oa(guest: &Guest, first: u64, bytes: usize) -> Result<Oa, HostError> {
    let gpa = Gpa(first << 12);
    let oa = guest.machine().ram().oa(gpa, bytes as u64);
    oa.ok_or(HostError::NotRam { gpa: gpa.0, bytes })
}

/// Where RAM holds something. What does may be remembered, since nothing makes a hole of it; what does not,
/// may not: somebody may write to it meanwhile.
#[derive(Debug, Default)]
pub(super) struct Extents {
    /// Pages found to hold something, the last that were asked for.
    data: Range<u64>,
}

impl Extents {
    /// How `pages` begin.
    pub(super) fn of(&mut self, ram: &GuestRam, pages: Range<u64>) -> Extent {
        let all = pages.end - pages.start;
        if !self.data.contains(&pages.start) {
            let Some(at) = ram.oa(Gpa(pages.start << 12), all << 12) else {
                return Extent::Data(all);
            };
            let hole = ram.hole_at(at, all << 12) >> 12;
            if hole > 0 {
                return Extent::Hole(hole);
            }
            // To the end of the data, however far it is: it is looked for once.
            self.data = pages.start..pages.start + (ram.data_at(at) >> 12).max(1);
        }
        Extent::Data(all.min(self.data.end - pages.start))
    }
}

impl SourceHost for SourceGuest {
    type Error = HostError;

    fn config(&mut self) -> Result<ConfigBlock, HostError> {
        self.guest.tracking().forget_last();
        self.guest.prepare_tracking(&self.wishes)?;
        describe::config(&self.guest)
    }

    fn track_start(&mut self) -> Result<(), HostError> {
        let machine = self.guest.machine();
        self.log.start()?;
        self.guest.tracking().start()?;
        Ok(machine.devices().start_precopy()?)
    }

    fn rounds_begin(&mut self) -> Result<(), HostError> {
        Ok(self.guest.tracking().enter_early(self.guest.machine().devices())?)
    }

    fn track_stop(&mut self) -> Result<(), HostError> {
        let machine = self.guest.machine();
        // All three, whatever becomes of the others.
        let devices = machine.devices().end_precopy();
        let tracking = self.guest.tracking().stop(machine.devices());
        if self.log.is_on() {
            self.log.stop()?;
        }
        tracking?;
        Ok(devices?)
    }

    fn harvest_vcpus(
        &mut self,
        _kind: Harvest,
        region: usize,
        into: &DirtyBitmap,
    ) -> Result<(), HostError> {
        Ok(self.log.harvest_range(region, into)?)
    }

    fn harvest_dma(&mut self, region: usize, into: &DirtyBitmap) -> Result<(), HostError> {
        let pages = self.region(region)?.pages();
        let range = Gpa(pages.start << 12)..Gpa(pages.end << 12);
        Ok(self.guest.tracking().harvest(&range, into)?)
    }

    fn clear_vcpu_log(&mut self, _region: usize, pages: Range<u64>) -> Result<(), HostError> {
        Ok(self.log.clear_harvested(pages)?)
    }

    fn extent(&mut self, pages: Range<u64>) -> Extent {
        self.extents.of(self.guest.machine().ram(), pages)
    }

    fn read_ram(&mut self, first: u64, buf: &mut [u8]) -> Result<(), HostError> {
        let at = oa(&self.guest, first, buf.len())?;
        Ok(self.guest.machine().ram().read_at(at, buf)?)
    }

    fn device_pending(&mut self) -> Result<DevicePending, HostError> {
        let pending = self.guest.machine().devices().pending_state()?;
        Ok(DevicePending {
            precopy_bytes: pending.precopy_bytes,
            stop_copy_bytes: pending.stop_copy_bytes,
        })
    }

    fn device_precopy(&mut self, device: usize, buf: &mut [u8]) -> Result<DeviceRead, HostError> {
        Ok(read(self.guest.machine().devices().precopy_read(device, buf)?))
    }

    fn pause_vcpus(&mut self) -> Result<Paused, HostError> {
        let by_user = self.guest.stop_for_switch()?;
        Ok(Paused { by_user, ended: self.guest.has_ended() })
    }

    fn quiesce(&mut self) -> Result<(), HostError> {
        Ok(self.guest.machine().devices().to_p2p_and_ndma()?)
    }

    fn stop(&mut self) -> Result<(), HostError> {
        let machine = self.guest.machine();
        if mutant!("vcpu-state-before-last-device") {
            machine.save_cpu_state(&mut self.cpu_state)?;
        }
        machine.devices().to_stop()?;
        machine.park_io(IO_DEADLINE)?;
        machine.devices().drain_doorbells();
        Ok(machine.devices().irqfds_off()?)
    }

    fn device_state(&mut self, device: usize, buf: &mut [u8]) -> Result<DeviceRead, HostError> {
        Ok(read(self.guest.machine().devices().stop_copy_read(device, buf)?))
    }

    fn machine_state(&mut self, out: &mut Vec<u8>) -> Result<(), HostError> {
        let machine = self.guest.machine();
        // Not earlier: until the last device stands and the irqfds are off, interrupts arrive.
        if !mutant!("vcpu-state-before-last-device") {
            machine.save_cpu_state(&mut self.cpu_state)?;
        }
        put(out, &self.cpu_state);
        put(out, &machine.devices().save());
        Ok(())
    }

    fn state_digests(&mut self, out: &mut Vec<StateDigest>) -> Result<(), HostError> {
        super::digest::digests(&self.guest, out)
    }

    fn resume(&mut self, permits: &Permits) -> Result<(), HostError> {
        Ok(self.guest.start(permits, self.guest.paused())?)
    }
}

/// Appends one part of the machine state: its length (u32, little endian), then its bytes.
fn put(out: &mut Vec<u8>, part: &[u8]) {
    // Far below 4 GiB; a length that is not would be refused by the reader as truncated.
    out.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(part);
}

fn read(read: StateRead) -> DeviceRead {
    match read {
        StateRead::Bytes(count) => DeviceRead::Bytes(count),
        StateRead::NoMoreNow => DeviceRead::NoMoreNow,
        StateRead::End => DeviceRead::End,
    }
}

#[cfg(test)]
#[path = "source_test.rs"]
mod tests;
