//! DMA that was refused, and the bounded log of it.

use std::collections::VecDeque;
use std::fmt;

use drogher_iommu_types::{Iova, Rid};

use crate::memory::MemoryError;
use crate::sync::{Mutex, lock};

/// What an access wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Only write.
    Write,
    /// Read and write as one step (fetch-add, compare-swap).
    Atomic,
}

impl Access {
    /// True if the access may change memory.
    #[must_use]
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Read)
    }

    /// True if the access returns what memory holds.
    #[must_use]
    pub const fn reads(self) -> bool {
        !matches!(self, Self::Write)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Atomic => "atomic",
        })
    }
}

/// Why an access was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FaultReason {
    /// The second stage has no entry for the page.
    #[error("not mapped")]
    NotMapped,
    /// The second stage's entry does not allow reading.
    #[error("not readable")]
    NotReadable,
    /// The second stage's entry does not allow writing.
    #[error("not writable")]
    NotWritable,
    /// The second stage's entry is not one that this crate makes.
    #[error("reserved bits in the second stage")]
    Reserved,
    /// The guest's stage has no entry for the page.
    #[error("not present in stage 1")]
    Stage1NotPresent,
    /// The guest's stage does not allow the access.
    #[error("forbidden by stage 1")]
    Stage1Permission,
    /// The access ends past the domain's address width, or wraps.
    #[error("beyond the address width")]
    AddressWidth,
    /// An atomic access is not aligned to its size.
    #[error("misaligned")]
    Misaligned,
    /// The requester's DMA is revoked: the device is stopped, in NDMA or in ERROR.
    #[error("DMA revoked")]
    Revoked,
    /// Every slot of the requester stayed taken past the deadline.
    #[error("no slot within the deadline")]
    Busy,
    /// Another device, to which the write goes, takes no more for now; not recorded.
    #[error("the other device takes no more for now")]
    PeerBusy,
    /// Guest memory itself refused the access.
    #[error("memory: {0}")]
    Memory(#[from] MemoryError),
}

/// One refused access: who, where, what, why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("DMA {access} by {rid} at IOVA {iova} faulted: {reason}")]
pub struct Fault {
    /// The device.
    pub rid: Rid,
    /// The first byte that was not accessed.
    pub iova: Iova,
    /// What it tried.
    pub access: Access,
    /// Why it was refused.
    pub reason: FaultReason,
}

/// The log's content: the oldest faults kept first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FaultSummary {
    /// The last faults, as many as the log holds.
    pub last: Vec<Fault>,
    /// All faults since the domain was made.
    pub total: u64,
}

/// Bounded log: keeps the last faults and counts all.
pub(crate) struct FaultLog {
    capacity: usize,
    state: Mutex<State>,
}

struct State {
    last: VecDeque<Fault>,
    total: u64,
}

impl FaultLog {
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, state: Mutex::new(State { last: VecDeque::new(), total: 0 }) }
    }

    pub(crate) fn record(&self, fault: Fault) {
        let mut state = lock(&self.state);
        state.total = state.total.saturating_add(1);
        if self.capacity == 0 {
            return;
        }
        if state.last.len() >= self.capacity {
            state.last.pop_front();
        }
        state.last.push_back(fault);
    }

    pub(crate) fn summary(&self) -> FaultSummary {
        let state = lock(&self.state);
        FaultSummary { last: state.last.iter().copied().collect(), total: state.total }
    }
}
