//! Splitting and merging the leaves of a domain at any time. Neither changes what is mapped.

use std::ops::Range;

use drogher_iommu_types::{Gpa, mutant};

use crate::domain::Domain;
use crate::error::DomainError;
use crate::log::DirtyLog;
use crate::range;
use crate::tree::with;

impl Domain {
    /// Splits every large leaf that `range` meets, all of it, to leaves of the smallest size. Each
    /// is dirty if the large one was. Waits for no access in flight.
    ///
    /// # Errors
    /// `Range`. `SplitLimit`; leaves before that one were split.
    pub fn split(&self, range: Range<Gpa>) -> Result<(), DomainError> {
        let space = &*self.0;
        range::check(&range, space.config.address_bits)?;
        let _held = space.hold(&range);
        with!(space.tree, stage => stage.split_all(&range).map_err(|leaf| {
            DomainError::SplitLimit { leaf, limit: stage.arena.limit() }
        }))
    }

    /// Merges the leaves of `range` to larger ones, as large as the configuration allows, where all
    /// of a table is mapped, to contiguous memory, with the same permissions. Pages that were
    /// dirty are in the next harvest, if tracking is on. Returns how many tables became a leaf.
    ///
    /// # Errors
    /// `Range`. `Drain`: merged, but an access in flight may still use what was before.
    pub fn merge(&self, range: Range<Gpa>) -> Result<u64, DomainError> {
        let space = &*self.0;
        range::check(&range, space.config.address_bits)?;
        let _held = space.hold(&range);
        let rules = space.merge_rules();
        let retired = with!(space.tree, stage => stage.merge_all(&range, rules));
        if retired.is_empty() {
            return Ok(0);
        }
        let merged = retired.len() as u64;
        let mut log = DirtyLog::default();
        let settled = space.drain(retired, &mut |first, bits| {
            if !mutant!("merge-drops-dirty") {
                log.set_mask(first, bits);
            }
        });
        space.log_dirty(log);
        settled.drained?;
        Ok(merged)
    }
}
