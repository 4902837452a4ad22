//! The set through a migration, in the order of the phases.
//!
//! Source: `start_precopy`, `precopy_read`..., then with the vCPUs standing `to_p2p_and_ndma`,
//! `to_stop`, the I/O thread parked, `drain_doorbells`, `irqfds_off`, `stop_copy_read`..., `save`;
//! from any point of it `run` goes back to a running set. Destination: `begin_resume`,
//! `load_chunk`..., `commit_device`, `load`, `run`.
//!
//! Starts and stops are two passes over all devices, because they are not atomic across devices: a
//! device in a P2P state still answers the others, and starts nothing towards them.

use std::sync::Arc;

use super::error::{DeviceError, Fault};
use super::function::PciDevice;
use super::life::{Permit, StateRead};
use super::set::DeviceSet;

/// Bytes of state that devices still have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingState {
    /// Bytes that pre-copy could take out now.
    pub precopy_bytes: u64,
    /// Bytes that are to be sent after the stop.
    pub stop_copy_bytes: u64,
}

/// Does `each` to all devices, also after a failure; returns the first error, logs the others.
pub(super) fn all(
    devices: &[Arc<PciDevice>],
    mut each: impl FnMut(&PciDevice) -> Result<(), DeviceError>,
) -> Result<(), DeviceError> {
    let mut first = Ok(());
    for device in devices {
        match (each(device), &first) {
            (Err(error), Ok(())) => first = Err(error),
            (Err(error), Err(_)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "one more device failed");
            }
            (Ok(()), _) => {}
        }
    }
    first
}

impl DeviceSet {
    /// Devices begin to give out state while they run; those without pre-copy only check that they
    /// can be migrated at all.
    ///
    /// # Errors
    /// A device that cannot be migrated, is in ERROR or refuses. [`end_precopy`](Self::end_precopy)
    /// takes back what was begun.
    pub fn start_precopy(&self) -> Result<(), DeviceError> {
        self.devices().iter().try_for_each(|device| device.start_precopy())
    }

    /// The migration was given up while the set runs: back to RUNNING.
    ///
    /// # Errors
    /// The first device that refuses; the others are back.
    pub fn end_precopy(&self) -> Result<(), DeviceError> {
        all(self.devices(), PciDevice::end_precopy)
    }

    /// Puts the devices for which `chosen` holds in NDMA, while all else runs on.
    ///
    /// # Errors
    /// The first device that cannot or refuses; [`leave_early`](Self::leave_early) takes back it and
    /// those before it.
    pub fn enter_early(&self, chosen: impl Fn(&PciDevice) -> bool) -> Result<(), DeviceError> {
        let mut chosen = self.devices().iter().filter(|device| chosen(device));
        chosen.try_for_each(|device| device.enter_early())
    }

    /// The migration was given up while the set runs: devices that stand early go on.
    ///
    /// # Errors
    /// The first device that refuses; the others go on.
    pub fn leave_early(&self) -> Result<(), DeviceError> {
        self.leave_early_if(|_| true)
    }

    /// As [`leave_early`](Self::leave_early), but only those for which `chosen` holds.
    ///
    /// # Errors
    /// As there.
    pub fn leave_early_if(&self, chosen: impl Fn(&PciDevice) -> bool) -> Result<(), DeviceError> {
        let leave = |device: &PciDevice| {
            if chosen(device) { device.leave_early() } else { Ok(()) }
        };
        all(self.devices(), leave)
    }

    /// A migration begins: forgets who has stood early in the last one.
    pub fn forget_early(&self) {
        for device in self.devices() {
            device.forget_early();
        }
    }

    /// State bytes that all devices still have, by their own word.
    ///
    /// # Errors
    /// A device that does not answer.
    pub fn pending_state(&self) -> Result<PendingState, DeviceError> {
        let mut sum = PendingState::default();
        for device in self.devices() {
            let (precopy, stop_copy) = device.pending_state()?;
            sum.precopy_bytes = sum.precopy_bytes.saturating_add(precopy);
            sum.stop_copy_bytes = sum.stop_copy_bytes.saturating_add(stop_copy);
        }
        Ok(sum)
    }

    /// Reads state of a running device. `buf` should be 4 KiB or more.
    ///
    /// # Errors
    /// No such device, it is in ERROR or refuses, a buffer without room.
    pub fn precopy_read(&self, index: usize, buf: &mut [u8]) -> Result<StateRead, DeviceError> {
        self.device(index)?.precopy_read(buf)
    }

    /// All devices to P2P; the grace phase, until what they have sent each other has arrived; then all
    /// that can to NDMA. The vCPUs stand.
    ///
    /// # Errors
    /// The first device that refuses, or has not got what was sent to it in time; all were asked.
    pub fn to_p2p_and_ndma(&self) -> Result<(), DeviceError> {
        let p2p = all(self.devices(), PciDevice::to_p2p);
        // While one of them may still write to others there is nothing to wait for.
        p2p.and_then(|()| self.grace()).and(all(self.devices(), PciDevice::to_ndma))
    }

