//! KVM's log of the vCPUs' writes, by GPA.
//!
//! With manual protection (KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) a harvest only reads; the caller
//! clears in pieces, each just before copying it, and only bits that a harvest has returned.
//! "Initially set" saves write-protecting everything at the start: the first harvest says that all
//! is dirty, which is the bulk pass. Without the capability reading clears too (the plain log),
//! and clearing is nothing.

use std::ops::Range;
use std::sync::Arc;

use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa};

use crate::ioctls;
use crate::vm::{Slot, Vm, VmError};

/// KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE.
const MANUAL: u64 = 1;
/// Pages in one word of the log; pieces begin at multiples of it.
pub const WORD_PAGES: u64 = 64;

/// Why the log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirtyLogError {
    /// A slot could not be changed.
    #[error("Cannot switch the dirty log")]
    Switch(#[from] VmError),
    /// The log is off.
    #[error("The dirty log is off")]
    Off,
    /// No such RAM range.
    #[error("There is no RAM range {0}")]
    NoRange(usize),
    /// A piece that KVM cannot clear.
    #[error(
        "Pages {start:#x}..{end:#x} cannot be cleared: a piece lies in one RAM range, begins at a \
         multiple of {WORD_PAGES} pages and ends at one, or with the range"
    )]
    Piece {
        /// First page number.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// KVM refused.
    #[error("KVM refused to {what} the dirty log of {pages} pages from {first:#x}")]
    Kvm {
        /// read or clear.
        what: &'static str,
        /// First page number.
        first: u64,
        /// Number of pages.
        pages: u64,
        /// KVM's answer.
        #[source]
        source: std::io::Error,
    },
    /// The bitmap does not cover the RAM.
    #[error("The dirty bitmap does not cover RAM")]
    Bitmap(#[from] BitmapError),
}

#[derive(Debug)]
struct SlotLog {
    slot: Slot,
    /// What the last harvest returned and nobody has cleared since.
    words: Vec<u64>,
}

/// The log of one machine, for one thread at a time.
#[derive(Debug)]
pub struct DirtyLog {
    vm: Arc<Vm>,
    slots: Vec<SlotLog>,
    on: bool,
}

impl DirtyLog {
    /// Buffers for a log that is off; nothing else is allocated later.
    #[must_use]
    pub fn new(vm: &Arc<Vm>) -> Self {
        let slots = vm
            .slots()
            .iter()
            .map(|&slot| {
                let pages = slot.range.pages();
                let words = (pages.end - pages.start).div_ceil(WORD_PAGES);
                SlotLog { slot, words: vec![0; usize::try_from(words).unwrap_or(0)] }
            })
            .collect();
        Self { vm: Arc::clone(vm), slots, on: false }
    }

    /// True if reading leaves the log alone and pieces have to be cleared.
    #[must_use]
    pub fn is_manual(&self) -> bool {
        self.vm.caps().manual_dirty_log & MANUAL != 0
    }

    /// True between [`start`](Self::start) and [`stop`](Self::stop).
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Switches the log on. From its return on every write of a vCPU is logged.
    ///
    /// # Errors
    /// KVM refuses; the log is then off.
    pub fn start(&mut self) -> Result<(), DirtyLogError> {
        self.on = true;
        for log in &mut self.slots {
            log.words.fill(0);
            if let Err(e) = self.vm.set_slot(&log.slot, true) {
                // The first error says more than another one from undoing it.
                let _ = self.stop();
                return Err(e.into());
            }
        }
        Ok(())
    }

    /// Switches the log off. Takes milliseconds for each GiB.
    ///
    /// # Errors
    /// KVM refuses, for the first slot of which it does; the others are switched off all the same.
    pub fn stop(&mut self) -> Result<(), DirtyLogError> {
        self.on = false;
        let mut first = Ok(());
        for log in &mut self.slots {
            log.words.fill(0);
            let done = self.vm.set_slot(&log.slot, false);
            first = first.and(done);
        }
        Ok(first?)
    }

    /// ORs the log of RAM range `range` (index in `GuestRam::ranges`) into `into`.
    ///
    /// # Errors
    /// The log is off, KVM refuses, or `into` does not cover the range.
    pub fn harvest_range(&mut self, range: usize, into: &DirtyBitmap) -> Result<(), DirtyLogError> {
        if !self.on {
            return Err(DirtyLogError::Off);
        }
        let log = self.slots.get_mut(range).ok_or(DirtyLogError::NoRange(range))?;
        let pages = log.slot.range.pages();
        ioctls::get_dirty_log(self.vm.fd(), log.slot.id, &mut log.words).map_err(|source| {
            DirtyLogError::Kvm {
                what: "read",
                first: pages.start,
                pages: pages.end - pages.start,
                source,
            }
        })?;
        let mut gpa = log.slot.range.gpa;
        for &word in &log.words {
            if word != 0 {
                into.or_mask(gpa, word)?;
            }
            gpa = Gpa(gpa.0 + (WORD_PAGES << drogher_iommu_types::PAGE_SHIFT));
        }
        Ok(())
    }

    /// ORs the log of all RAM into `into`.
    ///
    /// # Errors
    /// As [`harvest_range`](Self::harvest_range).
    pub fn harvest(&mut self, into: &DirtyBitmap) -> Result<(), DirtyLogError> {
        (0..self.slots.len()).try_for_each(|range| self.harvest_range(range, into))
    }

    /// Clears, for `pages` (GPA / 4096), what the last harvest returned; copy the pages after
    /// this, not before. What was cleared once is not cleared again before the next harvest.
    ///
    /// # Errors
    /// Pages that are no piece (see [`DirtyLogError::Piece`]), or KVM refuses.
    pub fn clear_harvested(&mut self, pages: Range<u64>) -> Result<(), DirtyLogError> {
        if !self.on {
            return Err(DirtyLogError::Off);
        }
        if !self.is_manual() {
            return Ok(());
        }
        let bad = || DirtyLogError::Piece { start: pages.start, end: pages.end };
        let of = |log: &SlotLog| {
            let own = log.slot.range.pages();
            pages.start >= own.start && pages.end <= own.end && pages.start < pages.end
        };
        let log = self.slots.iter_mut().find(|log| of(log)).ok_or_else(bad)?;
        let own = log.slot.range.pages();
        let (first, end) = (pages.start - own.start, pages.end - own.start);
        let whole = end.is_multiple_of(WORD_PAGES) || pages.end == own.end;
        let count = u32::try_from(end - first).map_err(|_| bad())?;
        if !first.is_multiple_of(WORD_PAGES) || !whole {
            return Err(bad());
        }
        let at = |page: u64| usize::try_from(page).unwrap_or(usize::MAX);
        let words = log
            .words
            .get_mut(at(first / WORD_PAGES)..at(end.div_ceil(WORD_PAGES)))
            .ok_or_else(bad)?;
        // An empty piece costs a system call all the same.
        if words.iter().all(|&word| word == 0) {
            return Ok(());
        }
        ioctls::clear_dirty_log(self.vm.fd(), log.slot.id, first, count, words).map_err(
            |source| DirtyLogError::Kvm {
                what: "clear",
                first: pages.start,
                pages: count.into(),
                source,
            },
        )?;
        words.fill(0);
        Ok(())
    }

    /// As [`clear_harvested`](Self::clear_harvested) for `count` pages from `first_page`, but only
    /// those whose bits are set in `bits` (bit 0 of word 0 is `first_page`).
    ///
    /// # Errors
    /// As [`clear_harvested`](Self::clear_harvested); also if `bits` is too short.
    pub fn clear_piece(
        &mut self,
        first_page: u64,
        count: u64,
        bits: &[u64],
    ) -> Result<(), DirtyLogError> {
        let end = first_page.saturating_add(count);
        let bad = || DirtyLogError::Piece { start: first_page, end };
        if (bits.len() as u64) * WORD_PAGES < count {
            return Err(bad());
        }
        for log in &mut self.slots {
            let own = log.slot.range.pages();
            if first_page < own.start || end > own.end {
                continue;
            }
            let first =
                usize::try_from((first_page - own.start) / WORD_PAGES).map_err(|_| bad())?;
            // Bits that are kept come back with the next harvest, as KVM still has them.
            for (word, &wanted) in log.words.iter_mut().skip(first).zip(bits) {
                *word &= wanted;
            }
        }
        self.clear_harvested(first_page..end)
    }
}
