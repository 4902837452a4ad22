//! The destination's driver: performs what [`crate::destination::Destination`] decides.

use std::time::Duration;

use drogher_iommu_types::PAGE_SIZE;

use super::Env;
use super::channel::{Channel, stopped};
use super::contest::{Contest, Holding};
use super::load::Loader;
use crate::config::ConfigBlock;
use crate::control::Control;
use crate::destination::{Action, Destination, Event as Happened, Verdict};
use crate::error::{Error, chain};
use crate::host::DestinationHost;
use crate::lease::{HeldLease, Lease, LeaseError};
use crate::link::{Clock, Hooks, Link, LinkError};
use crate::options::DestinationOptions;
use crate::outcome::{DestinationEnd, DestinationOutcome};
use crate::phase::{Phase, Side};
use crate::report::{Event, Report, micros};
use crate::status::MigrationStatus;
use crate::wire::Tag;
use crate::wire::message::{Epoch, Running};

/// Takes a guest from whoever is at the other end of `link`. Returns when it is decided whether
/// it runs here; see [`DestinationOutcome`].
pub fn receive<'a, H: DestinationHost>(
    host: &'a mut H,
    link: &'a mut dyn Link,
    env: Env<'a>,
    options: &'a DestinationOptions,
) -> DestinationEnd {
    if let Err(refusal) = env.control.begin() {
        return DestinationEnd {
            outcome: DestinationOutcome::NotTaken { why: Error::Busy(refusal) },
            lease: None,
            report: Report::default(),
        };
    }
    let control = env.control;
    let mut incoming = Incoming::new(host, link, env, options);
    let end = incoming.run();
    control.end();
    end
}

/// How often the status is brought up to date while pages come.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// One migration of the destination.
pub(super) struct Incoming<'a, H: DestinationHost> {
    pub(super) host: &'a mut H,
    pub(super) channel: Channel<'a>,
    clock: &'a dyn Clock,
    hooks: &'a mut dyn Hooks,
    pub(super) control: &'a Control,
    pub(super) options: &'a DestinationOptions,
    pub(super) config: ConfigBlock,
    pub(super) report: Report,
    pub(super) phase: Phase,
    pub(super) paused: bool,
    pub(super) verify: bool,
    begin: Duration,
    /// When the status was last brought up to date between two phases.
    shown: Duration,
}

impl<'a, H: DestinationHost> Incoming<'a, H> {
    fn new(
        host: &'a mut H,
        link: &'a mut dyn Link,
        env: Env<'a>,
        options: &'a DestinationOptions,
    ) -> Self {
        let channel = Channel::new(link, env.clock, env.control, options.deadlines.poll);
        let begin = channel.now();
        Self {
            host,
            channel,
            clock: env.clock,
            hooks: env.hooks,
            control: env.control,
            options,
            config: ConfigBlock::empty(),
            report: Report::default(),
            phase: Phase::Setup,
            paused: false,
            verify: false,
            begin,
            shown: begin,
        }
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.channel.now().saturating_sub(self.begin)
    }

    /// A phase begins.
    pub(super) fn reach(&mut self, phase: Phase, round: u32) {
        self.phase = phase;
        self.channel.phase = phase;
        self.control.enter(phase);
        tracing::debug!(round, "destination: {phase}");
        self.hooks.reached(Side::Destination, phase);
        let at_us = micros(self.elapsed());
        self.hooks.event(&Event::Phase { phase, round, at_us });
        let rounds = u64::from(round) + 1;
        self.show_progress();
        self.control.update(|s| {
            s.drogher.round = round;
            s.ram.dirty_sync_count = rounds;
            s.status = match phase {
                Phase::Setup => MigrationStatus::Setup,
                phase if phase.in_switchover() => MigrationStatus::Device,
                _ => MigrationStatus::Active,
            };
        });
    }

    /// The same, unless it was a moment ago: for what happens often.
    pub(super) fn show_progress_now_and_then(&mut self) {
        let now = self.channel.now();
        if now.saturating_sub(self.shown) >= SHOW_EVERY {
            self.shown = now;
            self.show_progress();
        }
    }

