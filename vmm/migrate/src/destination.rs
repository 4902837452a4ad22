//! The destination's half of the handover as a state machine; see [`crate::source`].
//!
//! ```text
//! Receiving --Handover--> Loading --Loaded--> SayReady --ReadySaid--> AwaitCommit
//! AwaitCommit --Commit, broken link, no answer--> Trying --lease taken, epoch as stopped-->
//! Entering --Entered--> Starting --Started--> SayRunning --RunningSaid--> Done(Runs)
//!
//! Receiving, Loading --Failed--> Done(NotTaken)
//! Trying --epoch raised, or grace over--> Done(Halted)
//! Starting --failed--> Done(Lost)
//! ```

use drogher_iommu_types::mutant;

use crate::source::Look;

/// What has happened on the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Anything went wrong before READY.
    Failed,
    /// The source has stopped in this epoch, and sent all.
    Handover {
        /// The epoch.
        epoch: u64,
    },
    /// All is loaded, committed, set and, if asked for, verified.
    Loaded,
    /// READY was sent, or was tried to be: the source may have it.
    ReadySaid,
    /// The source has given up its lock.
    Commit {
        /// The epoch that it stopped in.
        epoch: u64,
    },
    /// The link is broken, the answer is overdue, or the source has given up.
    NoAnswer,
    /// The lease was tried.
    Lease(Look),
    /// The grace has ended. The lease is tried once more: time alone decides nothing, since this
    /// process may have stood still since its last try.
    GraceOver,
    /// The epoch is written and permits are lent, or that failed.
    Entered {
        /// It is.
        ok: bool,
    },
    /// The guest runs, or could not be made to.
    Started {
        /// It does.
        ok: bool,
    },
    /// RUNNING was sent, or was tried to be.
    RunningSaid,
}

/// What the driver has to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Take what the source sends.
    Receive,
    /// Load, commit and set what has come; verify it if asked for.
    Load,
    /// Say READY.
    SayReady {
        /// The epoch that the state is of.
        epoch: u64,
    },
    /// Wait for COMMIT.
    AwaitCommit,
    /// Try the lease, again and again.
    TryLease,
    /// Raise the epoch to this, under the lock, and lend permits.
    Enter {
        /// The epoch to write.
        epoch: u64,
    },
    /// Start devices and vCPUs.
    Start,
    /// Say RUNNING.
    SayRunning {
        /// The epoch that the guest runs in.
        epoch: u64,
    },
    /// It is decided. The lease is given up unless the verdict is `Runs`.
    Done(Verdict),
}

/// What became of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It runs here.
    Runs,
    /// It never came here.
    NotTaken,
    /// It was ready here, but the lease is another's.
    Halted {
        /// Somebody has entered running since it was stopped.
        epoch_moved: bool,
    },
    /// The lease was taken and the epoch raised, and then it could not be started.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum State {
    Receiving,
    Loading,
    SayReady,
    AwaitCommit,
    Trying { last: bool },
    Entering,
    Starting,
    SayRunning,
    Done(Verdict),
}

/// The destination's half of the handover.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    epoch: u64,
    state: State,
}

impl Destination {
    /// Nothing has come yet; the source says that it runs in this epoch.
    #[must_use]
    pub const fn new(epoch: u64) -> Self {
        Self { epoch, state: State::Receiving }
    }

    /// The epoch in which the source had been running.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What to do next.
    #[must_use]
    pub fn action(&self) -> Action {
        let raised = self.epoch.saturating_add(1);
        match self.state {
            State::Receiving => Action::Receive,
            State::Loading => Action::Load,
            State::SayReady => Action::SayReady { epoch: self.epoch },
            State::AwaitCommit => Action::AwaitCommit,
            State::Trying { .. } => Action::TryLease,
            State::Entering => Action::Enter { epoch: raised },
            State::Starting => Action::Start,
            State::SayRunning => Action::SayRunning { epoch: raised },
            State::Done(verdict) => Action::Done(verdict),
        }
    }

    /// Takes notice of an event. Those that do not belong to the state change nothing.
    pub fn on(&mut self, event: Event) {
        self.state = match (self.state, event) {
            (State::Receiving, Event::Handover { epoch }) if epoch == self.epoch => State::Loading,
            (State::Receiving, Event::Handover { .. }) => State::Done(Verdict::NotTaken),
            (State::Receiving | State::Loading, Event::Failed) => State::Done(Verdict::NotTaken),
            (State::Loading, Event::Loaded) => State::SayReady,
            (State::SayReady, Event::ReadySaid) => State::AwaitCommit,
            // From READY on the lease decides, whatever is said or not said.
            (State::AwaitCommit, Event::Commit { .. } | Event::NoAnswer | Event::Failed) => {
                State::Trying { last: false }
            }
            (State::Trying { last }, Event::Lease(look)) => self.trying(last, look),
            (State::Trying { .. }, Event::GraceOver) => State::Trying { last: true },
            (State::Entering, Event::Entered { ok: true }) => State::Starting,
            // Not raised, so the source may still take it back.
            (State::Entering, Event::Entered { ok: false }) => {
                State::Done(Verdict::Halted { epoch_moved: false })
            }
            (State::Starting, Event::Started { ok: true }) => State::SayRunning,
            (State::Starting, Event::Started { ok: false }) => State::Done(Verdict::Lost),
            (State::SayRunning, Event::RunningSaid) => State::Done(Verdict::Runs),
            (state, _) => state,
        };
    }

    fn trying(&self, last: bool, look: Look) -> State {
        let halted = |epoch_moved| State::Done(Verdict::Halted { epoch_moved });
        match look {
            Look::Taken(seen) if seen.is_still(self.epoch) => State::Entering,
            Look::Taken(_) if mutant!("epoch-not-compared") => State::Entering,
            Look::Taken(_) => halted(true),
            Look::Busy(_) if mutant!("lease-not-checked") => State::Entering,
            // The source went on: its state is newer than the one here.
            Look::Busy(Some(seen)) if !seen.is_still(self.epoch) => halted(true),
            Look::Busy(_) if last => halted(false),
            Look::Busy(_) => State::Trying { last },
            Look::Broken(seen) => halted(seen.is_some_and(|seen| !seen.is_still(self.epoch))),
        }
    }
}
