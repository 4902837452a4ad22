//! The source's half of the handover as a state machine: events in, one next action out.
//!
//! It decides who runs, and nothing else; it does no I/O, knows no time, and is small enough to
//! be searched exhaustively together with [`crate::destination`] (see `handover_model.rs`). The
//! driver performs [`Source::action`], and tells what came of it by [`Source::on`].
//!
//! ```text
//! Running --StopBegun--> Stopped --Sent--> AwaitReady --Ready--> Releasing --Released-->
//! Committing --CommitSent--> AwaitRunning --Running--> Done(Moved)
//!
//! Running --Failed--> Done(Stays)
//! Stopped, AwaitReady, Releasing --Failed--> Entering --Entered--> Resuming --Resumed--> Done(Stays)
//! Committing, AwaitRunning --broken link, no answer--> Contest --lease taken, epoch as left--> Entering
//! Contest --epoch raised--> Done(Lost | Ended), or Done(Moved) while the lease stays held
//! ```

use drogher_iommu_types::mutant;

/// What a try of the lease found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Look {
    /// It is held by this process now; nothing may run before the epoch is raised.
    Taken(Seen),
    /// Somebody else holds it. What its record says, read without the lock, if it could be read.
    Busy(Option<Seen>),
    /// It cannot be had: replaced, unreadable, or a call failed. It is not held. If its file was
    /// replaced or removed, and nobody holds that file any more: what its record says. Nobody can
    /// enter running through it.
    Broken(Option<Seen>),
}

/// What the lease's record says, as far as the handover is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// It is still this VM's.
    pub same_vm: bool,
    /// The epoch.
    pub epoch: u64,
    /// The guest has ended in an orderly way.
    pub ended: bool,
}

impl Seen {
    /// True if nobody has entered running since state was stopped in `epoch`.
    #[must_use]
    pub const fn is_still(&self, epoch: u64) -> bool {
        self.same_vm && self.epoch == epoch && !self.ended
    }
}

/// What has happened on the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// The vCPUs are about to be stopped.
    StopBegun,
    /// All has been sent, and all permits are back.
    Sent,
    /// Anything went wrong before the lease was released, or somebody asked to give up.
    Failed,
    /// The destination is ready to run on from the state of this epoch.
    Ready {
        /// The epoch.
        epoch: u64,
    },
    /// The lock is given up.
    Released,
    /// COMMIT was sent, or was tried to be.
    CommitSent,
    /// The destination says that it runs, in this epoch.
    Running {
        /// The epoch.
        epoch: u64,
    },
    /// The link is broken, or the answer is overdue.
    NoAnswer,
    /// The lease was tried.
    Lease(Look),
    /// The lease was found taken over, and has been watched for long enough.
    ConfirmOver,
    /// The grace has ended. The lease is tried once more: time alone decides nothing, since this
    /// process may have stood still since its last try.
    GraceOver,
    /// The epoch is written and permits are lent again, or that failed.
    Entered {
        /// It is.
        ok: bool,
    },
    /// The guest goes on here, or could not be made to.
    Resumed {
        /// It does.
        ok: bool,
    },
}

/// What the driver has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Go on with the migration: rounds, the stop, sending state.
    GoOn,
    /// Wait for READY.
    AwaitReady,
    /// Give up the lock.
    Release,
    /// Send COMMIT.
    SendCommit {
        /// The epoch that the destination takes over from.
        epoch: u64,
    },
    /// Wait for RUNNING.
    AwaitRunning,
    /// Try the lease, again and again.
    TryLease,
    /// Raise the epoch to this, under the lock, and lend permits again.
    Enter {
        /// The epoch to write.
        epoch: u64,
    },
    /// Let the guest go on here.
    Resume,
    /// It is decided. The lease is given up unless the verdict is `Stays` or `Stuck`.
    Done(Verdict),
}

/// What became of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It runs at the destination.
    Moved {
        /// The destination has said so.
        confirmed: bool,
    },
    /// It runs here.
    Stays,
    /// It was taken over and is gone, or another VM has taken the lease.
    Lost,
    /// It was taken over and has ended in an orderly way.
    Ended,
    /// Unknown; this side must not run it.
    Halted,
    /// It is stopped here, and could not be made to go on.
    Stuck,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Running,
    Stopped,
    AwaitReady,
    Releasing,
    Committing,
    AwaitRunning,
    Contest { raised: bool, last: bool },
    Entering,
    Resuming,
    Done(Verdict),
}

/// The source's half of the handover.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    epoch: u64,
    state: State,
}

