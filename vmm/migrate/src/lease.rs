//! The lease: whoever holds it may run the guest, and nobody else.
//!
//! It is a file that is locked with `flock` by the process that runs the VM; the kernel drops the
//! lock when that process dies. Because a lock alone is free again when its holder dies, the file
//! also holds the VM's id and an *epoch*, which is raised under the lock before every entry into
//! running after a stop. State that was stopped in one epoch is worthless in the next.
//!
//! [`Lease`] is the opened file, [`HeldLease`] the same with the lock held. Everything that may
//! execute the guest, or do DMA, interrupt or use a wire for it, borrows a [`Permit`]; the lock
//! cannot be given up, and is not dropped even with the `HeldLease` itself, before all permits are
//! back. The file is opened by each process for itself: a lock belongs to the open file, so one
//! that is passed, duplicated or inherited would be held twice.

mod file;
mod permit;
mod record;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::LeaseIdentity;
use permit::Shared;
pub use permit::{Permit, Permits};
pub use record::{LeaseRecord, LeaseState, VmId, VmIdError};

/// Epochs from here on are no lease's of ours.
const FORGED_EPOCH: u64 = u64::MAX / 2;

/// Why a lease could not be had, or not be changed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// A system call on the file failed.
    #[error("Cannot {action} lease {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Another process holds the lock.
    #[error(
        "Lease {path} is held by another process ({holder}): \
         stop that one, or name another file with --lease"
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// Who holds it, as far as the file tells.
        holder: Holder,
    },
    /// The path leads to something else than a plain file of ours.
    #[error("Lease {path} {why}: name another file with --lease")]
    Unsuitable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file has bytes that no lease has.
    #[error("{path} is not a lease: {why}")]
    NotALease {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        why: &'static str,
    },
    /// The path no longer leads to the file that is open.
    #[error("Lease {path} was replaced or removed while it was in use")]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// Somebody who does not hold it has written to it.
    #[error("Lease {path} was changed by somebody who does not hold it")]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// Something still runs the guest.
    #[error("{count} permits of lease {path} are still out after {waited:?}")]
    PermitsOut {
        /// The file.
        path: PathBuf,
        /// How many.
        count: usize,
        /// How long they were waited for.
        waited: Duration,
    },
    /// Nothing may run now: the lease is not held, or the guest is stopped for a handover.
    #[error("Lease {path} gives no permits now: the guest is stopped or runs elsewhere")]
    NoPermits {
        /// The file.
        path: PathBuf,
    },
    /// It would have to be held for that.
    #[error("Lease {path} is not held by this process")]
    NotHeld {
        /// The file.
        path: PathBuf,
    },
    /// Epochs only rise.
    #[error("Epoch of lease {path} cannot go from {from} to {to}")]
    EpochOrder {
        /// The file.
        path: PathBuf,
        /// The epoch in the file.
        from: u64,
        /// The epoch asked for.
        to: u64,
    },
}

/// Who holds a lease, read without the lock: for messages only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder(pub Option<LeaseRecord>);

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(r) => write!(f, "pid {}, VM {}, epoch {}", r.pid, r.vm_id, r.epoch),
            None => f.write_str("its record cannot be read"),
        }
    }
}

/// How taking a lease went.
#[derive(Debug)]
pub enum Attempt {
    /// It is held now.
    Taken(HeldLease),
    /// Somebody else holds it.
    Busy(Lease),
}

/// A lease file, opened by this process, its lock not held.
#[derive(Debug)]
pub struct Lease {
    shared: Arc<Shared>,
}

/// A lease whose lock this process holds. Dropping it gives the lock up as soon as the last
/// permit is back, without waiting.
#[derive(Debug)]
pub struct HeldLease {
    shared: Arc<Shared>,
    record: LeaseRecord,
}

