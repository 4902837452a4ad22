//! DMA: what a device may do with memory.

use std::ops::Range;

use drogher_iommu_types::{Gpa, Iova, Oa, PAGE_MASK, PAGE_SIZE, mutant};

use crate::fault::{Access, Fault, FaultReason};
use crate::iotlb::Target;
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

/// Takes down where a logged access lands. Called with the access's guard held: it must not wait.
pub trait Landed {
    /// Whether a run of bytes that begins at `gpa` can be taken down. If not, the access ends there,
    /// before it stores to it.
    fn has_room(&mut self, gpa: Gpa) -> bool;

    /// `run`, not empty, was stored to. It may go on where the one before it ended.
    fn landed(&mut self, run: Range<Gpa>);
}

/// Why a transfer ends before its last byte.
enum Stop {
    Fault(FaultReason),
    /// There is no room to take down where it lands.
    NoRoom,
}

impl<E: Into<FaultReason>> From<E> for Stop {
    fn from(reason: E) -> Self {
        Self::Fault(reason.into())
    }
}

impl Requester {
    /// Reads `data.len()` bytes at `iova`.
    ///
    /// # Errors
    /// The fault and the bytes read before it; the rest of `data` is unchanged.
    pub fn read(&self, iova: Iova, data: &mut [u8]) -> Result<(), DmaError> {
        let len = data.len();
        let copy = |memory: &dyn Memory, run: Target, from: usize, to: usize| {
            data.get_mut(from..to).map_or(Ok(()), |part| memory.read(run.output, part))?;
            Ok(())
        };
        self.transfer(iova, len, Access::Read, copy).map(|_| ())
    }

    /// Writes `data` at `iova`, and marks the pages dirty while tracking is on.
    ///
    /// # Errors
    /// The fault and the bytes written before it.
    pub fn write(&self, iova: Iova, data: &[u8]) -> Result<(), DmaError> {
        self.write_or(iova, data, |_, _| Err(FaultReason::NotMapped))
    }

    /// As [`Self::write`], but what the second stage does not map may be another device's: `beyond` is
    /// given its GPA and the bytes for it, up to the end of the page, and takes all of them or says
    /// why not. It is called with a guard held, so that a drain waits for it, and must not block, nor
    /// call into a plugin, nor into the domain.
    ///
    /// # Errors
    /// The fault, that of `beyond` included, and the bytes written or taken before it.
    pub fn write_or(
        &self,
        iova: Iova,
        data: &[u8],
        mut beyond: impl FnMut(Gpa, &[u8]) -> Result<(), FaultReason>,
    ) -> Result<(), DmaError> {
        let copy = |memory: &dyn Memory, run: Target, from: usize, to: usize| {
            data.get(from..to).map_or(Ok(()), |part| memory.write(run.output, part))?;
            Ok(())
        };
        let beyond = |gpa, from, to| data.get(from..to).map_or(Ok(()), |part| beyond(gpa, part));
        self.transfer_or(iova, data.len(), Access::Write, copy, beyond).map(|_| ())
    }

    /// As [`Self::write`], and tells `log` where it landed, after the store; returns how many bytes
    /// were written: fewer than there are if the log had no room for more.
    ///
    /// # Errors
    /// The fault and the bytes written before it, which the log has.
    pub fn write_logged(
        &self,
        iova: Iova,
        data: &[u8],
        log: &mut impl Landed,
    ) -> Result<u64, DmaError> {
        self.transfer(iova, data.len(), Access::Write, |memory, run, from, to| {
            logged(log, run.gpa, (to - from) as u64, || {
                data.get(from..to).map_or(Ok(()), |part| memory.write(run.output, part))
            })
        })
    }

    /// Writes `len` times `byte` at `iova`, and marks the pages dirty while tracking is on.
    ///
    /// # Errors
    /// The fault and the bytes written before it.
    pub fn fill(&self, iova: Iova, byte: u8, len: u64) -> Result<(), DmaError> {
        self.fill_or(iova, byte, len, |_, _| Err(FaultReason::NotMapped))
    }

