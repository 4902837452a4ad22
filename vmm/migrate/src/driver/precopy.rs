//! The rounds, while the guest runs.

use std::time::Duration;

use super::source::Session;
use crate::converge::{Decision, Terms, per_second};
use crate::error::Error;
use crate::host::{DeviceRead, Harvest, PAGE_SIZE, SourceHost};
use crate::phase::Phase;
use crate::report::{Event, Round, micros};
use crate::wire::message::{DeviceData, Sync, Synced};
use crate::wire::{MAX_CHUNK, Tag};

/// State records up to this size are queued, and go with the next large one.
const QUEUE_UP_TO: usize = 16 << 10;
/// What pre-copy may take from a device in one round beyond what it announced.
const PRECOPY_EXTRA: u64 = 1 << 20;

impl<H: SourceHost> Session<'_, H> {
    /// From `track-start` until a stop is worth it.
    pub(super) fn precopy(&mut self) -> Result<(), Error> {
        self.enter(Phase::TrackStart)?;
        self.tracking = true;
        let started = self.host.track_start();
        started.map_err(Error::host(self.phase, "track_start"))?;

        self.enter(Phase::Bulk)?;
        self.begin_round(0);
        // Only so that the log can be cleared: everything is sent, whatever it says.
        self.harvest(Harvest::Round, false)?;
        self.ram.set_all().map_err(Error::bitmap)?;
        let mut harvested = self.channel.now();
        self.send_dirty(true)?;
        self.end_round()?;
        let begun = self.host.rounds_begin();
        begun.map_err(Error::host(self.phase, "rounds_begin"))?;

        loop {
            self.round += 1;
            self.enter(Phase::Harvest)?;
            self.begin_round(self.round);
            let before = self.channel.now();
            self.harvest(Harvest::Round, true)?;
            self.harvest_time = self.channel.now().saturating_sub(before);
            let counts = self.ram.counts();
            self.now.dirty_by_cpu = counts.vcpus;
            self.now.dirty_by_dma = counts.dma;
            let dirty_bytes = counts.either * PAGE_SIZE as u64;
            self.now.dirty_rate = per_second(dirty_bytes, before.saturating_sub(harvested));
            harvested = before;

            self.enter(Phase::Resend)?;
            self.send_dirty(true)?;

            self.enter(Phase::DevicePrecopy)?;
            self.device_precopy()?;
            self.end_round()?;

            self.enter(Phase::Forecast)?;
            if self.forecast(harvested)? {
                return Ok(());
            }
        }
    }

    fn begin_round(&mut self, round: u32) {
        self.now = Round { round, ..Round::default() };
        self.data_bytes = 0;
        self.round_begin = self.channel.now();
        self.round_bytes = self.channel.writer.bytes();
    }

    /// Waits until the destination has read the whole round: what is in a socket's buffer is not
    /// sent, and would make the bandwidth look better than it is.
    fn end_round(&mut self) -> Result<(), Error> {
        let sync = Sync { round: self.now.round, reserved: 0 };
        self.channel.writer.queue(Tag::Sync, false, &[&sync.encode()]);
        let begin = self.channel.now();
        self.channel.flush(self.send_deadline())?;
        let per_gib = Duration::from_secs(1) * u32::try_from(self.ram.pages >> 18).unwrap_or(0);
        let until = self.channel.now() + self.options.deadlines.idle + per_gib;
        let record = self.channel.next(until, "answer the end of a round")?;
        if record.tag != Tag::Synced {
            return Err(self.channel.unexpected(&record, "a round's end is to be answered"));
        }
        let synced = Synced::decode(self.channel.reader.payload(&record), record.at);
        let synced = synced.map_err(|e| self.channel.stream(e))?;
        if synced.round != self.now.round {
            return Err(self.channel.unexpected(&record, "it is of another round"));
        }
        let end = self.channel.now();
        let busy = Duration::from_micros(synced.busy_us);
        let answer = end.saturating_sub(begin).saturating_sub(busy);
        self.round_trip = Some(self.round_trip.map_or(answer, |best| best.min(answer)));
        let time = end.saturating_sub(self.round_begin).saturating_sub(busy);
        self.now.bytes = self.channel.writer.bytes() - self.round_bytes;
        self.now.time_us = micros(time);
        self.now.bandwidth = self.convergence.sent(self.data_bytes, time);
        self.report.rounds.push(self.now);
        self.show_progress();
        self.hooks.event(&Event::Round(self.now));
        Ok(())
    }

    /// Looks at what is dirty now, and whether a stop would keep to the limit.
    fn forecast(&mut self, harvested: Duration) -> Result<bool, Error> {
        self.harvest(Harvest::Round, true)?;
        let since = self.channel.now().saturating_sub(harvested);
        let dirty_pages = self.ram.counts().either;
        let pending = self.host.device_pending();
        let pending = pending.map_err(Error::host(self.phase, "device_pending"))?;
        let terms = Terms {
            dirty_pages,
            device_bytes: pending.precopy_bytes.saturating_add(pending.stop_copy_bytes),
            fixed: self.host.fixed_downtime()
                + self.harvest_time
                + self.round_trip.unwrap_or_default(),
        };
        let forecast = self.convergence.forecast(self.round, &terms);
        self.report.forecast = Some(forecast);
        self.hooks.event(&Event::Forecast(forecast));
        let dirty_rate = per_second(dirty_pages * PAGE_SIZE as u64, since);
        self.control.update(|status| {
            status.expected_downtime = forecast.downtime_us.div_ceil(1000);
            status.ram.remaining = dirty_pages * PAGE_SIZE as u64;
            status.ram.dirty_pages_rate = dirty_rate / PAGE_SIZE as u64;
            status.drogher.forecast_us = forecast.downtime_us;
        });
        match self.convergence.decide(&forecast, dirty_rate, self.elapsed()) {
            Decision::Stop => Ok(true),
            Decision::Another => Ok(false),
            Decision::TimedOut => Err(self.timed_out()),
            Decision::Hopeless => Err(Error::NotConverging {
                dirty: dirty_rate,
                sent: self.convergence.bandwidth(),
                forecast: self.convergence.best(),
                fixed: terms.fixed,
                downtime: self.options.downtime,
            }),
        }
    }

    fn device_precopy(&mut self) -> Result<(), Error> {
        let pending = self.host.device_pending();
        let pending = pending.map_err(Error::host(self.phase, "device_pending"))?;
        for device in 0..self.config.devices.len() {
            // A device that always has more must not keep the round from ending.
            let mut left = pending.precopy_bytes.saturating_add(PRECOPY_EXTRA);
            while left > 0 {
                self.check()?;
                match self.send_device_piece(device, false)? {
                    Some(bytes) => left = left.saturating_sub(bytes),
                    None => break,
                }
            }
        }
        Ok(())
    }

    /// Sends one piece of a device's state; its size, or `None` if there is nothing (more).
    pub(super) fn send_device_piece(
        &mut self,
        device: usize,
        stopped: bool,
    ) -> Result<Option<u64>, Error> {
        let call = if stopped { "device_state" } else { "device_precopy" };
        let phase = self.phase;
        let rule = |what: String| Error::HostRule { phase, call, what };
        let (Some(config), Some(sent)) =
            (self.config.devices.get(device), self.devices.get_mut(device))
        else {
            return Ok(None);
        };
        let most = usize::try_from(config.max_state).unwrap_or(usize::MAX);
        let space = self.buffer.get_mut(..MAX_CHUNK.min(most)).unwrap_or_default();
        let size = space.len();
        let read = match stopped {
            true => self.host.device_state(device, space),
            false => self.host.device_precopy(device, space),
        };
        let bytes = match read.map_err(Error::host(phase, call))? {
            DeviceRead::Bytes(bytes) => bytes,
            DeviceRead::NoMoreNow if !stopped => return Ok(None),
            DeviceRead::End => return Ok(None),
            DeviceRead::NoMoreNow => {
                return Err(rule("there is no temporary end of a stopped device".into()));
            }
        };
        let total = sent.bytes.saturating_add(bytes as u64);
        if bytes == 0 || bytes > size || total > config.max_state {
            return Err(rule(format!(
                "{} has given {bytes} bytes for {size}, {total} in all with a limit of {}",
                config.label(),
                config.max_state
            )));
        }
        let data = self.buffer.get(..bytes).unwrap_or_default();
        sent.hash.update(data);
        sent.bytes = total;
        let head =
            DeviceData { device: u32::try_from(device).unwrap_or(u32::MAX), reserved: 0 }.encode();
        if bytes <= QUEUE_UP_TO && self.channel.writer.has_room(head.len() + bytes) {
            self.channel.writer.queue(Tag::DeviceData, false, &[&head, data]);
        } else {
            let until = self.send_deadline();
            self.channel.record(Tag::DeviceData, &[&head, data], &[], until)?;
        }
        self.now.device_bytes += bytes as u64;
        self.data_bytes += bytes as u64;
        self.report.device_bytes += bytes as u64;
        Ok(Some(bytes as u64))
    }
}
