//! The stop: everything from the kick of the vCPUs until READY. Nothing here allocates.

use std::time::{Duration, Instant};

use drogher_iommu_types::mutant;

use super::source::Session;
use crate::error::Error;
use crate::hash::{Hasher, hash_of};
use crate::host::{Harvest, SourceHost};
use crate::lease::HeldLease;
use crate::phase::Phase;
use crate::report::micros;
use crate::wire::message::{DeviceEnd, Epoch, HANDOVER_PAUSED, HANDOVER_VERIFY, Handover};
use crate::wire::{MAX_CHUNK, Tag};

/// What has been sent of a device's state.
#[derive(Default)]
pub(super) struct DeviceSent {
    pub(super) hash: Hasher,
    pub(super) bytes: u64,
}

impl<H: SourceHost> Session<'_, H> {
    /// Stops the guest and sends the rest, in the order that loses nothing: vCPUs, then devices;
    /// then the last dirty pages; then the state of devices and vCPUs; and what saving dirtied.
    pub(super) fn stop_and_send(&mut self, lease: &HeldLease) -> Result<(), Error> {
        let mut mark = self.stopped_at;
        let paused = self.host.pause_vcpus();
        let paused = paused.map_err(Error::host(self.phase, "pause_vcpus"))?;
        if let Some(how) = paused.ended {
            return Err(Error::GuestEnded(how));
        }
        self.report.downtime.pause_us = self.lap(&mut mark);

        self.enter(Phase::Quiesce)?;
        let quiesced = self.host.quiesce();
        quiesced.map_err(Error::host(self.phase, "quiesce"))?;
        self.report.downtime.quiesce_us = self.lap(&mut mark);

        self.enter(Phase::Stop)?;
        let stopped = self.host.stop();
        stopped.map_err(Error::host(self.phase, "stop"))?;
        let closed = lease.close(Instant::now() + self.options.deadlines.permits);
        closed.map_err(Error::lease(self.phase))?;
        self.report.downtime.stop_us = self.lap(&mut mark);

        let before = (self.report.pages, self.channel.writer.bytes());
        self.enter(Phase::FinalHarvest)?;
        self.harvest(Harvest::Final, true)?;
        // Cleared, so that the last harvest finds what saving dirties and not all of this again.
        self.send_dirty(true)?;
        self.report.downtime.final_us = self.lap(&mut mark);

        self.enter(Phase::DeviceState)?;
        self.send_state()?;
        self.report.downtime.state_us = self.lap(&mut mark);

        self.enter(Phase::LastHarvest)?;
        if !mutant!("last-harvest-skipped") {
            self.harvest(Harvest::Last, true)?;
            self.send_dirty(false)?;
        }
        let mut flags = 0;
        if paused.by_user {
            flags |= HANDOVER_PAUSED;
        }
        if self.options.verify {
            flags |= HANDOVER_VERIFY;
        }
        let handover = Handover {
            epoch: lease.epoch(),
            flags,
            machine_bytes: self.machine_state.len() as u64,
            machine_hash: hash_of(&self.machine_state),
        };
        let until = self.send_deadline();
        self.channel.record(Tag::Handover, &[&handover.encode()], &[], until)?;
        self.report.downtime.last_us = self.lap(&mut mark);
        self.report.downtime.pages = self.report.pages - before.0;
        self.report.downtime.bytes = self.channel.writer.bytes() - before.1;
        self.sent_at = mark;
        self.enter(Phase::Ready)
    }

    fn lap(&self, mark: &mut Duration) -> u64 {
        let now = self.channel.now();
        micros(now.saturating_sub(std::mem::replace(mark, now)))
    }

    fn send_state(&mut self) -> Result<(), Error> {
        for device in 0..self.config.devices.len() {
            while self.send_device_piece(device, true)?.is_some() {
                self.check()?;
            }
            let Some(sent) = self.devices.get(device) else {
                break;
            };
            let end = DeviceEnd {
                device: u32::try_from(device).unwrap_or(u32::MAX),
                reserved: 0,
                total: sent.bytes,
                hash: sent.hash.digest(),
            };
            self.channel.writer.queue(Tag::DeviceEnd, false, &[&end.encode()]);
            if !self.channel.writer.has_room(MAX_CHUNK / 8) {
                self.channel.flush(self.send_deadline())?;
            }
        }
        self.machine_state.clear();
        let saved = self.host.machine_state(&mut self.machine_state);
        saved.map_err(Error::host(self.phase, "machine_state"))?;
        let bytes = self.machine_state.len() as u64;
        if bytes > self.config.max_machine_state {
            return Err(Error::HostRule {
                phase: self.phase,
                call: "machine_state",
                what: format!(
                    "{bytes} bytes are more than the {} announced",
                    self.config.max_machine_state
                ),
            });
        }
        for chunk in self.machine_state.chunks(MAX_CHUNK) {
            if self.channel.writer.has_room(chunk.len()) {
                self.channel.writer.queue(Tag::MachineState, false, &[chunk]);
            } else {
                let until = self.stop_deadline;
                self.channel.record(Tag::MachineState, &[chunk], &[], until)?;
            }
        }
        Ok(())
    }

    /// Waits for READY, with verification before it if that was asked for. The epoch that the
    /// destination is ready for.
    pub(super) fn await_ready(&mut self) -> Result<u64, Error> {
        if self.options.verify {
            let record = self.channel.next(self.stop_deadline, "load the guest")?;
            if record.tag != Tag::Loaded {
                return Err(self.channel.unexpected(&record, "verification was asked for"));
            }
            let loaded = self.channel.now();
            self.report.downtime.ready_us = micros(loaded.saturating_sub(self.sent_at));
            self.verify()?;
            let verified = self.channel.now();
            let time = verified.saturating_sub(loaded);
            self.report.downtime.verify_us = micros(time);
            self.stop_deadline += time;
            self.sent_at = verified;
        }
        let record = self.channel.next(self.stop_deadline, "say READY")?;
        if record.tag != Tag::Ready {
            return Err(self.channel.unexpected(&record, "READY is awaited"));
        }
        let ready = Epoch::decode(self.channel.reader.payload(&record), record.at);
        let ready = ready.map_err(|e| self.channel.stream(e))?;
        let now = self.channel.now();
        self.ready_at = now;
        self.report.downtime.ready_us += micros(now.saturating_sub(self.sent_at));
        Ok(ready.epoch)
    }
}
