//! The guest's own stage: IOVA to GPA.

use drogher_iommu_types::{Gpa, Iova, Rid};

use crate::fault::{Access, FaultReason};
use crate::spec::Perm;

/// What stage 1 says about one 4 KiB page of IOVA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage1Page {
    /// Where the page goes; page aligned.
    pub gpa: Gpa,
    /// What stage 1 allows. The second stage may allow less.
    pub perm: Perm,
}

/// Translation that the guest owns. Called on an IOTLB miss only, from any thread, with a guard
/// held that a drain may wait for: it must not block, nor call into a plugin, nor into the domain.
///
/// Whoever changes what it answers calls [`Domain::invalidate`](crate::Domain::invalidate) next.
pub trait Stage1: Send + Sync {
    /// Translates the page at `page`, which is page aligned, for one access.
    ///
    /// # Errors
    /// The reason to record: [`FaultReason::Stage1NotPresent`] or [`FaultReason::Stage1Permission`].
    fn translate(&self, rid: Rid, page: Iova, access: Access) -> Result<Stage1Page, FaultReason>;
}

/// No stage 1: an IOVA is a GPA.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bypass;

impl Stage1 for Bypass {
    fn translate(&self, _rid: Rid, page: Iova, _access: Access) -> Result<Stage1Page, FaultReason> {
        Ok(Stage1Page { gpa: Gpa(page.0), perm: Perm::READ_WRITE })
    }
}
