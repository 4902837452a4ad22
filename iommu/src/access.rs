//! DMA: what a device may do with memory.

use drogher_iommu_types::{Gpa, Iova, Oa, PAGE_MASK, PAGE_SIZE};

use crate::fault::{Access, Fault, FaultReason};
use crate::memory::{Memory, MemoryError};
use crate::requester::{Flight, Requester};
use crate::slot::bump;

/// The longest copy under one guard.
const PIECE: u64 = 64 << 10;

/// DMA that did not get to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}, after {done} bytes")]
pub struct DmaError {
    /// Bytes that were transferred before, from the first on.
    pub done: u64,
    /// What stopped it. It is in the domain's log too, but for [`FaultReason::PeerBusy`].
    #[source]
    pub fault: Fault,
}

impl Requester {
    /// Reads `data.len()` bytes at `iova`.
    ///
    /// # Errors
    /// The fault and the bytes read before it; the rest of `data` is unchanged.
    pub fn read(&self, iova: Iova, data: &mut [u8]) -> Result<(), DmaError> {
        let len = data.len();
        let copy = |memory: &dyn Memory, oa, from, to| {
            data.get_mut(from..to).map_or(Ok(()), |part| memory.read(oa, part))
        };
        self.transfer(iova, len, Access::Read, copy, |_, _, _| Err(FaultReason::NotMapped))
    }

    /// Writes `data` at `iova`, and marks the pages dirty while tracking is on.
    ///
    /// # Errors
    /// The fault and the bytes written before it.
    pub fn write(&self, iova: Iova, data: &[u8]) -> Result<(), DmaError> {
        self.write_or(iova, data, |_, _| Err(FaultReason::NotMapped))
    }

    /// As [`write`](Self::write), but what the second stage does not map may be another device's:
    /// `beyond` is given its GPA and the bytes for it, up to the end of the page, and takes all of
    /// them or says why not. It is called with a guard held, so that a drain waits for it, and must
    /// not block, nor call into a plugin, nor into the domain.
    ///
    /// # Errors
    /// The fault, that of `beyond` included, and the bytes written or taken before it.
    pub fn write_or(
        &self,
        iova: Iova,
        data: &[u8],
        mut beyond: impl FnMut(Gpa, &[u8]) -> Result<(), FaultReason>,
    ) -> Result<(), DmaError> {
        let copy = |memory: &dyn Memory, oa, from, to| {
            data.get(from..to).map_or(Ok(()), |part| memory.write(oa, part))
        };
        self.transfer(iova, data.len(), Access::Write, copy, |gpa, from, to| {
            data.get(from..to).map_or(Ok(()), |part| beyond(gpa, part))
        })
    }

    /// Writes `len` times `byte` at `iova`, and marks the pages dirty while tracking is on.
    ///
    /// # Errors
    /// The fault and the bytes written before it.
    pub fn fill(&self, iova: Iova, byte: u8, len: u64) -> Result<(), DmaError> {
        self.fill_or(iova, byte, len, |_, _| Err(FaultReason::NotMapped))
    }

    /// As [`fill`](Self::fill), with `beyond` as in [`write_or`](Self::write_or).
    ///
    /// # Errors
    /// The fault, that of `beyond` included, and the bytes written or taken before it.
    pub fn fill_or(
        &self,
        iova: Iova,
        byte: u8,
        len: u64,
        mut beyond: impl FnMut(Gpa, &[u8]) -> Result<(), FaultReason>,
    ) -> Result<(), DmaError> {
        let Ok(size) = usize::try_from(len) else {
            return Err(self.fault(iova, 0, Access::Write, FaultReason::AddressWidth));
        };
        // At most one piece.
        let copy =
            |memory: &dyn Memory, oa, from, to| memory.fill(oa, byte, (to - from) as u64);
        self.transfer(iova, size, Access::Write, copy, |gpa, from, to| {
            let page = [byte; PAGE_SIZE as usize];
            page.get(..to - from).map_or(Ok(()), |part| beyond(gpa, part))
        })
    }