    /// Brings the status up to date. The downtime is the source's to say.
    fn show_progress(&self) {
        let report = &self.report;
        let (total, bytes) = (micros(self.elapsed()) / 1000, self.channel.reader.bytes());
        let normal = report.pages - report.zero_pages;
        self.control.update(|s| {
            s.drogher.side = Some(Side::Destination);
            s.total_time = total;
            s.ram.transferred = bytes;
            s.ram.duplicate = report.zero_pages;
            s.ram.normal = normal;
            s.ram.normal_bytes = normal * PAGE_SIZE;
            s.vfio.transferred = report.device_bytes;
        });
    }

    pub(super) fn event(&mut self, event: &Event) {
        self.hooks.event(event);
    }

    /// Until when the next record must have come.
    pub(super) fn idle_deadline(&self) -> Duration {
        self.channel.now() + self.options.deadlines.idle
    }

    fn run(&mut self) -> DestinationEnd {
        match self.setup() {
            Ok((lease, loader)) => self.take_over(lease, loader),
            Err(error) => self.not_taken(error),
        }
    }

    /// It ends before READY: the source is told, if it can be.
    fn not_taken(&mut self, why: Error) -> DestinationEnd {
        let until = self.channel.now() + self.options.deadlines.poll;
        // A refusal was told in its own record.
        if !matches!(why, Error::Refused(_)) {
            self.channel.give_up(Tag::Failed, &why, until);
        }
        self.end(DestinationOutcome::NotTaken { why }, None)
    }

    fn end(&mut self, outcome: DestinationOutcome, lease: Option<HeldLease>) -> DestinationEnd {
        self.report.total_us = micros(self.elapsed());
        self.report.bytes = self.channel.reader.bytes();
        self.event(&Event::Ended { at_us: self.report.total_us });
        self.show_progress();
        let (status, error) = match &outcome {
            DestinationOutcome::Runs { .. } => (MigrationStatus::Completed, None),
            DestinationOutcome::NotTaken { why } | DestinationOutcome::Lost { why } => {
                (MigrationStatus::Failed, Some(chain(why)))
            }
            DestinationOutcome::Halted { .. } => (
                MigrationStatus::Failed,
                Some("The source holds the lease, or has taken the guest back".into()),
            ),
        };
        self.control.update(|s| {
            s.status = status;
            s.error_desc = error;
        });
        DestinationEnd { outcome, lease, report: std::mem::take(&mut self.report) }
    }

