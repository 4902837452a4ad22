//! The bus-master bit, as the IOMMU sees it: a stage 1 that translates nothing while the bit is off.
//!
//! The requester's own revocation belongs to the plugin host (state, NDMA, ERROR); the two are
//! independent, and DMA passes only if both allow it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use drogher_iommu::{Access, Bypass, Domain, DomainError, FaultReason, Iova, Requester, Rid};
use drogher_iommu::{RequesterStats, Stage1, Stage1Page};

struct Gate {
    open: AtomicBool,
    behind: Bypass,
}

impl Stage1 for Gate {
    fn translate(&self, rid: Rid, page: Iova, access: Access) -> Result<Stage1Page, FaultReason> {
        if !self.open.load(Ordering::SeqCst) {
            return Err(FaultReason::Stage1Permission);
        }
        self.behind.translate(rid, page, access)
    }
}

/// Opens and closes the way to memory of one requester.
pub struct BusMaster {
    gate: Arc<Gate>,
    requester: Requester,
}

impl BusMaster {
    /// Attaches `rid` to `domain`, closed.
    ///
    /// # Errors
    /// The RID is attached already.
    pub fn attach(domain: &Domain, rid: Rid) -> Result<(Self, Requester), DomainError> {
        let gate = Arc::new(Gate { open: AtomicBool::new(false), behind: Bypass });
        let requester = domain.attach_with(rid, Arc::clone(&gate) as Arc<dyn Stage1>)?;
        Ok((Self { gate, requester: requester.clone() }, requester))
    }

    /// What the device's DMA has come to.
    pub fn stats(&self) -> RequesterStats {
        self.requester.stats()
    }

    /// Opens or closes. When it returns with closed, no access that was let through is in flight,
    /// unless one hangs past the domain's deadline; that is logged.
    pub fn set(&self, open: bool) {
        if self.gate.open.swap(open, Ordering::SeqCst) && !open {
            // Cached translations know nothing of the gate.
            if let Err(error) = self.requester.domain().invalidate() {
                tracing::warn!(error = &error as &dyn std::error::Error, "DMA outlives bus master");
            }
        }
    }
}

#[cfg(test)]
#[path = "gate_test.rs"]
mod tests;