    /// Adds to the 4 bytes at `iova`, wrapping; returns the value before. Marks the page dirty.
    ///
    /// # Errors
    /// The fault, misalignment included; then nothing was changed.
    pub fn fetch_add_u32(&self, iova: Iova, value: u32) -> Result<u32, DmaError> {
        self.atomic(iova, 4, |memory, oa| memory.fetch_add_u32(oa, value))
    }

    /// Adds to the 8 bytes at `iova`, wrapping; returns the value before. Marks the page dirty.
    ///
    /// # Errors
    /// The fault, misalignment included; then nothing was changed.
    pub fn fetch_add_u64(&self, iova: Iova, value: u64) -> Result<u64, DmaError> {
        self.atomic(iova, 8, |memory, oa| memory.fetch_add_u64(oa, value))
    }

    /// Stores `new` in the 4 bytes at `iova` if they are `expected`; returns the value before.
    /// Marks the page dirty in either case.
    ///
    /// # Errors
    /// The fault, misalignment included; then nothing was changed.
    pub fn compare_swap_u32(&self, iova: Iova, expected: u32, new: u32) -> Result<u32, DmaError> {
        self.atomic(iova, 4, |memory, oa| memory.compare_swap_u32(oa, expected, new))
    }

    /// Stores `new` in the 8 bytes at `iova` if they are `expected`; returns the value before.
    /// Marks the page dirty in either case.
    ///
    /// # Errors
    /// The fault, misalignment included; then nothing was changed.
    pub fn compare_swap_u64(&self, iova: Iova, expected: u64, new: u64) -> Result<u64, DmaError> {
        self.atomic(iova, 8, |memory, oa| memory.compare_swap_u64(oa, expected, new))
    }

    /// Cuts an access into pieces, each under a guard of its own, and calls
    /// `copy(memory, oa, from, to)` for each run of it that is contiguous in memory. A write to a page
    /// that is not mapped goes to `beyond(gpa, from, to)`.
    #[inline]
    fn transfer(
        &self,
        iova: Iova,
        len: usize,
        access: Access,
        mut copy: impl FnMut(&dyn Memory, Oa, usize, usize) -> Result<(), MemoryError>,
        mut beyond: impl FnMut(Gpa, usize, usize) -> Result<(), FaultReason>,
    ) -> Result<(), DmaError> {
        // No usize is wider than 64 bits.
        let len = len as u64;
        if len == 0 {
            return Ok(());
        }
        if iova.0.checked_add(len - 1).is_none() {
            return Err(self.fault(iova, 0, access, FaultReason::AddressWidth));
        }
        let mut done = 0;
        while done < len {
            let end = len.min(done + PIECE);
            let start = done;
            let result = self.0.take_off().and_then(|flight| {
                let result = self.piece(&flight, iova, &mut done, end, access, &mut copy);
                self.count(&flight, access, done - start);
                result
            });
            match result {
                Ok(()) => {}
                Err(FaultReason::NotMapped) if access == Access::Write => {
                    self.leave(iova, &mut done, len, &mut beyond)?;
                }
                Err(reason) => return Err(self.fault(iova, done, access, reason)),
            }
        }
        Ok(())
    }

