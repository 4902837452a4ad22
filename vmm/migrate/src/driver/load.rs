//! What the destination makes of the records: RAM, state, verification.

use std::ops::Range;

use drogher_iommu_types::{DirtyBitmap, Gpa};

use super::destination::Incoming;
use super::verify::PAGES_A_READ;
use crate::config::ConfigBlock;
use crate::error::Error;
use crate::hash::{Hasher, hash_of};
use crate::host::{DestinationHost, PAGE_SIZE};
use crate::phase::Phase;
use crate::report::{Event, Round, micros};
use crate::wire::message::{
    DeviceData, DeviceEnd, HANDOVER_PAUSED, HANDOVER_VERIFY, Handover, PhaseReached, Sync, Synced,
};
use crate::wire::pages::{MAX_DATA_PAGES, PagesHead};
use crate::wire::{Record, Tag, WireError};

/// One device's state so far.
#[derive(Default)]
struct DeviceGot {
    hash: Hasher,
    bytes: u64,
    complete: bool,
}

/// One region's pages so far.
pub(super) struct RegionGot {
    pages: Range<u64>,
    /// Has come, as contents or as zeroes.
    pub(super) seen: DirtyBitmap,
    /// Holds something else than zeroes, perhaps: a zero page is written only here.
    pub(super) written: DirtyBitmap,
}

/// What has come so far.
pub(super) struct Loader {
    regions: Vec<RegionGot>,
    devices: Vec<DeviceGot>,
    machine_state: Vec<u8>,
    pub(super) hash_pages: bool,
    /// Of the pages record that is being taken.
    pub(super) head: PagesHead,
    pub(super) round: Round,
    phase_round: u32,
    bulk_done: bool,
    pub(super) buffer: Vec<u8>,
}

impl Loader {
    /// Allocates all that is needed until READY.
    pub(super) fn new(config: &ConfigBlock, hash_pages: bool) -> Result<Self, Error> {
        let region = |r: &crate::config::MemoryRegion| {
            let range = Gpa(r.gpa)..Gpa(r.gpa + r.bytes);
            Ok(RegionGot {
                pages: r.pages(),
                seen: DirtyBitmap::new(range.clone())?,
                written: DirtyBitmap::new(range)?,
            })
        };
        let regions = config.memory.iter().map(region).collect::<Result<_, _>>();
        let mut devices = Vec::new();
        devices.resize_with(config.devices.len(), DeviceGot::default);
        let machine = usize::try_from(config.max_machine_state).unwrap_or(0);
        Ok(Self {
            regions: regions.map_err(Error::bitmap)?,
            devices,
            machine_state: Vec::with_capacity(machine),
            hash_pages,
            head: PagesHead::new(),
            round: Round::default(),
            phase_round: 0,
            bulk_done: false,
            buffer: vec![0; PAGES_A_READ.max(MAX_DATA_PAGES) * PAGE_SIZE],
        })
    }

    /// The round that the source is in.
    pub(super) fn round(&self) -> u32 {
        self.phase_round
    }

    pub(super) fn region(&self, pages: &Range<u64>) -> Option<&RegionGot> {
        let holds = |r: &&RegionGot| r.pages.start <= pages.start && pages.end <= r.pages.end;
        self.regions.iter().find(holds)
    }

    /// The first page that has not come.
    fn missing(&self) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let mut at = region.pages.start;
            for run in region.seen.runs() {
                if run.start.page() > at {
                    break;
                }
                at = run.end.page();
            }
            (at < region.pages.end).then_some(at)
        })
    }
}

pub(super) fn gpas(pages: &Range<u64>) -> Range<Gpa> {
    Gpa(pages.start << 12)..Gpa(pages.end << 12)
}

