//! A device's way into a domain.

use std::sync::Arc;
use std::time::Duration;

use drogher_iommu_types::{Iova, Rid, mutant};

use crate::domain::Domain;
use crate::drain::{DrainError, drain};
use crate::fault::{Access, FaultReason};
use crate::iotlb::{self, Target};
use crate::slot::{Claim, Slot, bump};
use crate::space::Space;
use crate::spec::Perm;
use crate::stage1::{Stage1, Stage1Page};
use crate::state::State;
use crate::sync::{AtomicBool, AtomicU64, Ordering, SLOTS, Wait, first_slot};

/// One RID attached to a domain: DMA by it goes through the domain's second stage.
///
/// A clone is another handle to the same requester. Any thread may use any handle at any time; up
/// to 8 accesses are in flight at once, more wait. When the last handle goes, the RID is detached.
///
/// Each access holds a guard for at most 64 KiB of copying, and a harvest waits for it; nothing is
/// held between calls.
#[derive(Clone)]
pub struct Requester(pub(crate) Arc<Shared>);

/// What a requester has done since it was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequesterStats {
    /// Pieces of at most 64 KiB that reached memory. Constant while the device does no DMA.
    pub accesses: u64,
    /// Accesses that ended in a fault, refused ones included.
    pub faults: u64,
    /// Bytes read by the device.
    pub bytes_read: u64,
    /// Bytes written by the device.
    pub bytes_written: u64,
    /// Pages that were not in the IOTLB.
    pub iotlb_misses: u64,
}

/// What all handles of one requester share.
pub(crate) struct Shared {
    rid: Rid,
    space: Arc<Space>,
    stage1: Arc<dyn Stage1>,
    revoked: AtomicBool,
    faults: AtomicU64,
    slots: Box<[Slot]>,
}

impl Requester {
    pub(crate) fn new(rid: Rid, space: Arc<Space>, stage1: Arc<dyn Stage1>) -> Self {
        Self(Arc::new(Shared {
            rid,
            space,
            stage1,
            revoked: AtomicBool::new(false),
            faults: AtomicU64::new(0),
            slots: (0..SLOTS).map(|_| Slot::new()).collect(),
        }))
    }

    /// The id that faults and errors name.
    #[must_use]
    pub fn rid(&self) -> Rid {
        self.0.rid
    }

    /// The domain that it is attached to.
    #[must_use]
    pub fn domain(&self) -> Domain {
        Domain(self.0.space.clone())
    }

    /// Ends this device's DMA: accesses from now on fault with [`FaultReason::Revoked`], and when
    /// this returns `Ok` none is in flight. Idempotent.
    ///
    /// # Errors
    /// An access in flight outlived the domain's deadline. The requester is revoked all the same.
    pub fn revoke(&self) -> Result<(), DrainError> {
        self.0.revoked.store(true, Ordering::SeqCst);
        drain(std::iter::once(Arc::clone(&self.0)), self.0.space.deadline()).map(|_| ())
    }

    /// Allows DMA again.
    pub fn restore(&self) {
        self.0.revoked.store(false, Ordering::SeqCst);
    }

    /// True between [`Self::revoke`] and [`Self::restore`].
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.0.revoked.load(Ordering::SeqCst)
    }

    /// Counters since attach. Exact while no access is in flight.
    #[must_use]
    pub fn stats(&self) -> RequesterStats {
        let mut stats = RequesterStats {
            faults: self.0.faults.load(Ordering::Relaxed),
            ..RequesterStats::default()
        };
        for slot in &self.0.slots {
            let counters = &slot.counters;
            stats.accesses += counters.accesses.load(Ordering::Relaxed);
            stats.bytes_read += counters.bytes_read.load(Ordering::Relaxed);
            stats.bytes_written += counters.bytes_written.load(Ordering::Relaxed);
            stats.iotlb_misses += counters.misses.load(Ordering::Relaxed);
        }
        stats
    }

    /// [`RequesterStats::accesses`] alone: equal before and after means no DMA between.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.stats().accesses
    }
}

