//! Waiting until no access uses an old translation any more.

use std::sync::Arc;
use std::time::Duration;

use drogher_iommu_types::Rid;

use crate::requester::Shared;
use crate::sync::Wait;

/// An access in flight outlived the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DrainError {
    /// The requester has had one access in flight for all this time.
    #[error("Requester {rid} still has an access in flight after {waited:?}")]
    Deadline {
        /// The device.
        rid: Rid,
        /// How long the drain has waited.
        waited: Duration,
    },
}

/// Waits until every access that `requesters` had in flight at the call has ended; returns how
/// often it slept. Accesses that begin meanwhile are not waited for: they publish their guard
/// after the caller's change, so they see it.
pub(crate) fn drain(
    requesters: impl Iterator<Item = Arc<Shared>>,
    limit: Duration,
) -> Result<u64, DrainError> {
    let mut wait = Wait::new(limit);
    let mut slept = 0;
    for requester in requesters {
        for slot in requester.slots() {
            let Some(claimed) = slot.claimed() else {
                continue;
            };
            while slot.is_claimed_as(claimed) {
                requester.space().count_drain_sleep();
                slept += 1;
                if !wait.pause() {
                    return Err(DrainError::Deadline {
                        rid: requester.rid(),
                        waited: wait.elapsed(),
                    });
                }
            }
        }
    }
    Ok(slept)
}