    /// From the first record after the accept until it is decided who runs.
    fn take_over(&mut self, lease: Lease, mut loader: Loader) -> DestinationEnd {
        let deadlines = self.options.deadlines;
        let mut machine = Destination::new(self.config.epoch);
        let mut holding = Holding::free(lease, self.config.vm_id);
        let mut contest = Contest::new(&deadlines, self.config.total_pages());
        let mut why = None;
        let mut ran_at = Duration::ZERO;
        let mut told = false;
        loop {
            let event = match machine.action() {
                Action::Receive => match self.receive(&mut loader) {
                    Ok(None) => continue,
                    Ok(Some(epoch)) => Happened::Handover { epoch },
                    Err(error) => {
                        why = Some(error);
                        Happened::Failed
                    }
                },
                Action::Load => match self.load(&mut loader).and_then(|()| self.commit_to()) {
                    Ok(()) => Happened::Loaded,
                    Err(error) => {
                        why = Some(error);
                        Happened::Failed
                    }
                },
                Action::SayReady { epoch } => {
                    let until = self.channel.now() + deadlines.answer;
                    let ready = Epoch { epoch }.encode();
                    why = self.channel.record(Tag::Ready, &[&ready], &[], until).err();
                    Happened::ReadySaid
                }
                Action::AwaitCommit => match self.await_commit() {
                    Ok(epoch) => Happened::Commit { epoch },
                    Err(error) => {
                        why = why.or(Some(error));
                        Happened::NoAnswer
                    }
                },
                Action::TryLease => {
                    if self.phase != Phase::Commit {
                        self.reach(Phase::Commit, loader.round());
                    }
                    contest.begin(self.channel.now());
                    let mut broken = None;
                    let look = holding.look(&mut broken);
                    if let Some(error) = broken {
                        why = Some(Error::lease(self.phase)(error));
                    }
                    machine.on(Happened::Lease(look));
                    if machine.action() != Action::TryLease {
                        continue;
                    }
                    if contest.is_over(self.channel.now()) {
                        Happened::GraceOver
                    } else {
                        self.clock.sleep(deadlines.lease_poll);
                        continue;
                    }
                }
                Action::Enter { epoch } => {
                    let entered = holding.enter(epoch);
                    let ok = entered.is_ok();
                    if let Err(error) = entered {
                        why = Some(Error::lease(self.phase)(error));
                    }
                    Happened::Entered { ok }
                }
                Action::Start => {
                    self.reach(Phase::Running, loader.round());
                    let started = match holding.permits() {
                        Some(permits) => self
                            .host
                            .run(&permits, self.paused)
                            .map_err(Error::host(self.phase, "run")),
                        None => Err(Error::lease(self.phase)(LeaseError::NotHeld {
                            path: self.config.lease.path.clone(),
                        })),
                    };
                    ran_at = self.channel.now();
                    let ok = started.is_ok();
                    if let Err(error) = started {
                        why = Some(error);
                    }
                    Happened::Started { ok }
                }
                Action::SayRunning { epoch } => {
                    let at_ns = u64::try_from(ran_at.as_nanos()).unwrap_or(u64::MAX);
                    let running = Running { epoch, at_ns }.encode();
                    let until = self.channel.now() + deadlines.answer;
                    told = self.channel.is_alive()
                        && self.channel.record(Tag::Running, &[&running], &[], until).is_ok();
                    Happened::RunningSaid
                }
                Action::Done(verdict) => {
                    return self.conclude(verdict, why, told, holding);
                }
            };
            machine.on(event);
        }
    }

    /// From here on the user cannot give up any more: READY is a promise.
    fn commit_to(&mut self) -> Result<(), Error> {
        self.control.commit().map_err(stopped)?;
        self.channel.stop_heeding();
        Ok(())
    }

    fn await_commit(&mut self) -> Result<u64, Error> {
        let until = self.channel.now() + self.options.deadlines.answer;
        let record = self.channel.next(until, "say COMMIT")?;
        if record.tag != Tag::Commit {
            return Err(self.channel.unexpected(&record, "COMMIT is awaited"));
        }
        let payload = self.channel.reader.payload(&record);
        let commit = Epoch::decode(payload, record.at);
        Ok(commit.map_err(|e| self.channel.stream(e))?.epoch)
    }

    fn conclude(
        &mut self,
        verdict: Verdict,
        why: Option<Error>,
        told: bool,
        holding: Holding,
    ) -> DestinationEnd {
        let gone = |phase| Error::Link { phase, source: LinkError::Closed };
        match verdict {
            Verdict::Runs => {
                let outcome = DestinationOutcome::Runs { paused: self.paused, told };
                self.end(outcome, holding.into_held())
            }
            Verdict::NotTaken => {
                let why = why.unwrap_or_else(|| gone(self.phase));
                self.not_taken(why)
            }
            Verdict::Halted { epoch_moved } => {
                self.end(DestinationOutcome::Halted { why, epoch_moved }, None)
            }
            Verdict::Lost => {
                let why = why.unwrap_or_else(|| gone(self.phase));
                let until = self.channel.now() + self.options.deadlines.poll;
                // The lease first: the source looks there.
                drop(holding);
                self.channel.give_up(Tag::Failed, &why, until);
                self.end(DestinationOutcome::Lost { why }, None)
            }
        }
    }

    /// Takes the next record; the epoch if it was the last one.
    fn receive(&mut self, loader: &mut Loader) -> Result<Option<u64>, Error> {
        let until = self.idle_deadline();
        let record = self.channel.next(until, "send anything")?;
        self.take(loader, &record)
    }
}
