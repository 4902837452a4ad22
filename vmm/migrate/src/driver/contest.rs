//! A side's hand on the lease, and the time that it has to get it.

use std::time::{Duration, Instant};

use drogher_iommu_types::mutant;

use crate::lease::{Attempt, HeldLease, Lease, LeaseError, LeaseRecord, LeaseState, Permits, VmId};
use crate::options::Deadlines;
use crate::source::{Look, Seen};

/// Pages in a GiB.
const GIB_PAGES: u64 = 1 << 18;

#[derive(Debug)]
enum Hand {
    Held(HeldLease),
    Free(Lease),
    Empty,
}

/// The lease of one VM, held or not.
#[derive(Debug)]
pub(super) struct Holding {
    hand: Hand,
    vm_id: VmId,
}

impl Holding {
    /// It is held.
    pub(super) fn held(lease: HeldLease) -> Self {
        Self { vm_id: lease.vm_id(), hand: Hand::Held(lease) }
    }

    /// It is open, and is to be this VM's.
    pub(super) fn free(lease: Lease, vm_id: VmId) -> Self {
        Self { hand: Hand::Free(lease), vm_id }
    }

    /// Tries to take it; `error` tells why it is broken, if it is.
    pub(super) fn look(&mut self, error: &mut Option<LeaseError>) -> Look {
        match std::mem::replace(&mut self.hand, Hand::Empty) {
            Hand::Empty => Look::Broken(None),
            Hand::Held(held) => {
                let seen = self.seen(held.record());
                self.hand = Hand::Held(held);
                Look::Taken(seen)
            }
            Hand::Free(lease) => match try_take(lease) {
                Ok(Attempt::Taken(held)) => {
                    let seen = self.seen(held.record());
                    self.hand = Hand::Held(held);
                    Look::Taken(seen)
                }
                Ok(Attempt::Busy(lease)) => {
                    let seen = lease.peek().ok().map(|record| self.seen(&record));
                    self.hand = Hand::Free(lease);
                    Look::Busy(seen)
                }
                Err((lease, why)) => {
                    // Found out under the lock of the file that is open: nobody else has it.
                    let unheld = matches!(why, LeaseError::Replaced { .. });
                    let seen = lease.peek().ok().filter(|_| unheld);
                    let seen = seen.map(|record| self.seen(&record));
                    self.hand = Hand::Free(lease);
                    *error = Some(why);
                    Look::Broken(seen)
                }
            },
        }
    }

    fn seen(&self, record: &LeaseRecord) -> Seen {
        Seen {
            same_vm: record.vm_id == self.vm_id,
            epoch: record.epoch,
            ended: record.state == LeaseState::Ended,
        }
    }

    /// Gives the lock up. It is still held after an error.
    pub(super) fn release(&mut self, deadline: Instant) -> Result<(), LeaseError> {
        match std::mem::replace(&mut self.hand, Hand::Empty) {
            Hand::Held(held) => match held.release(deadline) {
                Ok(lease) => {
                    self.hand = Hand::Free(lease);
                    Ok(())
                }
                Err((held, error)) => {
                    self.hand = Hand::Held(held);
                    Err(error)
                }
            },
            other => {
                self.hand = other;
                Ok(())
            }
        }
    }

    /// Raises the epoch under the lock.
    pub(super) fn enter(&mut self, epoch: u64) -> Result<(), LeaseError> {
        match &mut self.hand {
            Hand::Held(held) => held.enter(epoch),
            Hand::Free(lease) => Err(LeaseError::NotHeld { path: lease.identity().path.clone() }),
            Hand::Empty => Err(LeaseError::NotHeld { path: std::path::PathBuf::new() }),
        }
    }

    /// Permits, if it is held.
    pub(super) fn permits(&self) -> Option<Permits> {
        match &self.hand {
            Hand::Held(held) => Some(held.permits()),
            _ => None,
        }
    }

    /// The held lease, if it is one.
    pub(super) fn into_held(self) -> Option<HeldLease> {
        match self.hand {
            Hand::Held(held) => Some(held),
            _ => None,
        }
    }
}

fn try_take(lease: Lease) -> Result<Attempt, (Lease, LeaseError)> {
    if mutant!("lease-not-checked") {
        return lease.assume_held();
    }
    lease.try_take()
}

/// How long the lease is tried.
#[derive(Debug)]
pub(super) struct Contest {
    grace: Duration,
    confirm: Duration,
    since: Option<Duration>,
    taken_over: Option<Duration>,
}

impl Contest {
    /// Not begun yet. `pages` of RAM: a process that dies keeps its lock until they are freed.
    pub(super) fn new(deadlines: &Deadlines, pages: u64) -> Self {
        let gib = u32::try_from(pages.div_ceil(GIB_PAGES)).unwrap_or(u32::MAX);
        let for_ram = deadlines.confirm_per_gib.saturating_mul(gib);
        Self {
            grace: deadlines.grace + for_ram,
            confirm: deadlines.confirm + for_ram,
            since: None,
            taken_over: None,
        }
    }

    /// The time begins, if it has not.
    pub(super) fn begin(&mut self, now: Duration) {
        self.since.get_or_insert(now);
    }

    /// The lease is seen taken over; true if that is so for long enough to be believed.
    pub(super) fn confirmed(&mut self, now: Duration) -> bool {
        let since = *self.taken_over.get_or_insert(now);
        now.saturating_sub(since) >= self.confirm
    }

    /// True if the grace has ended.
    pub(super) fn is_over(&self, now: Duration) -> bool {
        self.since.is_some_and(|since| now.saturating_sub(since) >= self.grace)
    }
}
