//! Writes that say where they landed, and memory by pointer.
//!
//! The invariant is that of `host.rs`; a [`PinnedMemory`] besides holds a pin that it gives back when
//! it is dropped, so its pointer is good for as long as it lives.
#![expect(unsafe_code, reason = "Calls the host's C functions, and writes to pinned memory")]

use crate::host::{DmaError, DmaErrorKind, Host};
use drogher_plugin_abi as abi;
use std::fmt;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Runs taken from one call of the host.
const RUNS: usize = 32;

/// What memory is pinned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinAccess {
    /// To read.
    Read,
    /// To write.
    Write,
    /// Both.
    ReadWrite,
}

/// A pin that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinError {
    /// Unmapped, not permitted, beyond the address width.
    Fault,
    /// The device may do no DMA now: its state, NDMA, or it was given up.
    NotAllowed,
    /// Only so many bytes from the IOVA on can be pinned at once.
    Short(u64),
    /// Too many pins.
    TooMany,
    /// The range is being unmapped.
    Unmapping,
    /// No bytes, or a range beyond 2^64.
    Invalid,
    /// The host does not pin, or the device does not say that it does.
    Unsupported,
    /// Another status.
    Other(i32),
}

impl fmt::Display for PinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PinError::Fault => f.write_str("Not mapped, or not permitted"),
            PinError::NotAllowed => f.write_str("No pin is allowed now"),
            PinError::Short(bytes) => write!(f, "Only {bytes} bytes can be pinned at once"),
            PinError::TooMany => f.write_str("Too many pins"),
            PinError::Unmapping => f.write_str("The range is being unmapped"),
            PinError::Invalid => f.write_str("No bytes, or a range that wraps"),
            PinError::Unsupported => f.write_str("The host or the device does not pin"),
            PinError::Other(status) => write!(f, "Status {status}"),
        }
    }
}

impl std::error::Error for PinError {}

fn pin_error(status: i32, len: u64) -> PinError {
    match status {
        abi::DROGHER_ERR_FAULT => PinError::Fault,
        abi::DROGHER_ERR_PERM | abi::DROGHER_ERR_SHUTDOWN => PinError::NotAllowed,
        abi::DROGHER_ERR_RANGE => PinError::Short(len),
        abi::DROGHER_ERR_NOMEM => PinError::TooMany,
        abi::DROGHER_ERR_BUSY => PinError::Unmapping,
        abi::DROGHER_ERR_INVAL => PinError::Invalid,
        abi::DROGHER_ERR_NOTSUP => PinError::Unsupported,
        other => PinError::Other(other),
    }
}

impl Host {
    /// Writes guest memory, and calls `landed` for each run of GPA after it was stored to; on an error
    /// too, for what was written before.
    pub fn dma_write_logged(
        &self,
        iova: u64,
        data: &[u8],
        mut landed: impl FnMut(Range<u64>),
    ) -> Result<(), DmaError> {
        let len = data.len() as u64;
        let mut at = 0;
        while at < len {
            let mut ranges = [abi::GpaRange::default(); RUNS];
            let mut runs =
                abi::GpaRuns { runs: ranges.as_mut_ptr(), capacity: RUNS as u64, count: 0 };
            // `at` is below the length.
            let rest = data.get(at as usize..).unwrap_or_default();
            let from = iova.wrapping_add(at);
            let result = self.logged(from, |log, ctx, requester, done| {
                let (data, len) = (rest.as_ptr().cast(), rest.len() as u64);
                // SAFETY: valid context; `rest` is readable, `runs` has room as it says.
                Some(unsafe { log.write?(ctx, requester, from, data, len, done, &mut runs) })
            });
            let count = usize::try_from(runs.count).map_or(RUNS, |count| count.min(RUNS));
            for range in ranges.iter().take(count) {
                landed(range.gpa..range.gpa.saturating_add(range.len));
            }
            match result {
                Ok(0) => {
                    let kind = DmaErrorKind::Other(abi::DROGHER_ERR_IO);
                    return Err(DmaError { kind, iova, done: at });
                }
                Ok(done) => at += done,
                Err(error) => return Err(DmaError { iova, done: at + error.done, ..error }),
            }
        }
        Ok(())
    }

    /// True if [`Self::dma_write_logged`] works with this host.
    pub fn can_log(&self) -> bool {
        self.log_table().is_some()
    }

    /// Pins memory that lies together; it is given back when the answer is dropped.
    pub fn pin(&self, iova: u64, len: u64, access: PinAccess) -> Result<PinnedMemory, PinError> {
        let (table, ctx, requester) = self.pin_table().ok_or(PinError::Unsupported)?;
        let pin = table.pin.ok_or(PinError::Unsupported)?;
        let bits = match access {
            PinAccess::Read => abi::DROGHER_PIN_READ,
            PinAccess::Write => abi::DROGHER_PIN_WRITE,
            PinAccess::ReadWrite => abi::DROGHER_PIN_READ_WRITE,
        };
        let mut out = abi::Pinned { ptr: std::ptr::null_mut(), len: 0, handle: 0, gpa: 0 };
        // SAFETY: valid context; `out` is writable.
        let status = unsafe { pin(ctx, requester, iova, len, bits, &mut out) };
        if status != abi::DROGHER_OK {
            return Err(pin_error(status, out.len));
        }
        let ptr = NonNull::new(out.ptr.cast()).ok_or(PinError::Other(abi::DROGHER_ERR_FAULT))?;
        // No memory is larger than the address space.
        let len = usize::try_from(out.len).unwrap_or(usize::MAX);
        Ok(PinnedMemory { host: self.clone(), ptr, len, access, handle: out.handle, gpa: out.gpa })
    }