impl Lease {
    /// Takes the lease at `path` for a new VM and lets it run: makes the file, with mode 0600, or
    /// takes over a free one with its epoch raised.
    ///
    /// # Errors
    /// [`LeaseError::Held`] if another process has it; others if the file will not do.
    pub fn acquire_new(path: &Path, vm_id: VmId) -> Result<HeldLease, LeaseError> {
        Self::acquire(path, vm_id, false)
    }

    /// As [`acquire_new`](Self::acquire_new), for a file that nobody has named: whoever ends the
    /// guest removes it, see [`LeaseRecord::made`].
    ///
    /// # Errors
    /// As there.
    pub fn acquire_made(path: &Path, vm_id: VmId) -> Result<HeldLease, LeaseError> {
        Self::acquire(path, vm_id, true)
    }

    fn acquire(path: &Path, vm_id: VmId, made: bool) -> Result<HeldLease, LeaseError> {
        let (file, identity) = file::open(path, true)?;
        let lease = Self::of(file, identity);
        if !lease.try_lock()? {
            return Err(LeaseError::Held {
                path: lease.shared.identity.path.clone(),
                holder: file::holder(&lease.shared),
            });
        }
        let old = match file::read(&lease.shared)? {
            content if content.is_empty() => None,
            content => Some(lease.decode(&content)?),
        };
        let epoch = match old.map_or(0, |record| record.epoch) {
            // So that no number of migrations comes to the end of the numbers.
            FORGED_EPOCH.. => {
                let path = lease.shared.identity.path.clone();
                return Err(LeaseError::NotALease { path, why: "its epoch cannot be" });
            }
            epoch => epoch + 1,
        };
        let pid = std::process::id();
        let record = LeaseRecord { vm_id, epoch, state: LeaseState::Running, made, pid };
        file::write(&lease.shared, &record)?;
        lease.shared.open_gate();
        Ok(HeldLease { shared: lease.shared, record })
    }

    /// Opens an existing lease without locking it. Never a file descriptor of another process:
    /// that would share the other's lock.
    ///
    /// # Errors
    /// If the file is missing, no lease, or on a file system of other hosts.
    pub fn open(path: &Path) -> Result<Self, LeaseError> {
        let (file, identity) = file::open(path, false)?;
        let lease = Self::of(file, identity);
        lease.peek()?;
        Ok(lease)
    }

    fn of(file: File, identity: LeaseIdentity) -> Self {
        Self { shared: Arc::new(Shared::new(file, identity)) }
    }

    /// Path, device and inode of the file.
    #[must_use]
    pub fn identity(&self) -> &LeaseIdentity {
        &self.shared.identity
    }

    /// Reads the record without the lock. A holder may be writing it: then this fails, and the
    /// next try does not.
    ///
    /// # Errors
    /// If it cannot be read or is not whole.
    pub fn peek(&self) -> Result<LeaseRecord, LeaseError> {
        self.decode(&file::read(&self.shared)?)
    }

    /// Tries to take the lock, without waiting. Nothing may run before
    /// [`HeldLease::enter`] has raised the epoch.
    ///
    /// # Errors
    /// With the lease, which is not held then: the file was replaced, or a call failed.
    pub fn try_take(self) -> Result<Attempt, (Self, LeaseError)> {
        match self.try_lock() {
            Ok(false) => return Ok(Attempt::Busy(self)),
            Ok(true) => {}
            Err(error) => return Err((self, error)),
        }
        match self.peek() {
            Ok(record) => Ok(Attempt::Taken(HeldLease { shared: self.shared, record })),
            Err(error) => {
                // Nothing depends on this unlock: the process that cannot read it never runs.
                let _ = file::unlock(&self.shared);
                Err((self, error))
            }
        }
    }

    /// The lock, and that the path still leads to the file: a replaced file is a second lock.
    fn try_lock(&self) -> Result<bool, LeaseError> {
        if !file::try_lock(&self.shared)? {
            return Ok(false);
        }
        if let Err(error) = file::still_there(&self.shared) {
            let _ = file::unlock(&self.shared);
            return Err(error);
        }
        Ok(true)
    }

