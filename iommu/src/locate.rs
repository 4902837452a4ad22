//! Where memory that a device wants to use directly lies.

use std::ops::Range;

use drogher_iommu_types::{Gpa, Iova, Oa, PAGE_MASK, PAGE_SIZE};

use crate::access::DmaError;
use crate::fault::{Access, FaultReason};
use crate::requester::Requester;

/// The longest range located at once: a harvest waits meanwhile.
pub const LOCATE_MAX: u64 = 64 << 20;

/// Bytes that lie together, in the address space and in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// In the address space. Not empty.
    pub gpa: Range<Gpa>,
    /// The first byte in memory.
    pub oa: Oa,
}

impl Requester {
    /// Translates the `len` bytes at `iova` with the permissions of an access, marking pages dirty
    /// as one would, and calls `act` with the first of them that lie together: all, or fewer, and
    /// at most [`LOCATE_MAX`]. `act` must not wait: it runs inside the access, so that whoever
    /// revokes, unmaps or harvests meanwhile comes after it.
    ///
    /// # Errors
    /// The fault, if it is in the first page; `AddressWidth` also for no bytes at all.
    pub fn locate<T>(
        &self,
        iova: Iova,
        len: u64,
        access: Access,
        act: impl FnOnce(Located) -> T,
    ) -> Result<T, DmaError> {
        let fault = |reason| self.fault(iova, 0, access, reason);
        if len == 0 || iova.0.checked_add(len - 1).is_none() {
            return Err(fault(FaultReason::AddressWidth));
        }
        let len = len.min(LOCATE_MAX);
        let flight = self.0.take_off().map_err(fault)?;
        let first = self.0.translate(&flight, iova.0 & !PAGE_MASK, access);
        let first = match first {
            Ok(page) => page.plus(iova.0 & PAGE_MASK),
            Err(reason) => {
                drop(flight);
                return Err(fault(reason));
            }
        };
        let mut together = PAGE_SIZE - (iova.0 & PAGE_MASK);
        while together < len {
            // Page aligned, and cannot wrap: the last byte's address was checked.
            let page = self.0.translate(&flight, iova.0 + together, access);
            if !page.is_ok_and(|page| first.goes_on_at(together, page)) {
                break;
            }
            together += PAGE_SIZE;
        }
        let gpa = first.gpa..Gpa(first.gpa.0 + together.min(len));
        Ok(act(Located { gpa, oa: first.output }))
    }
}