impl<H: DestinationHost> Incoming<'_, H> {
    /// Takes one record; the epoch if it was the handover.
    pub(super) fn take(
        &mut self,
        loader: &mut Loader,
        record: &Record,
    ) -> Result<Option<u64>, Error> {
        match record.tag {
            Tag::Pages => self.take_pages(loader, record)?,
            Tag::Phase => self.take_phase(loader, record)?,
            Tag::Sync => self.take_sync(loader, record)?,
            Tag::DeviceData => self.take_device(loader, record)?,
            Tag::DeviceEnd => self.finish_device(loader, record)?,
            Tag::MachineState => {
                let chunk = self.channel.reader.payload(record);
                let total = (loader.machine_state.len() + chunk.len()) as u64;
                if total > self.config.max_machine_state {
                    return Err(self.channel.stream(WireError::TooLong {
                        at: record.at,
                        length: total,
                        limit: self.config.max_machine_state,
                    }));
                }
                loader.machine_state.extend_from_slice(chunk);
            }
            Tag::Handover => return self.take_handover(loader, record).map(Some),
            _ => return Err(self.channel.unexpected(record, "the guest has not come yet")),
        }
        Ok(None)
    }

    fn take_phase(&mut self, loader: &mut Loader, record: &Record) -> Result<(), Error> {
        let payload = self.channel.reader.payload(record);
        let reached = PhaseReached::decode(payload, record.at);
        let reached = reached.map_err(|e| self.channel.stream(e))?;
        // Later phases are this side's own.
        let phase = Phase::from_number(reached.phase).filter(|p| *p < Phase::Ready);
        let Some(phase) = phase else {
            return Err(self.channel.stream(WireError::Value {
                at: record.at,
                what: "phase",
                value: reached.phase.into(),
            }));
        };
        loader.phase_round = reached.round;
        self.reach(phase, reached.round);
        Ok(())
    }

    fn take_sync(&mut self, loader: &mut Loader, record: &Record) -> Result<(), Error> {
        let sync = Sync::decode(self.channel.reader.payload(record), record.at);
        let round = sync.map_err(|e| self.channel.stream(e))?.round;
        let begin = self.channel.now();
        if !loader.bulk_done {
            if let Some(page) = loader.missing() {
                return Err(self.channel.stream(WireError::Value {
                    at: record.at,
                    what: "the bulk pass ends without page",
                    value: page,
                }));
            }
            loader.bulk_done = true;
        }
        let done = self.host.round_done(round);
        done.map_err(Error::host(self.phase, "round_done"))?;
        let busy = self.channel.now().saturating_sub(begin);
        let synced = Synced { round, reserved: 0, busy_us: micros(busy) };
        let until = self.channel.now() + self.options.deadlines.idle;
        self.channel.record(Tag::Synced, &[&synced.encode()], &[], until)?;
        let mut this = std::mem::take(&mut loader.round);
        this.round = round;
        self.report.rounds.push(this);
        self.event(&Event::Round(this));
        Ok(())
    }

    fn take_device(&mut self, loader: &mut Loader, record: &Record) -> Result<(), Error> {
        let payload = self.channel.reader.payload(record);
        let (head, data) =
            DeviceData::split(payload, record.at).map_err(|e| self.channel.stream(e))?;
        let index = usize::try_from(head.device).unwrap_or(usize::MAX);
        let (Some(config), Some(got)) =
            (self.config.devices.get(index), loader.devices.get_mut(index))
        else {
            return Err(self.channel.stream(WireError::Value {
                at: record.at,
                what: "device",
                value: head.device.into(),
            }));
        };
        if got.complete {
            return Err(self.channel.unexpected(record, "the device's state is complete"));
        }
        got.bytes = got.bytes.saturating_add(data.len() as u64);
        if got.bytes > config.max_state {
            return Err(self.channel.stream(WireError::TooLong {
                at: record.at,
                length: got.bytes,
                limit: config.max_state,
            }));
        }
        got.hash.update(data);
        let loaded = self.host.load_device(index, data);
        self.report.device_bytes += data.len() as u64;
        loaded.map_err(Error::host(self.phase, "load_device"))
    }

    fn finish_device(&mut self, loader: &mut Loader, record: &Record) -> Result<(), Error> {
        let end = DeviceEnd::decode(self.channel.reader.payload(record), record.at);
        let end = end.map_err(|e| self.channel.stream(e))?;
        let index = usize::try_from(end.device).unwrap_or(usize::MAX);
        let Some(got) = loader.devices.get_mut(index) else {
            return Err(self.channel.stream(WireError::Value {
                at: record.at,
                what: "device",
                value: end.device.into(),
            }));
        };
        if got.complete {
            return Err(self.channel.unexpected(record, "the device's state is complete"));
        }
        if (got.bytes, got.hash.digest()) != (end.total, end.hash) {
            return Err(self.channel.stream(WireError::Value {
                at: record.at,
                what: "bytes of device state, or their hash, differ from what came; total",
                value: end.total,
            }));
        }
        got.complete = true;
        let finished = self.host.finish_device(index);
        finished.map_err(Error::host(self.phase, "finish_device"))
    }

    fn take_handover(&mut self, loader: &mut Loader, record: &Record) -> Result<u64, Error> {
        let handover = Handover::decode(self.channel.reader.payload(record), record.at);
        let handover = handover.map_err(|e| self.channel.stream(e))?;
        if !loader.bulk_done {
            return Err(self.channel.unexpected(record, "RAM has not come yet"));
        }
        if loader.devices.iter().any(|d| !d.complete) {
            return Err(self.channel.unexpected(record, "a device's state is not complete"));
        }
        let state = &loader.machine_state;
        if (state.len() as u64, hash_of(state)) != (handover.machine_bytes, handover.machine_hash) {
            return Err(self.channel.stream(WireError::Value {
                at: record.at,
                what: "bytes of machine state, or their hash, differ from what came; total",
                value: handover.machine_bytes,
            }));
        }
        if handover.flags & !(HANDOVER_PAUSED | HANDOVER_VERIFY) != 0 {
            return Err(self.channel.stream(WireError::Value {
                at: record.at,
                what: "handover flags",
                value: handover.flags,
            }));
        }
        if handover.epoch != self.config.epoch {
            return Err(self.channel.stream(WireError::Value {
                at: record.at,
                what: "epoch",
                value: handover.epoch,
            }));
        }
        self.paused = handover.flags & HANDOVER_PAUSED != 0;
        self.verify = handover.flags & HANDOVER_VERIFY != 0;
        Ok(handover.epoch)
    }

    /// Sets the machine's state, and verifies everything if that was asked for.
    pub(super) fn load(&mut self, loader: &mut Loader) -> Result<(), Error> {
        let loaded = self.host.load_machine(&loader.machine_state);
        loaded.map_err(Error::host(self.phase, "load_machine"))?;
        if self.verify {
            let until = self.channel.now() + self.options.deadlines.idle;
            self.channel.record(Tag::Loaded, &[], &[], until)?;
            self.compare(loader)?;
        }
        self.reach(Phase::Ready, loader.phase_round);
        Ok(())
    }
}