    /// As [`try_take`](Self::try_take), but without the lock: a deliberate fault.
    pub(crate) fn assume_held(self) -> Result<Attempt, (Self, LeaseError)> {
        match self.peek() {
            Ok(record) => Ok(Attempt::Taken(HeldLease { shared: self.shared, record })),
            Err(error) => Err((self, error)),
        }
    }

    fn decode(&self, content: &file::Content) -> Result<LeaseRecord, LeaseError> {
        content
            .decode()
            .map_err(|why| LeaseError::NotALease { path: self.shared.identity.path.clone(), why })
    }
}

impl HeldLease {
    /// Path, device and inode of the file.
    #[must_use]
    pub fn identity(&self) -> &LeaseIdentity {
        &self.shared.identity
    }

    /// What the file says.
    #[must_use]
    pub fn record(&self) -> &LeaseRecord {
        &self.record
    }

    /// The VM that this lease is for.
    #[must_use]
    pub fn vm_id(&self) -> VmId {
        self.record.vm_id
    }

    /// The epoch in the file.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.record.epoch
    }

    /// A handle that lends permits for as long as this process is let run the guest. It may be
    /// kept: it works again after the lease was given up and taken back.
    #[must_use]
    pub fn permits(&self) -> Permits {
        Permits::new(Arc::clone(&self.shared))
    }

    /// Lends no more permits and waits until all are back.
    ///
    /// # Errors
    /// [`LeaseError::PermitsOut`] at the deadline. Still no permits are lent.
    pub fn close(&self, deadline: Instant) -> Result<(), LeaseError> {
        self.shared.close_gate(deadline)
    }

    /// Writes `epoch` and this process into the file and lends permits again. To be called before
    /// every entry into running after a stop, with an epoch above the one in the file.
    ///
    /// # Errors
    /// If it cannot be written, or would not raise the epoch; no permits are lent then.
    pub fn enter(&mut self, epoch: u64) -> Result<(), LeaseError> {
        if epoch <= self.record.epoch {
            return Err(LeaseError::EpochOrder {
                path: self.shared.identity.path.clone(),
                from: self.record.epoch,
                to: epoch,
            });
        }
        let record = LeaseRecord {
            epoch,
            state: LeaseState::Running,
            pid: std::process::id(),
            ..self.record
        };
        file::write(&self.shared, &record)?;
        self.record = record;
        self.shared.open_gate();
        Ok(())
    }

    /// That the file can judge once the lock is given up: it is still where its path leads to, and
    /// says what this side has written.
    fn is_intact(&self) -> Result<(), LeaseError> {
        file::still_there(&self.shared)?;
        let path = || self.shared.identity.path.clone();
        let found = file::read(&self.shared)?.decode();
        match found {
            Ok(record) if record == self.record => Ok(()),
            Ok(_) => Err(LeaseError::Changed { path: path() }),
            Err(why) => Err(LeaseError::NotALease { path: path(), why }),
        }
    }

    /// Gives the lock up after all permits are back, if the file is as it should be.
    ///
    /// # Errors
    /// With the lease, which is still held then.
    pub fn release(self, deadline: Instant) -> Result<Lease, (Self, LeaseError)> {
        if let Err(error) = self.close(deadline).and_then(|()| self.is_intact()) {
            return Err((self, error));
        }
        match file::unlock(&self.shared) {
            Ok(()) => Ok(Lease { shared: self.shared }),
            Err(error) => Err((self, error)),
        }
    }

    /// The guest has ended here, by itself or by the user's wish: says so in the file, so that a
    /// peer that finds it does not take it for lost, and removes the file if asked to. (Under the
    /// lock that is safe: whoever locks the removed file then finds the path leading elsewhere.)
    ///
    /// # Errors
    /// If the file cannot be written or removed.
    pub fn finish(mut self, remove: bool) -> Result<(), LeaseError> {
        self.record.state = LeaseState::Ended;
        file::write(&self.shared, &self.record)?;
        if remove {
            file::remove(&self.shared)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "lease_test.rs"]
mod tests;