    /// Gives `beyond` the bytes from `done` on that lie in the same page; `done` follows.
    #[cold]
    fn leave(
        &self,
        iova: Iova,
        done: &mut u64,
        len: u64,
        beyond: &mut dyn FnMut(Gpa, usize, usize) -> Result<(), FaultReason>,
    ) -> Result<(), DmaError> {
        // Cannot wrap: the last byte's address was checked.
        let here = iova.0 + *done;
        let end = len.min(*done + (PAGE_SIZE - (here & PAGE_MASK)));
        let taken = self.0.take_off().and_then(|_flight| {
            let page = self.0.gpa(Iova(here & !PAGE_MASK), Access::Write)?;
            // Offsets inside `data`, so they fit its length's type.
            beyond(Gpa(page.0 | (here & PAGE_MASK)), *done as usize, end as usize)
        });
        match taken {
            Ok(()) => *done = end,
            // A peer that is slow is no fault of the device.
            Err(reason @ FaultReason::PeerBusy) => {
                let fault = Fault { rid: self.rid(), iova: Iova(here), access: Access::Write, reason };
                return Err(DmaError { done: *done, fault });
            }
            Err(reason) => return Err(self.fault(iova, *done, Access::Write, reason)),
        }
        Ok(())
    }

    /// Does bytes `done..end` of the access that begins at `iova`; `done` follows.
    #[inline]
    fn piece(
        &self,
        flight: &Flight<'_>,
        iova: Iova,
        done: &mut u64,
        end: u64,
        access: Access,
        copy: &mut impl FnMut(&dyn Memory, Oa, usize, usize) -> Result<(), MemoryError>,
    ) -> Result<(), FaultReason> {
        let memory = self.0.space().memory().as_ref();
        // Offsets inside `data`, so they fit its length's type.
        let mut flush = |oa: Oa, from: u64, to: u64| copy(memory, oa, from as usize, to as usize);
        let mut run: Option<Oa> = None;
        let mut at = *done;
        while at < end {
            // Cannot wrap: the last byte's address was checked.
            let here = iova.0 + at;
            let output = match self.0.translate(flight, here & !PAGE_MASK, access) {
                Ok(page) => Oa(page.0 | (here & PAGE_MASK)),
                Err(reason) => {
                    if let Some(oa) = run {
                        flush(oa, *done, at)?;
                        *done = at;
                    }
                    return Err(reason);
                }
            };
            match run {
                Some(oa) if oa.0 + (at - *done) == output.0 => {}
                Some(oa) => {
                    flush(oa, *done, at)?;
                    *done = at;
                    run = Some(output);
                }
                None => run = Some(output),
            }
            at = end.min(at + (PAGE_SIZE - (here & PAGE_MASK)));
        }
        if let Some(oa) = run {
            flush(oa, *done, end)?;
            *done = end;
        }
        Ok(())
    }

    fn atomic<T>(
        &self,
        iova: Iova,
        size: u64,
        act: impl FnOnce(&dyn Memory, Oa) -> Result<T, MemoryError>,
    ) -> Result<T, DmaError> {
        let access = Access::Atomic;
        if !iova.0.is_multiple_of(size) {
            return Err(self.fault(iova, 0, access, FaultReason::Misaligned));
        }
        let result = self.0.take_off().and_then(|flight| {
            let page = self.0.translate(&flight, iova.0 & !PAGE_MASK, access)?;
            let oa = Oa(page.0 | (iova.0 & PAGE_MASK));
            let value = act(self.0.space().memory().as_ref(), oa)?;
            self.count(&flight, access, size);
            Ok(value)
        });
        result.map_err(|reason| self.fault(iova, 0, access, reason))
    }

    #[inline]
    fn count(&self, flight: &Flight<'_>, access: Access, bytes: u64) {
        let counters = &flight.claim.slot.counters;
        if bytes == 0 {
            return;
        }
        bump(&counters.accesses, 1);
        if access.reads() {
            bump(&counters.bytes_read, bytes);
        }
        if access.writes() {
            bump(&counters.bytes_written, bytes);
        }
    }

    /// Records a fault; the guard is released by now.
    #[cold]
    fn fault(&self, iova: Iova, done: u64, access: Access, reason: FaultReason) -> DmaError {
        let fault = Fault { rid: self.rid(), iova: Iova(iova.0 + done), access, reason };
        self.0.count_fault();
        self.0.space().faults().record(fault);
        DmaError { done, fault }
    }
}