    /// Says that the device has written to this range in a way that the host does not see. After the
    /// store, before STOP or NDMA.
    pub fn mark_dirty(&self, iova: u64, len: u64) -> Result<(), PinError> {
        let (table, ctx, requester) = self.pin_table().ok_or(PinError::Unsupported)?;
        let mark = table.mark_dirty.ok_or(PinError::Unsupported)?;
        // SAFETY: valid context.
        match unsafe { mark(ctx, requester, iova, len) } {
            abi::DROGHER_OK => Ok(()),
            status => Err(pin_error(status, 0)),
        }
    }
}

/// Guest memory that is pinned: what the guest and other devices access at any time. Aligned quadwords
/// are copied as such, so an aligned access of 8 bytes is single-copy atomic.
pub struct PinnedMemory {
    host: Host,
    ptr: NonNull<u8>,
    len: usize,
    access: PinAccess,
    handle: u64,
    gpa: u64,
}

// SAFETY: all accesses are atomic, and the host takes `unpin` from any thread.
unsafe impl Send for PinnedMemory {}
// SAFETY: as above.
unsafe impl Sync for PinnedMemory {}

impl PinnedMemory {
    /// Bytes pinned.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Where it lies in the guest's physical address space, for a log of the device's own.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }

    /// Never true: what has no bytes is not pinned.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `data` to offset `at`; false, and nothing is done, if it does not fit or was not pinned
    /// for writing. Seen by others in the order of this thread's writes.
    pub fn write(&self, at: usize, data: &[u8]) -> bool {
        let fits = at.checked_add(data.len()).is_some_and(|end| end <= self.len);
        if !fits || self.access == PinAccess::Read {
            return false;
        }
        self.each(at, data.len(), |part, ptr| match part {
            Part::Quad(from) => {
                let mut bytes = [0; 8];
                bytes.copy_from_slice(data.get(from..from + 8).unwrap_or(&[0; 8]));
                // SAFETY: aligned, inside the pin, and accessed atomically by everybody.
                let to = unsafe { AtomicU64::from_ptr(ptr.cast().as_ptr()) };
                to.store(u64::from_ne_bytes(bytes), Ordering::Release);
            }
            Part::Byte(from) => {
                // SAFETY: inside the pin, and accessed atomically by everybody.
                let to = unsafe { AtomicU8::from_ptr(ptr.as_ptr()) };
                to.store(data.get(from).copied().unwrap_or(0), Ordering::Release);
            }
        });
        true
    }

    /// Copies from offset `at` to `data`; false, and nothing is done, if that is not all inside, or was
    /// not pinned for reading.
    pub fn read(&self, at: usize, data: &mut [u8]) -> bool {
        let fits = at.checked_add(data.len()).is_some_and(|end| end <= self.len);
        if !fits || self.access == PinAccess::Write {
            return false;
        }
        self.each(at, data.len(), |part, ptr| match part {
            Part::Quad(to) => {
                // SAFETY: aligned, inside the pin, and accessed atomically by everybody.
                let from = unsafe { AtomicU64::from_ptr(ptr.cast().as_ptr()) };
                let bytes = from.load(Ordering::Acquire).to_ne_bytes();
                data.iter_mut().skip(to).zip(bytes).for_each(|(to, from)| *to = from);
            }
            Part::Byte(to) => {
                // SAFETY: inside the pin, and accessed atomically by everybody.
                let from = unsafe { AtomicU8::from_ptr(ptr.as_ptr()) };
                data.iter_mut().skip(to).take(1).for_each(|to| *to = from.load(Ordering::Acquire));
            }
        });
        true
    }

    /// Cuts `len` bytes from `at`, which are inside, into aligned quadwords and bytes.
    fn each(&self, at: usize, len: usize, mut act: impl FnMut(Part, NonNull<u8>)) {
        let mut done = 0;
        while done < len {
            // SAFETY: inside the pin: the callers have checked that.
            let ptr = unsafe { self.ptr.add(at + done) };
            if len - done >= 8 && ptr.cast::<u64>().is_aligned() {
                act(Part::Quad(done), ptr);
                done += 8;
            } else {
                act(Part::Byte(done), ptr);
                done += 1;
            }
        }
    }
}

/// Eight bytes or one, at this offset of the data.
enum Part {
    Quad(usize),
    Byte(usize),
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if let Some((table, ctx, _)) = self.host.pin_table()
            && let Some(unpin) = table.unpin
        {
            // SAFETY: valid context. That there is no such pin any more can only be after the end.
            let _ = unsafe { unpin(ctx, self.handle) };
        }
    }
}

impl fmt::Debug for PinnedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedMemory").field("len", &self.len).finish_non_exhaustive()
    }
}