/// An access under way: its guard, and the domain's state as read after the guard was published.
pub(crate) struct Flight<'a> {
    pub(crate) claim: Claim<'a>,
    state: State,
}

impl Shared {
    pub(crate) fn rid(&self) -> Rid {
        self.rid
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.slots
    }

    pub(crate) fn count_fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins an access of at most 64 KiB.
    #[inline]
    pub(crate) fn take_off(&self) -> Result<Flight<'_>, FaultReason> {
        let early = mutant!("guard-after-generation").then(|| self.space.state());
        let claim = self.claim()?;
        // Only now: a drain that did not see the guard has changed the state before.
        let state = early.unwrap_or_else(|| self.space.state());
        if self.revoked.load(Ordering::SeqCst) {
            return Err(FaultReason::Revoked);
        }
        Ok(Flight { claim, state })
    }

    #[inline]
    fn claim(&self) -> Result<Claim<'_>, FaultReason> {
        let first = first_slot();
        match self.slots.get(first).and_then(Slot::claim) {
            Some(claim) => Ok(claim),
            None => self.claim_any(first),
        }
    }

    #[cold]
    fn claim_any(&self, first: usize) -> Result<Claim<'_>, FaultReason> {
        let mut wait = Wait::new(self.space.deadline());
        loop {
            let others = self.slots.iter().cycle().skip(first).take(self.slots.len());
            if let Some(claim) = others.filter_map(Slot::claim).next() {
                return Ok(claim);
            }
            if !wait.pause() {
                return Err(FaultReason::Busy);
            }
        }
    }

    /// Where the page at `page` (an IOVA, page aligned) goes, with its D bit set if that is due.
    #[inline]
    pub(crate) fn translate(
        &self,
        flight: &Flight<'_>,
        page: u64,
        access: Access,
    ) -> Result<Target, FaultReason> {
        let need = match access {
            Access::Read => iotlb::READ,
            Access::Write => iotlb::WRITE,
            Access::Atomic => iotlb::READ | iotlb::WRITE,
        };
        match flight.claim.slot.iotlb.lookup(page, flight.state.0, need) {
            Some(target) => Ok(target),
            None => self.translate_slowly(flight, page, access),
        }
    }

    #[cold]
    #[inline(never)]
    fn translate_slowly(
        &self,
        flight: &Flight<'_>,
        page: u64,
        access: Access,
    ) -> Result<Target, FaultReason> {
        let slot = flight.claim.slot;
        bump(&slot.counters.misses, 1);
        let stage1 = self.stage1(Iova(page), access)?;
        let walked = self.space.walk(stage1.gpa.page_start(), access, flight.state)?;
        let perm = walked.perm.and(stage1.perm);
        let mut flags = 0;
        if perm.read {
            flags |= iotlb::READ;
        }
        if perm.write && walked.writes_covered {
            flags |= iotlb::WRITE;
        }
        let target = Target { gpa: stage1.gpa.page_start(), output: walked.output };
        slot.iotlb.fill(page, flight.state.0, flags, target);
        Ok(target)
    }

    /// What the guest's stage says of a page, whether the second stage maps it or not.
    pub(crate) fn stage1(&self, page: Iova, access: Access) -> Result<Stage1Page, FaultReason> {
        let stage1 = self.stage1.translate(self.rid, page, access)?;
        let allowed = Perm { read: access.reads(), write: access.writes() };
        if stage1.perm.and(allowed) != allowed {
            return Err(FaultReason::Stage1Permission);
        }
        if stage1.gpa.0 >= self.space.end_of_width() {
            return Err(FaultReason::AddressWidth);
        }
        Ok(stage1)
    }
}

impl std::fmt::Debug for Requester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requester")
            .field("rid", &self.rid())
            .field("revoked", &self.is_revoked())
            .finish_non_exhaustive()
    }
}

/// Default of [`DomainConfig::drain_deadline`](crate::DomainConfig::drain_deadline).
pub(crate) const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