    /// All devices to STOP (STOP_COPY for those in pre-copy); permits are given back. When it returns
    /// `Ok`, no device does DMA or interrupts; those in ERROR cannot.
    ///
    /// # Errors
    /// The first device that refuses; all were asked.
    pub fn to_stop(&self) -> Result<(), DeviceError> {
        all(self.devices(), PciDevice::to_stop)
    }

    /// Reads every doorbell's eventfd out; what was rung becomes part of [`save`](Self::save) and is
    /// replayed by [`run`](Self::run). The vCPUs stand and the I/O thread is parked.
    pub fn drain_doorbells(&self) {
        for device in self.devices() {
            device.doorbells.drain();
        }
    }

    /// Takes the irqfds off. When it returns, every interrupt sent is in the interrupt controllers,
    /// whose state may be read; a later one becomes a pending bit.
    ///
    /// # Errors
    /// The machine refuses; the set can still [`run`](Self::run).
    pub fn irqfds_off(&self) -> Result<(), DeviceError> {
        all(self.devices(), |device| wired(device, "take its irqfds off", device.interrupts.hold()))
    }

    /// Puts the irqfds on and delivers what is pending and not masked. The interrupt controllers'
    /// state is in place.
    ///
    /// # Errors
    /// The machine refuses.
    pub fn irqfds_on(&self) -> Result<(), DeviceError> {
        all(self.devices(), |device| {
            wired(device, "put its irqfds on", device.interrupts.release())
        })
    }

    /// Reads state of a stopped device, going on where pre-copy ended.
    ///
    /// # Errors
    /// No such device, it is in ERROR, refuses, sends more than announced, or lacks what others have
    /// sent to it; a buffer without room.
    pub fn stop_copy_read(&self, index: usize, buf: &mut [u8]) -> Result<StateRead, DeviceError> {
        let device = self.device(index)?;
        device.undelivered()?;
        device.stop_copy_read(buf)
    }

    /// Gives the whole state of a stopped device to `each`, read anew: the same bytes on both sides
    /// of a migration. Not in the middle of [`stop_copy_read`](Self::stop_copy_read).
    ///
    /// # Errors
    /// No such device, it runs, is in ERROR or refuses.
    pub fn inspect_state(&self, index: usize, each: impl FnMut(&[u8])) -> Result<(), DeviceError> {
        self.device(index)?.inspect_state(each)
    }

    /// All devices to RESUMING, interrupts held.
    ///
    /// # Errors
    /// A device that cannot be migrated or refuses.
    pub fn begin_resume(&self) -> Result<(), DeviceError> {
        self.irqfds_off()?;
        self.devices().iter().try_for_each(|device| device.begin_resume())
    }

    /// Takes bytes that the source's reads of the same device gave, in order, in any pieces.
    ///
    /// # Errors
    /// No such device, damaged frames, or the device refuses its state.
    pub fn load_chunk(&self, index: usize, bytes: &[u8]) -> Result<(), DeviceError> {
        self.device(index)?.load_chunk(bytes)
    }

    /// One device's state is complete: RESUMING to STOP, in which the device checks it.
    ///
    /// # Errors
    /// The state is cut, or the device refuses it.
    pub fn commit_device(&self, index: usize) -> Result<(), DeviceError> {
        self.device(index)?.commit()
    }

    /// [`commit_device`](Self::commit_device) for all.
    ///
    /// # Errors
    /// The first device that refuses; all were asked.
    pub fn commit(&self) -> Result<(), DeviceError> {
        all(self.devices(), PciDevice::commit)
    }

    /// From any state but RESUMING to RUNNING, in two passes; then doorbells that were read out are
    /// rung. Interrupts are on, and a permit is held for each device. vCPUs start next.
    ///
    /// A device that does not come up costs itself, not the VM: what went wrong is returned.
    ///
    /// # Errors
    /// No permit, or the irqfds cannot be put on: nothing runs then.
    pub fn run(
        &self,
        permit: &mut dyn FnMut(&str) -> Result<Permit, Fault>,
    ) -> Result<Vec<DeviceError>, DeviceError> {
        let mut permits = Vec::with_capacity(self.len());
        for device in self.devices() {
            let taken = permit(device.label());
            permits.push(
                taken.map_err(|source| DeviceError::Permit {
                    device: device.label().into(),
                    source,
                })?,
            );
        }
        self.irqfds_on()?;
        let started = self.devices().iter().zip(permits);
        let started: Vec<_> = started.map(|(device, permit)| device.start_p2p(permit)).collect();
        let running = self.devices().iter().zip(started).map(|(device, started)| {
            let started = started.and_then(|()| device.start_running());
            started.inspect_err(|_| device.no_peers())
        });
        let down: Vec<_> = running.filter_map(Result::err).collect();
        for error in &down {
            let error = error as &dyn std::error::Error;
            tracing::error!(error, "the VM goes on without a device");
        }
        Ok(down)
    }

    /// True if a device holds a permit.
    #[must_use]
    pub fn holds_permits(&self) -> bool {
        self.devices().iter().any(|device| device.holds_permit())
    }
}

fn wired(
    device: &PciDevice,
    what: &'static str,
    result: Result<(), crate::wiring::WiringError>,
) -> Result<(), DeviceError> {
    result.map_err(|source| DeviceError::Wiring { device: device.label().into(), what, source })
}