    /// As [`Self::fill`], with `beyond` as in [`Self::write_or`].
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
        let copy = |memory: &dyn Memory, run: Target, from: usize, to: usize| {
            // At most one piece.
            memory.fill(run.output, byte, (to - from) as u64)?;
            Ok(())
        };
        let beyond = |gpa, from: usize, to: usize| {
            let page = [byte; PAGE_SIZE as usize];
            page.get(..to - from).map_or(Ok(()), |part| beyond(gpa, part))
        };
        self.transfer_or(iova, size, Access::Write, copy, beyond).map(|_| ())
    }

    /// As [`Self::fill`], logged as [`Self::write_logged`].
    ///
    /// # Errors
    /// The fault and the bytes written before it, which the log has.
    pub fn fill_logged(
        &self,
        iova: Iova,
        byte: u8,
        len: u64,
        log: &mut impl Landed,
    ) -> Result<u64, DmaError> {
        let Ok(size) = usize::try_from(len) else {
            return Err(self.fault(iova, 0, Access::Write, FaultReason::AddressWidth));
        };
        self.transfer(iova, size, Access::Write, |memory, run, from, to| {
            let len = (to - from) as u64;
            logged(log, run.gpa, len, || memory.fill(run.output, byte, len))
        })
    }

    /// Adds to the 4 bytes at `iova`, wrapping; returns the value before. Marks the page dirty.
    ///
    /// # Errors
    /// The fault, misalignment included; then nothing was changed.
    pub fn fetch_add_u32(&self, iova: Iova, value: u32) -> Result<u32, DmaError> {
        self.fetch_add_u32_at(iova, value).map(|(old, _)| old)
    }

    /// As [`Self::fetch_add_u32`], and the GPA that it landed on.
    ///
    /// # Errors
    /// As there.
    pub fn fetch_add_u32_at(&self, iova: Iova, value: u32) -> Result<(u32, Gpa), DmaError> {
        self.atomic(iova, 4, |memory, oa| memory.fetch_add_u32(oa, value))
    }

    /// Adds to the 8 bytes at `iova`, wrapping; returns the value before. Marks the page dirty.
    ///
    /// # Errors
    /// The fault, misalignment included; then nothing was changed.
    pub fn fetch_add_u64(&self, iova: Iova, value: u64) -> Result<u64, DmaError> {
        self.fetch_add_u64_at(iova, value).map(|(old, _)| old)
    }

    /// As [`Self::fetch_add_u64`], and the GPA that it landed on.
    ///
    /// # Errors
    /// As there.
    pub fn fetch_add_u64_at(&self, iova: Iova, value: u64) -> Result<(u64, Gpa), DmaError> {
        self.atomic(iova, 8, |memory, oa| memory.fetch_add_u64(oa, value))
    }

    /// Stores `new` in the 4 bytes at `iova` if they are `expected`; returns the value before.
    /// Marks the page dirty in either case.
    ///
    /// # Errors
    /// The fault, misalignment included; then nothing was changed.
    pub fn compare_swap_u32(&self, iova: Iova, expected: u32, new: u32) -> Result<u32, DmaError> {
        self.compare_swap_u32_at(iova, expected, new).map(|(old, _)| old)
    }

    /// As [`Self::compare_swap_u32`], and the GPA that it landed on.
    ///
    /// # Errors
    /// As there.
    pub fn compare_swap_u32_at(
        &self,
        iova: Iova,
        expected: u32,
        new: u32,
    ) -> Result<(u32, Gpa), DmaError> {
        self.atomic(iova, 4, |memory, oa| memory.compare_swap_u32(oa, expected, new))
    }

    /// Stores `new` in the 8 bytes at `iova` if they are `expected`; returns the value before.
    /// Marks the page dirty in either case.
    ///
    /// # Errors
    /// The fault, misalignment included; then nothing was changed.
    pub fn compare_swap_u64(&self, iova: Iova, expected: u64, new: u64) -> Result<u64, DmaError> {
        self.compare_swap_u64_at(iova, expected, new).map(|(old, _)| old)
    }

    /// As [`Self::compare_swap_u64`], and the GPA that it landed on.
    ///
    /// # Errors
    /// As there.
    pub fn compare_swap_u64_at(
        &self,
        iova: Iova,
        expected: u64,
        new: u64,
    ) -> Result<(u64, Gpa), DmaError> {
        self.atomic(iova, 8, |memory, oa| memory.compare_swap_u64(oa, expected, new))
    }

    /// Cuts an access into pieces, each under a guard of its own, and calls
    /// `copy(memory, run, from, to)` for each run of it that is contiguous, in the address space and
    /// in memory. Returns how many bytes that did.
    #[inline]
    fn transfer(
        &self,
        iova: Iova,
        len: usize,
        access: Access,
        copy: impl FnMut(&dyn Memory, Target, usize, usize) -> Result<(), Stop>,
    ) -> Result<u64, DmaError> {
        self.transfer_or(iova, len, access, copy, |_, _, _| Err(FaultReason::NotMapped))
    }

    /// As [`Self::transfer`]; a write to a page that is not mapped goes to `beyond(gpa, from, to)`.
    #[inline]
    fn transfer_or(
        &self,
        iova: Iova,
        len: usize,
        access: Access,
        mut copy: impl FnMut(&dyn Memory, Target, usize, usize) -> Result<(), Stop>,
        mut beyond: impl FnMut(Gpa, usize, usize) -> Result<(), FaultReason>,
    ) -> Result<u64, DmaError> {
        // No usize is wider than 64 bits.
        let len = len as u64;
        if len == 0 {
            return Ok(0);
        }
        if iova.0.checked_add(len - 1).is_none() {
            return Err(self.fault(iova, 0, access, FaultReason::AddressWidth));
        }
        let mut done = 0;
        while done < len {
            let end = len.min(done + PIECE);
            let start = done;
            let result = self.0.take_off().map_err(Stop::Fault).and_then(|flight| {
                let result = self.piece(&flight, iova, &mut done, end, access, &mut copy);
                self.count(&flight, access, done - start);
                result
            });
            match result {
                Ok(()) => {}
                Err(Stop::NoRoom) => return Ok(done),
                Err(Stop::Fault(FaultReason::NotMapped)) if access == Access::Write => {
                    self.leave(iova, &mut done, len, &mut beyond)?;
                }
                Err(Stop::Fault(reason)) => return Err(self.fault(iova, done, access, reason)),
            }
        }
        Ok(done)
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
            let page = self.0.stage1(Iova(here & !PAGE_MASK), Access::Write)?.gpa.page_start();
            // Offsets inside `data`, so they fit its length's type.
            beyond(Gpa(page.0 | (here & PAGE_MASK)), *done as usize, end as usize)
        });
        match taken {
            Ok(()) => *done = end,
            // A peer that is slow is no fault of the device.
            Err(reason @ FaultReason::PeerBusy) => {
                let (rid, iova, access) = (self.rid(), Iova(here), Access::Write);
                return Err(DmaError { done: *done, fault: Fault { rid, iova, access, reason } });
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
        copy: &mut impl FnMut(&dyn Memory, Target, usize, usize) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let memory = self.0.space().memory().as_ref();
        // Offsets inside `data`, so they fit its length's type.
        let mut flush =
            |run: Target, from: u64, to: u64| copy(memory, run, from as usize, to as usize);
        let mut run: Option<Target> = None;
        let mut at = *done;
        while at < end {
            // Cannot wrap: the last byte's address was checked.
            let here = iova.0 + at;
            let target = match self.0.translate(flight, here & !PAGE_MASK, access) {
                Ok(page) => page.plus(here & PAGE_MASK),
                Err(reason) => {
                    if let Some(run) = run {
                        flush(run, *done, at)?;
                        *done = at;
                    }
                    return Err(Stop::Fault(reason));
                }
            };
            match run {
                Some(run) if run.goes_on_at(at - *done, target) => {}
                Some(before) => {
                    flush(before, *done, at)?;
                    *done = at;
                    run = Some(target);
                }
                None => run = Some(target),
            }
            at = end.min(at + (PAGE_SIZE - (here & PAGE_MASK)));
        }
        if let Some(run) = run {
            flush(run, *done, end)?;
            *done = end;
        }
        Ok(())
    }

    fn atomic<T>(
        &self,
        iova: Iova,
        size: u64,
        act: impl FnOnce(&dyn Memory, Oa) -> Result<T, MemoryError>,
    ) -> Result<(T, Gpa), DmaError> {
        let access = Access::Atomic;
        if !iova.0.is_multiple_of(size) {
            return Err(self.fault(iova, 0, access, FaultReason::Misaligned));
        }
        let result = self.0.take_off().and_then(|flight| {
            let page = self.0.translate(&flight, iova.0 & !PAGE_MASK, access)?;
            let target = page.plus(iova.0 & PAGE_MASK);
            let value = act(self.0.space().memory().as_ref(), target.output)?;
            self.count(&flight, access, size);
            Ok((value, target.gpa))
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
    pub(crate) fn fault(
        &self,
        iova: Iova,
        done: u64,
        access: Access,
        reason: FaultReason,
    ) -> DmaError {
        let fault = Fault { rid: self.rid(), iova: Iova(iova.0 + done), access, reason };
        self.0.count_fault();
        self.0.space().faults().record(fault);
        DmaError { done, fault }
    }
}

/// One run of a logged access: room first, then the store, then where it landed.
fn logged(
    log: &mut impl Landed,
    gpa: Gpa,
    len: u64,
    store: impl FnOnce() -> Result<(), MemoryError>,
) -> Result<(), Stop> {
    if !log.has_room(gpa) {
        return Err(Stop::NoRoom);
    }
    store()?;
    if !mutant!("log-run-dropped") {
        log.landed(gpa..Gpa(gpa.0 + len));
    }
    Ok(())
}
