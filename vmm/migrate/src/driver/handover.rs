//! The source's half of the handover: performs what [`Source`] decides, and says how it ended.

use std::time::{Duration, Instant};

use super::channel::stopped;
use super::contest::{Contest, Holding};
use super::source::Session;
use crate::error::{Error, chain};
use crate::host::SourceHost;
use crate::lease::{HeldLease, LeaseError};
use crate::link::LinkError;
use crate::outcome::{SourceEnd, SourceOutcome};
use crate::phase::Phase;
use crate::report::{Event, micros};
use crate::source::{Action, Event as Happened, Source, Verdict};
use crate::status::MigrationStatus;
use crate::wire::Tag;
use crate::wire::message::{Epoch, Running};

impl<H: SourceHost> Session<'_, H> {
    /// From the end of the sending, or a failure, until it is decided who runs.
    pub(super) fn hand_over(
        &mut self,
        mut machine: Source,
        lease: HeldLease,
        mut why: Option<Error>,
    ) -> SourceEnd {
        let deadlines = self.options.deadlines;
        let mut holding = Holding::held(lease);
        let mut contest = Contest::new(&deadlines, self.ram.pages);
        let mut answer_until = Duration::MAX;
        let mut lease_error = None;
        let mut then = None;
        loop {
            let event = match machine.action() {
                // The stop has failed or ended before this loop.
                Action::GoOn => Happened::Failed,
                Action::AwaitReady => match self.await_ready() {
                    Ok(epoch) => Happened::Ready { epoch },
                    Err(error) => {
                        why = Some(self.in_the_stop(error));
                        Happened::Failed
                    }
                },
                Action::Release => {
                    // Whoever sees the phase is told that it is too late.
                    match self.control.commit() {
                        Err(stop) => {
                            why = Some(stopped(stop));
                            Happened::Failed
                        }
                        Ok(()) => {
                            self.channel.stop_heeding();
                            self.reach(Phase::Commit);
                            match holding.release(Instant::now() + deadlines.permits) {
                                Ok(()) => Happened::Released,
                                Err(error) => {
                                    why = Some(Error::lease(self.phase)(error));
                                    Happened::Failed
                                }
                            }
                        }
                    }
                }
                Action::SendCommit { epoch } => {
                    answer_until = self.channel.now() + deadlines.answer;
                    let commit = Epoch { epoch }.encode();
                    match self.channel.record(Tag::Commit, &[&commit], &[], answer_until) {
                        Ok(()) => Happened::CommitSent,
                        Err(error) => {
                            why = Some(error);
                            Happened::NoAnswer
                        }
                    }
                }
                Action::AwaitRunning => match self.await_running(answer_until) {
                    Ok(running) => self.has_moved(&running),
                    Err(error) => {
                        why = Some(error);
                        Happened::NoAnswer
                    }
                },
                Action::TryLease => {
                    contest.begin(self.channel.now());
                    let look = holding.look(&mut lease_error);
                    machine.on(Happened::Lease(look));
                    if machine.action() != Action::TryLease {
                        continue;
                    }
                    let now = self.channel.now();
                    if machine.is_taken_over() && contest.confirmed(now) {
                        Happened::ConfirmOver
                    } else if contest.is_over(now) {
                        Happened::GraceOver
                    } else {
                        match self.late_running(deadlines.lease_poll) {
                            Some(running) => self.has_moved(&running),
                            None => continue,
                        }
                    }
                }
                Action::Enter { epoch } => {
                    self.reach(Phase::Rollback);
                    let entered = holding.enter(epoch);
                    let ok = entered.is_ok();
                    then = entered.err().map(Error::lease(self.phase));
                    Happened::Entered { ok }
                }
                Action::Resume => {
                    let resumed = match holding.permits() {
                        Some(permits) => {
                            self.host.resume(&permits).map_err(Error::host(self.phase, "resume"))
                        }
                        None => Err(self.channel_gone()),
                    };
                    let ok = resumed.is_ok();
                    then = resumed.err();
                    Happened::Resumed { ok }
                }
                Action::Done(verdict) => {
                    let why = why.unwrap_or_else(|| self.channel_gone());
                    let outcome = self.conclude(verdict, why, then, lease_error);
                    let keep = matches!(verdict, Verdict::Stays | Verdict::Stuck);
                    return SourceEnd {
                        outcome,
                        lease: holding.into_held().filter(|_| keep),
                        report: std::mem::take(&mut self.report),
                    };
                }
            };
            machine.on(event);
        }
    }

    /// What to say if nothing was said so far.
    fn channel_gone(&self) -> Error {
        Error::Link { phase: self.phase, source: LinkError::Closed }
    }

    fn await_running(&mut self, until: Duration) -> Result<Running, Error> {
        let record = self.channel.next(until, "say RUNNING")?;
        if record.tag != Tag::Running {
            return Err(self.channel.unexpected(&record, "RUNNING is awaited"));
        }
        let payload = self.channel.reader.payload(&record);
        Running::decode(payload, record.at).map_err(|e| self.channel.stream(e))
    }

    /// Rests between two tries of the lease, with an ear for a RUNNING that is merely late.
    fn late_running(&mut self, rest: Duration) -> Option<Running> {
        if !self.channel.is_alive() {
            self.channel.sleep(rest);
            return None;
        }
        match self.channel.look(rest) {
            Ok(Some(record)) if record.tag == Tag::Running => {
                Running::decode(self.channel.reader.payload(&record), record.at).ok()
            }
            _ => None,
        }
    }

    /// RUNNING has come: the downtime is known.
    fn has_moved(&mut self, running: &Running) -> Happened {
        let now = self.channel.now();
        // The destination's clock is this host's, unless it is on another host.
        let ran = Duration::from_nanos(running.at_ns);
        let ran = if ran >= self.ready_at && ran <= now { ran } else { now };
        let downtime = &mut self.report.downtime;
        downtime.commit_us = micros(ran.saturating_sub(self.ready_at));
        downtime.total_us =
            micros(ran.saturating_sub(self.stopped_at)).saturating_sub(downtime.verify_us);
        Happened::Running { epoch: running.epoch }
    }

    /// Ends what is still on, tells everybody, and puts the verdict into words.
    fn conclude(
        &mut self,
        verdict: Verdict,
        why: Error,
        then: Option<Error>,
        lease: Option<LeaseError>,
    ) -> SourceOutcome {
        let text = chain(&why);
        let outcome = match verdict {
            Verdict::Moved { confirmed } => {
                self.reach(Phase::Running);
                SourceOutcome::Moved { confirmed }
            }
            Verdict::Stays => self.stays(why),
            Verdict::Lost => SourceOutcome::Lost,
            Verdict::Ended => SourceOutcome::Ended,
            Verdict::Halted => SourceOutcome::Halted { why: lease },
            Verdict::Stuck => {
                SourceOutcome::Stuck { why, then: then.unwrap_or_else(|| self.channel_gone()) }
            }
        };
        self.report.total_us = micros(self.elapsed());
        self.report.bytes = self.channel.writer.bytes();
        self.hooks.event(&Event::Ended { at_us: self.report.total_us });
        self.show_progress();
        let (status, error) = match &outcome {
            SourceOutcome::Moved { .. } | SourceOutcome::Ended => {
                (MigrationStatus::Completed, None)
            }
            SourceOutcome::Stays {
                why: Error::Aborted | Error::Shutdown | Error::GuestEnded(_),
            } => (MigrationStatus::Cancelled, Some(text)),
            SourceOutcome::Lost => (
                MigrationStatus::Failed,
                Some("The guest was lost with the destination, after it had taken over".into()),
            ),
            _ => (MigrationStatus::Failed, Some(text)),
        };
        self.control.update(|s| {
            s.status = status;
            s.error_desc = error;
        });
        outcome
    }

    /// The guest goes on here. The peer is told after it does, and the logs go off last: both
    /// take time, and neither matters to the guest.
    fn stays(&mut self, why: Error) -> SourceOutcome {
        if self.phase != Phase::Rollback {
            self.reach(Phase::Rollback);
        } else {
            let stood = self.channel.now().saturating_sub(self.stopped_at);
            self.report.downtime.total_us = micros(stood);
        }
        let until = self.channel.now() + self.options.deadlines.poll;
        self.channel.give_up(Tag::Cancel, &why, until);
        if self.tracking
            && let Err(error) = self.host.track_stop()
        {
            tracing::warn!("dirty logs could not be switched off: {}", chain(&error));
        }
        SourceOutcome::Stays { why }
    }
}