impl Source {
    /// The guest runs here, in this epoch, under a held lease.
    #[must_use]
    pub const fn new(epoch: u64) -> Self {
        Self { epoch, state: State::Running }
    }

    /// The epoch in which the guest was running here.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What to do next.
    #[must_use]
    pub fn action(&self) -> Action {
        match self.state {
            State::Running | State::Stopped => Action::GoOn,
            State::AwaitReady => Action::AwaitReady,
            State::Releasing => Action::Release,
            State::Committing => Action::SendCommit { epoch: self.epoch },
            State::AwaitRunning => Action::AwaitRunning,
            State::Contest { .. } => Action::TryLease,
            // Raised even if the destination cannot have the whole state: one rule, no cases.
            State::Entering if mutant!("epoch-not-raised-on-rollback") => {
                Action::Enter { epoch: self.epoch }
            }
            State::Entering => Action::Enter { epoch: self.epoch.saturating_add(1) },
            State::Resuming => Action::Resume,
            State::Done(verdict) => Action::Done(verdict),
        }
    }

    /// Takes notice of an event. Those that do not belong to the state change nothing.
    pub fn on(&mut self, event: Event) {
        self.state = match (self.state, event) {
            (State::Running, Event::StopBegun) => State::Stopped,
            (State::Running, Event::Failed) => State::Done(Verdict::Stays),

            (State::Stopped, Event::Sent) => State::AwaitReady,
            (State::AwaitReady, Event::Ready { epoch }) if epoch == self.epoch => State::Releasing,
            // READY for another epoch: the peer is confused, and the lock is still here.
            (State::AwaitReady, Event::Ready { .. } | Event::NoAnswer) => State::Entering,
            (State::Stopped | State::AwaitReady | State::Releasing, Event::Failed) => {
                State::Entering
            }

            (State::Releasing, Event::Released) => State::Committing,
            (State::Committing, Event::CommitSent) => State::AwaitRunning,
            (State::Committing | State::AwaitRunning, Event::NoAnswer) => {
                State::Contest { raised: false, last: false }
            }
            (State::AwaitRunning | State::Contest { .. }, Event::Running { epoch })
                if epoch > self.epoch =>
            {
                State::Done(Verdict::Moved { confirmed: true })
            }

            (State::Contest { raised, last }, Event::Lease(look)) => {
                self.contest(raised, last, look)
            }
            (State::Contest { raised: true, .. }, Event::ConfirmOver) => {
                State::Contest { raised: true, last: true }
            }
            (State::Contest { raised, .. }, Event::GraceOver) => {
                State::Contest { raised, last: true }
            }

            (State::Entering, Event::Entered { ok: true }) => State::Resuming,
            (State::Entering, Event::Entered { ok: false }) => State::Done(Verdict::Stuck),
            (State::Resuming, Event::Resumed { ok: true }) => State::Done(Verdict::Stays),
            (State::Resuming, Event::Resumed { ok: false }) => State::Done(Verdict::Stuck),

            (state, _) => state,
        };
    }

    fn contest(&self, raised: bool, last: bool, look: Look) -> State {
        let moved = State::Done(Verdict::Moved { confirmed: false });
        match look {
            // The lease decides, and under its lock: nobody has run since, and nobody else will.
            Look::Taken(seen) if seen.is_still(self.epoch) => State::Entering,
            Look::Taken(_) if mutant!("epoch-not-compared") => State::Entering,
            Look::Taken(seen) | Look::Busy(Some(seen)) | Look::Broken(Some(seen))
                if seen.same_vm && seen.ended =>
            {
                State::Done(Verdict::Ended)
            }
            Look::Taken(_) => State::Done(Verdict::Lost),
            // Another VM has it: the destination does not, and this side never will.
            Look::Busy(Some(seen)) if !seen.same_vm => State::Done(Verdict::Lost),
            Look::Broken(Some(seen)) if !seen.is_still(self.epoch) => State::Done(Verdict::Lost),
            Look::Busy(seen) => {
                // Taken over. Its holder may be dying: its lock goes last, so wait and see.
                let raised = raised || seen.is_some_and(|seen| !seen.is_still(self.epoch));
                match (last, raised) {
                    (false, _) => State::Contest { raised, last },
                    (true, true) => moved,
                    (true, false) => State::Done(Verdict::Halted),
                }
            }
            Look::Broken(_) if raised => moved,
            Look::Broken(_) => State::Done(Verdict::Halted),
        }
    }

    /// True if the lease was seen taken over while its holder still had it.
    #[must_use]
    pub const fn is_taken_over(&self) -> bool {
        matches!(self.state, State::Contest { raised: true, .. })
    }
}
