//! The user's hand on a migration of the source: requests, and what they are answered.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::host::GuestEnd;
use crate::phase::Phase;
use crate::status::Status;

/// What may be asked of a VM while it is being moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// End the migration, go on here.
    Abort,
    /// Stop the vCPUs. The VM moves on and arrives paused.
    Pause,
    /// Let the vCPUs go on.
    Resume,
    /// End the VM. The migration is given up first.
    Shutdown,
    /// Begin another migration.
    Migrate,
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no migration to abort.
    #[error("No migration is going on")]
    NoMigration,
    /// One at a time.
    #[error("A migration is going on already (phase {0}); abort it first")]
    Active(Phase),
    /// The guest is stopped for the switchover, which ends within seconds either way.
    #[error("The guest is being handed over (phase {0}); ask again when that has ended")]
    Switchover(Phase),
    /// READY has come and the lease is being given up: the guest may run on the other side.
    #[error("Too late: the lease has been given up (phase {0})")]
    Committed(Phase),
}

/// Why the engine is to give up, by whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Abort,
    Shutdown,
    GuestEnded(GuestEnd),
}

#[derive(Debug, Default)]
struct Inner {
    phase: Option<Phase>,
    active: bool,
    committed: bool,
    stop: Option<Stop>,
    status: Status,
}

/// Shared between the engine's thread and whoever serves the user. One per VM, for its life.
///
/// All methods may be called from any thread and return at once.
#[derive(Debug, Default)]
pub struct Control {
    inner: Mutex<Inner>,
}

impl Control {
    /// No migration yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    // Everything inside is plain values: a panic elsewhere cannot have torn them.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks. `Ok` for abort and shutdown means that the migration will end with the guest at the
    /// source (for shutdown: end the VM when it has); for pause and resume that the machine may
    /// do so now; for migrate that none is going on.
    ///
    /// | | no migration | pre-copy | guest stopped | lease given up |
    /// |---|---|---|---|---|
    /// | abort | `NoMigration` | ok | ok | `Committed` |
    /// | pause, resume | ok | ok | `Switchover` | `Committed` |
    /// | shutdown | ok | ok | ok | `Committed` |
    /// | migrate | ok | `Active` | `Active` | `Active` |
    ///
    /// # Errors
    /// As in the table.
    pub fn ask(&self, request: Request) -> Result<(), Refusal> {
        let mut inner = self.inner();
        let phase = inner.phase.unwrap_or(Phase::Setup);
        if !inner.active {
            return match request {
                Request::Abort => Err(Refusal::NoMigration),
                _ => Ok(()),
            };
        }
        match request {
            Request::Migrate => Err(Refusal::Active(phase)),
            _ if inner.committed => Err(Refusal::Committed(phase)),
            Request::Pause | Request::Resume if phase.in_switchover() => {
                Err(Refusal::Switchover(phase))
            }
            Request::Pause | Request::Resume => Ok(()),
            Request::Abort => {
                inner.stop.get_or_insert(Stop::Abort);
                Ok(())
            }
            Request::Shutdown => {
                inner.stop.get_or_insert(Stop::Shutdown);
                Ok(())
            }
        }
    }

    /// The machine says that the guest has ended by itself: a migration is given up.
    pub fn guest_ended(&self, how: GuestEnd) {
        let mut inner = self.inner();
        if inner.active {
            inner.stop.get_or_insert(Stop::GuestEnded(how));
        }
    }

    /// A copy of the status as it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner().status.clone()
    }

    /// The phase of the migration that is going on.
    #[must_use]
    pub fn phase(&self) -> Option<Phase> {
        let inner = self.inner();
        inner.phase.filter(|_| inner.active)
    }

    /// A migration begins, if none is going on.
    pub(crate) fn begin(&self) -> Result<(), Refusal> {
        let mut inner = self.inner();
        if inner.active {
            return Err(Refusal::Active(inner.phase.unwrap_or(Phase::Setup)));
        }
        *inner = Inner { active: true, ..Inner::default() };
        Ok(())
    }

    /// Why the engine is to give up, if it is.
    pub(crate) fn stop(&self) -> Option<Stop> {
        self.inner().stop
    }

    /// From now on it is too late to ask for anything; fails with what was asked before.
    pub(crate) fn commit(&self) -> Result<(), Stop> {
        let mut inner = self.inner();
        match inner.stop {
            Some(stop) => Err(stop),
            None => {
                inner.committed = true;
                Ok(())
            }
        }
    }

    /// Changes the status.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.inner().status);
    }

    /// A phase begins.
    pub(crate) fn enter(&self, phase: Phase) {
        let mut inner = self.inner();
        inner.phase = Some(phase);
        inner.status.drogher.phase = Some(phase);
    }

    /// The migration has ended.
    pub(crate) fn end(&self) {
        self.inner().active = false;
    }
}
