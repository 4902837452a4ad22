//! The source's driver: performs what [`crate::source::Source`] decides.

use std::time::Duration;

use super::Env;
use super::channel::Channel;
use super::ram::Ram;
use super::switchover::DeviceSent;
use crate::config::ConfigBlock;
use crate::control::Control;
use crate::converge::Convergence;
use crate::error::Error;
use crate::host::SourceHost;
use crate::lease::HeldLease;
use crate::link::{Hooks, Link};
use crate::options::SourceOptions;
use crate::outcome::{SourceEnd, SourceOutcome};
use crate::phase::{Phase, Side};
use crate::report::{Event, Report, Round, micros};
use crate::source::{Event as Happened, Source};
use crate::status::MigrationStatus;
use crate::wire::Tag;
use crate::wire::message::PhaseReached;
use crate::wire::pages::PagesBuilder;

/// Moves the guest of `host` to whoever is at the other end of `link`. Returns when it is decided
/// where the guest runs; see [`SourceOutcome`].
///
/// `lease` must be held, with the guest running (or paused by the user) on its permits.
pub fn send<'a, H: SourceHost>(
    host: &'a mut H,
    link: &'a mut dyn Link,
    lease: HeldLease,
    env: Env<'a>,
    options: &'a SourceOptions,
) -> SourceEnd {
    if let Err(refusal) = env.control.begin() {
        return SourceEnd {
            outcome: SourceOutcome::Stays { why: Error::Busy(refusal) },
            lease: Some(lease),
            report: Report::default(),
        };
    }
    let control = env.control;
    let mut session = Session::new(host, link, env, options);
    let end = session.run(lease);
    control.end();
    end
}

/// One migration of the source.
pub(super) struct Session<'a, H: SourceHost> {
    pub(super) host: &'a mut H,
    pub(super) channel: Channel<'a>,
    pub(super) hooks: &'a mut dyn Hooks,
    pub(super) control: &'a Control,
    pub(super) options: &'a SourceOptions,
    pub(super) config: ConfigBlock,
    pub(super) ram: Ram,
    pub(super) builder: PagesBuilder,
    pub(super) buffer: Vec<u8>,
    pub(super) machine_state: Vec<u8>,
    pub(super) devices: Vec<DeviceSent>,
    pub(super) convergence: Convergence,
    pub(super) report: Report,
    pub(super) phase: Phase,
    pub(super) round: u32,
    /// The round that is going on.
    pub(super) now: Round,
    pub(super) data_bytes: u64,
    pub(super) records: u32,
    /// When pages were sent last.
    pub(super) flushed_at: Duration,
    pub(super) begin: Duration,
    pub(super) round_begin: Duration,
    pub(super) round_bytes: u64,
    pub(super) harvest_time: Duration,
    pub(super) round_trip: Option<Duration>,
    pub(super) stopped_at: Duration,
    pub(super) sent_at: Duration,
    pub(super) ready_at: Duration,
    pub(super) stop_deadline: Duration,
    /// How long the stop may take until READY.
    pub(super) stop_limit: Duration,
    /// Dirty logs are on, at least in part.
    pub(super) tracking: bool,
    /// The destination has accepted: it may be told of phases.
    pub(super) accepted: bool,
    /// A page was left out already: a deliberate fault needs to happen once.
    pub(super) left_out: bool,
}

impl<'a, H: SourceHost> Session<'a, H> {
    fn new(
        host: &'a mut H,
        link: &'a mut dyn Link,
        env: Env<'a>,
        options: &'a SourceOptions,
    ) -> Self {
        let channel = Channel::new(link, env.clock, env.control, options.deadlines.poll);
        let begin = channel.now();
        Self {
            host,
            channel,
            hooks: env.hooks,
            control: env.control,
            options,
            config: ConfigBlock::empty(),
            ram: Ram::default(),
            builder: PagesBuilder::new(options.hash_pages),
            buffer: Vec::new(),
            machine_state: Vec::new(),
            devices: Vec::new(),
            convergence: Convergence::new(options),
            report: Report::default(),
            phase: Phase::Setup,
            round: 0,
            now: Round::default(),
            data_bytes: 0,
            records: 0,
            flushed_at: begin,
            begin,
            round_begin: begin,
            round_bytes: 0,
            harvest_time: Duration::ZERO,
            round_trip: None,
            stopped_at: begin,
            sent_at: begin,
            ready_at: begin,
            stop_deadline: begin,
            stop_limit: Duration::ZERO,
            tracking: false,
            accepted: false,
            left_out: false,
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.channel.now().saturating_sub(self.begin)
    }

    /// Until when a record that is sent now must have gone.
    pub(super) fn send_deadline(&self) -> Duration {
        match self.phase.in_switchover() {
            true => self.stop_deadline,
            false => self.channel.now() + self.options.deadlines.idle,
        }
    }

    /// Fails if somebody asks to give up, or the time is over.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.channel.check_stop()?;
        if !self.phase.in_switchover() && self.convergence.is_over(self.elapsed()) {
            return Err(self.timed_out());
        }
        Ok(())
    }

