//! One walk of the second stage, and the D bit.

use drogher_iommu_types::{Gpa, Oa, mutant};

use crate::fault::{Access, FaultReason};
use crate::spec::{Perm, second_stage as spec};
use crate::sync::Ordering;
use crate::table::SecondStage;

/// The outcome of a walk.
#[derive(Debug)]
pub(crate) struct Walked {
    /// Start of the page.
    pub(crate) output: Oa,
    pub(crate) perm: Perm,
    /// A later write under the same generation need not walk again.
    pub(crate) writes_covered: bool,
}

impl SecondStage {
    /// Translates the page that holds `gpa`. The caller holds a guard.
    ///
    /// If the access writes and `tracking` is on, the leaf's D bit is set before this returns, by
    /// a compare-exchange on the value just walked: a leaf that was unmapped or changed meanwhile
    /// is never written to, the walk starts again.
    pub(crate) fn walk(
        &self,
        gpa: Gpa,
        access: Access,
        tracking: bool,
    ) -> Result<Walked, FaultReason> {
        let (upper_index, leaf_index) = (spec::index(gpa.0, 2), spec::index(gpa.0, 1));
        loop {
            let upper = self.table_at(gpa.0, 2).ok_or(FaultReason::NotMapped)?;
            let table = self.child(upper, upper_index).ok_or(FaultReason::NotMapped)?;
            let entry = table.entry(leaf_index);
            let leaf = entry.load(Ordering::SeqCst);
            if !spec::is_present(leaf) {
                return Err(FaultReason::NotMapped);
            }
            let perm = spec::perm(leaf);
            if access.writes() && !perm.write {
                return Err(FaultReason::NotWritable);
            }
            if access.reads() && !perm.read {
                return Err(FaultReason::NotReadable);
            }
            if access.writes() && tracking && !mutant!("dma-no-dirty") {
                if leaf & spec::DIRTY == 0 {
                    let dirty = leaf | spec::DIRTY;
                    let set =
                        entry.compare_exchange(leaf, dirty, Ordering::SeqCst, Ordering::Relaxed);
                    if set.is_err() {
                        continue;
                    }
                }
                // Also if D was found set: who set it may not have come to the hints yet.
                table.hint(leaf_index);
                upper.hint(upper_index);
            }
            return Ok(Walked {
                output: spec::output(leaf),
                perm,
                writes_covered: perm.write && (access.writes() || !tracking),
            });
        }
    }
}
