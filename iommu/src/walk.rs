//! One walk of the second stage, and the D bit.

use drogher_iommu_types::{Gpa, Oa, mutant};

use crate::fault::{Access, FaultReason};
use crate::spec::{Entry, Format, Perm};
use crate::split::Split;
use crate::state::State;
use crate::sync::Ordering;
use crate::table::SecondStage;

/// The outcome of a walk.
#[derive(Debug)]
pub(crate) struct Walked {
    /// Where the byte walked for goes.
    pub(crate) output: Oa,
    pub(crate) perm: Perm,
    /// A later write under the same generation need not walk again.
    pub(crate) writes_covered: bool,
}

impl<F: Format> SecondStage<F> {
    /// Translates `gpa`. The caller holds a guard, and read `state` after publishing it.
    ///
    /// If the access writes and tracking is on, the leaf's D bit is set before this returns, by a
    /// compare-exchange on the value just walked: a leaf that was unmapped, split or changed
    /// meanwhile is never written to, the walk starts again. A leaf whose D bit is set already is
    /// not written to at all: the harvest counts on that.
    pub(crate) fn walk(
        &self,
        gpa: Gpa,
        access: Access,
        state: State,
    ) -> Result<Walked, FaultReason> {
        'again: loop {
            let mut table = self.root().ok_or(FaultReason::NotMapped)?;
            let (mut level, mut above) = (F::LEVELS, None);
            let (entry, index, leaf) = loop {
                let index = F::index(gpa.0, level);
                let entry = table.entry(index);
                let value = entry.load(Ordering::SeqCst);
                match F::decode(value, level) {
                    Entry::Leaf => break (entry, index, value),
                    Entry::Table(number) => {
                        above = Some((table, index));
                        table = self.arena.get(number).ok_or(FaultReason::NotMapped)?;
                        level -= 1;
                    }
                    Entry::Empty => return Err(FaultReason::NotMapped),
                    Entry::Reserved => return Err(FaultReason::Reserved),
                }
            };
            let perm = F::perm(leaf);
            if access.writes() && !perm.write {
                return Err(FaultReason::NotWritable);
            }
            if access.reads() && !perm.read {
                return Err(FaultReason::NotReadable);
            }
            let records = access.writes() && state.tracks() && !mutant!("dma-no-dirty");
            let mut wanted = leaf;
            if access.writes() {
                // Whether tracking is on or not: protection may go before or come after it.
                wanted = F::unprotect(leaf);
            }
            if records {
                wanted |= F::DIRTY;
            }
            if wanted != leaf {
                if level > 1 && state.splits() {
                    match self.split_for_write(entry, level) {
                        Split::Done | Split::NotLeaf => continue 'again,
                        // The leaf stays, and all of it counts as written.
                        Split::NoTable => {}
                    }
                }
                if mutant!("split-plain-or") {
                    entry.fetch_or(F::DIRTY, Ordering::SeqCst);
                } else if entry
                    .compare_exchange(leaf, wanted, Ordering::SeqCst, Ordering::Relaxed)
                    .is_err()
                {
                    continue;
                }
                if F::is_protected(leaf) {
                    self.tally.faults.add(1);
                }
                if level > 1 && state.splits() {
                    self.tally.coarse.add(1);
                }
            }
            if records {
                // Also if D was found set: who set it may not have come to the hints yet.
                table.hint(index);
                if let (1, Some((upper, index))) = (level, above) {
                    upper.hint(index);
                }
            }
            let into = gpa.0 & (F::span(level) - 1);
            return Ok(Walked {
                output: Oa(F::output(leaf, level).0 + into),
                perm,
                writes_covered: access.writes() || !state.tracks() && !F::is_protected(leaf),
            });
        }
    }
}