    /// Names the limit of the stop where that was what ran out.
    pub(super) fn in_the_stop(&self, error: Error) -> Error {
        match error {
            Error::Deadline { phase, what, .. } if self.channel.now() >= self.stop_deadline => {
                Error::Switchover { phase, what, limit: self.stop_limit }
            }
            error => error,
        }
    }

    pub(super) fn timed_out(&self) -> Error {
        Error::Timeout {
            limit: self.options.timeout,
            forecast: self
                .report
                .forecast
                .map_or(Duration::ZERO, |f| Duration::from_micros(f.downtime_us)),
            downtime: self.options.downtime,
        }
    }

    /// A phase begins: everybody is told, and whoever asked to give up is heard.
    pub(super) fn enter(&mut self, phase: Phase) -> Result<(), Error> {
        self.reach(phase);
        if self.accepted && phase < Phase::Ready {
            let reached = PhaseReached { phase: phase as u32, round: self.round };
            self.channel.writer.queue(Tag::Phase, true, &[&reached.encode()]);
            // In the downtime it goes with the next pages.
            if phase <= Phase::PauseVcpus {
                self.channel.flush(self.send_deadline())?;
            }
        }
        self.channel.check_stop()
    }

    pub(super) fn reach(&mut self, phase: Phase) {
        self.phase = phase;
        self.channel.phase = phase;
        self.control.enter(phase);
        tracing::debug!(
            round = self.round,
            seven_step = phase.seven_step().unwrap_or("-"),
            "source: {phase}"
        );
        self.hooks.reached(Side::Source, phase);
        self.hooks.event(&Event::Phase { phase, round: self.round, at_us: micros(self.elapsed()) });
    }

    fn run(&mut self, lease: HeldLease) -> SourceEnd {
        let mut machine = Source::new(lease.epoch());
        let mut why = None;
        if let Err(error) = self.setup(&lease).and_then(|()| self.precopy()) {
            why = Some(error);
            machine.on(Happened::Failed);
        } else {
            match self.begin_stop(&mut machine).and_then(|()| self.stop_and_send(&lease)) {
                Ok(()) => machine.on(Happened::Sent),
                Err(error) => {
                    why = Some(self.in_the_stop(error));
                    machine.on(Happened::Failed);
                }
            }
        }
        self.hand_over(machine, lease, why)
    }

    fn begin_stop(&mut self, machine: &mut Source) -> Result<(), Error> {
        let phase = self.enter(Phase::PauseVcpus);
        self.stopped_at = self.channel.now();
        // A stop that is forecast to take long, because the user lets it, may take longer still.
        let forecast = self.report.forecast.map_or(0, |f| f.downtime_us);
        self.stop_limit = self.options.deadlines.switchover + 2 * Duration::from_micros(forecast);
        self.stop_deadline = self.stopped_at + self.stop_limit;
        self.control.update(|s| s.status = MigrationStatus::Device);
        // Nothing is stopped yet: an error so far needs no resuming.
        phase?;
        machine.on(Happened::StopBegun);
        Ok(())
    }

    /// Brings the status up to date.
    pub(super) fn show_progress(&mut self) {
        let (report, now) = (&self.report, &self.now);
        let bytes = self.channel.writer.bytes();
        let total_ms = micros(self.elapsed()) / 1000;
        let time_us = now.time_us.max(1);
        let normal = report.pages - report.zero_pages;
        let round = self.round;
        self.control.update(|s| {
            s.drogher.side = Some(Side::Source);
            s.total_time = total_ms;
            s.downtime = report.downtime.total_us.div_ceil(1000);
            s.ram.transferred = bytes;
            s.ram.duplicate = report.zero_pages;
            s.ram.normal = normal;
            s.ram.normal_bytes = normal * 4096;
            s.ram.dirty_sync_count = u64::from(round) + 1;
            s.ram.downtime_bytes = report.downtime.bytes;
            s.ram.precopy_bytes = bytes - report.downtime.bytes;
            if now.time_us > 0 {
                s.ram.mbps = now.bytes as f64 * 8.0 / time_us as f64;
                s.ram.pages_per_second = now.pages.saturating_mul(1_000_000) / time_us;
            }
            s.vfio.transferred = report.device_bytes;
            s.drogher.round = round;
            s.drogher.dirty_by_cpu = now.dirty_by_cpu;
            s.drogher.dirty_by_dma = now.dirty_by_dma;
            s.drogher.bandwidth = now.bandwidth;
            s.drogher.downtime_us = report.downtime.total_us;
            s.drogher.pages_differing = report.verified.as_ref().map(|v| v.differing);
        });
    }
}
