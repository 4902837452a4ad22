//! Guest RAM: one memfd, one mapping, two guest ranges.
//!
//! An output address ([`Oa`]) of the second stage is the byte offset in that memfd and mapping, so
//! HVA = base + OA, and every access through [`GuestRam`] is checked against its length. vCPUs and
//! devices write to this memory at any time: nothing here makes a reference to it, but for
//! [`GuestRam::quiet_mut`], whose caller answers for nobody else's touching it.
#![expect(
    unsafe_code,
    reason = "this module owns the mapping of guest RAM: every pointer into \
    it is made here, from a checked offset, and lives no longer than the mapping"
)]

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

use drogher_iommu_types::{Gpa, Oa, PAGE_SIZE};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::Advice;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion, VolatileMemory,
    VolatileSlice,
};

use crate::layout::{HIGH_RAM_START, LOW_RAM_END};

/// Why guest RAM could not be had or accessed.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size asked for is no multiple of 2 MiB, or out of bounds.
    #[error(
        "Guest RAM of {0} bytes is not possible: it must be a multiple of 2 MiB, from 2 MiB to {max} GiB",
        max = MAX_BYTES >> 30
    )]
    Size(u64),
    /// A file given as RAM has another size.
    #[error("The RAM file holds {found} bytes, not {expected}")]
    FileSize {
        /// Size asked for.
        expected: u64,
        /// Size of the file.
        found: u64,
    },
    /// The kernel refused a step.
    #[error("Cannot {what} guest RAM of {bytes} bytes")]
    System {
        /// The step: make, size, seal, map, populate.
        what: &'static str,
        /// Bytes concerned.
        bytes: u64,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// An access is not inside RAM.
    #[error("{len} bytes at {what} {at:#x} are not inside guest RAM of {ram} bytes")]
    Bounds {
        /// "OA" or "GPA".
        what: &'static str,
        /// Where.
        at: u64,
        /// How many bytes.
        len: u64,
        /// RAM size in bytes.
        ram: u64,
    },
    /// An atomic access is not naturally aligned.
    #[error("An atomic access of {len} bytes at OA {at:#x} is not aligned")]
    Alignment {
        /// Where.
        at: u64,
        /// How many bytes.
        len: u64,
    },
}

/// Largest RAM: 1 TiB.
pub const MAX_BYTES: u64 = 1 << 40;
/// RAM comes in multiples of this.
pub const GRANULE: u64 = 2 << 20;

/// Whether shared memory gets large pages (Documentation/admin-guide/mm/transhuge.rst).
const SHARED_LARGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Populating is done in pieces of this size, so that it can be interrupted.
const POPULATE_PIECE: u64 = 64 << 20;

/// One range of guest RAM: where the guest sees it and where it lies in the mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamRange {
    /// First guest physical address.
    pub gpa: Gpa,
    /// Offset in the memfd and in the mapping.
    pub oa: Oa,
    /// Length in bytes, a multiple of the page size.
    pub len: u64,
}

impl RamRange {
    /// The page numbers (GPA / 4096) of the range, half-open.
    #[must_use]
    pub fn pages(&self) -> Range<u64> {
        let first = self.gpa.0 / PAGE_SIZE;
        first..first + self.len / PAGE_SIZE
    }
}

/// Guest RAM. Shared by reference count; unmapped when the last user (VM, vCPU, device) is gone.
#[derive(Debug)]
pub struct GuestRam {
    mapping: Arc<MmapRegion>,
    file: Arc<File>,
    ranges: Vec<RamRange>,
    bytes: u64,
}

fn system(what: &'static str, bytes: u64) -> impl FnOnce(rustix::io::Errno) -> MemoryError {
    move |e| MemoryError::System { what, bytes, source: e.into() }
}

impl GuestRam {
    /// Makes RAM of `bytes` in a new sealed memfd, zeroed and not populated.
    ///
    /// # Errors
    /// The size is impossible, or the kernel refuses.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        check_size(bytes)?;
        let fd: OwnedFd =
            rustix::fs::memfd_create("guest-ram", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
                .map_err(system("make", bytes))?;
        rustix::fs::ftruncate(&fd, bytes).map_err(system("size", bytes))?;
        // A file that cannot shrink cannot turn an access to the mapping into SIGBUS.
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(system("seal", bytes))?;
        Self::map(File::from(fd), bytes)
    }

    /// Maps RAM that is in `file` already: a second mapping of another machine's RAM.
    ///
    /// # Errors
    /// The file has another size, can shrink (it must be sealed as [`GuestRam::new`] seals it), or
    /// the kernel refuses.
    pub fn from_file(file: File, bytes: u64) -> Result<Self, MemoryError> {
        check_size(bytes)?;
        let found = rustix::fs::fstat(&file).map_err(system("examine", bytes))?.st_size;
        let found = u64::try_from(found).unwrap_or(0);
        if found != bytes {
            return Err(MemoryError::FileSize { expected: bytes, found });
        }
        let seals = rustix::fs::fcntl_get_seals(&file).map_err(system("examine", bytes))?;
        if !seals.contains(SealFlags::SHRINK) {
            return Err(system("map unsealed", bytes)(rustix::io::Errno::PERM));
        }
        Self::map(file, bytes)
    }

    fn map(file: File, bytes: u64) -> Result<Self, MemoryError> {
        let file = Arc::new(file);
        let size = usize::try_from(bytes).map_err(|_| MemoryError::Size(bytes))?;
        let mapping =
            MmapRegion::from_file(FileOffset::from_arc(Arc::clone(&file), 0), size).map_err(
                |e| MemoryError::System { what: "map", bytes, source: std::io::Error::other(e) },
            )?;
        let ram = Self { mapping: Arc::new(mapping), file, ranges: split(bytes), bytes };
        // Guest memory has no place in a core file. A kernel without the advice only dumps more.
        let _ = ram.advise(0, bytes, Advice::LinuxDontDump);
        // In large pages a guest takes a fifth of the second-stage faults, if the host lets shared memory
        // have them.
        let _ = ram.advise(0, bytes, Advice::LinuxHugepage);
        Ok(ram)
    }

    /// Bytes of RAM.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The memfd; `pwrite` at an OA writes to guest memory without mapping it in.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The guest ranges in ascending order; one or two.
    #[must_use]
    pub fn ranges(&self) -> &[RamRange] {
        &self.ranges
    }

    /// One past the highest page number (GPA / 4096) of RAM.
    #[must_use]
    pub fn end_page(&self) -> u64 {
        self.ranges.last().map_or(0, |r| r.pages().end)
    }

    /// Where `len` bytes at `gpa` lie in the mapping; they must lie in one range.
    #[must_use]
    pub fn oa(&self, gpa: Gpa, len: u64) -> Option<Oa> {
        self.ranges.iter().find_map(|r| {
            let at = gpa.0.checked_sub(r.gpa.0)?;
            (at.checked_add(len)? <= r.len).then(|| Oa(r.oa.0 + at))
        })
    }

    /// Where the guest sees the byte at `oa`.
    #[must_use]
    pub fn gpa(&self, oa: Oa) -> Option<Gpa> {
        self.ranges.iter().find_map(|r| {
            let at = oa.0.checked_sub(r.oa.0)?;
            (at < r.len).then(|| Gpa(r.gpa.0 + at))
        })
    }

    /// `len` bytes at `oa` as a volatile slice.
    ///
    /// # Errors
    /// They are not inside RAM.
    pub fn slice(&self, oa: Oa, len: u64) -> Result<VolatileSlice<'_>, MemoryError> {
        let bounds = || MemoryError::Bounds { what: "OA", at: oa.0, len, ram: self.bytes };
        let at = usize::try_from(oa.0).map_err(|_| bounds())?;
        let n = usize::try_from(len).map_err(|_| bounds())?;
        self.mapping.get_slice(at, n).map_err(|_| bounds())
    }

    /// Address of `len` bytes at `oa` in this process, for system calls that take pointers.
    /// It is valid while `self` lives; the guest and devices may write there at any time.
    ///
    /// # Errors
    /// They are not inside RAM.
    pub fn hva(&self, oa: Oa, len: u64) -> Result<*mut u8, MemoryError> {
        Ok(self.slice(oa, len)?.ptr_guard_mut().as_ptr())
    }

    /// `len` bytes at `oa` as plain memory, to be written by whoever has it.
    ///
    /// # Safety
    /// While the slice lives, nobody else touches these bytes: no vCPU runs, no device does DMA, and no
    /// other method here is called for them.
    ///
    /// # Errors
    /// They are not inside RAM.
    #[expect(clippy::mut_from_ref, reason = "guest memory is shared; the caller answers for it")]
    pub unsafe fn quiet_mut(&self, oa: Oa, len: u64) -> Result<&mut [u8], MemoryError> {
        let ptr = self.hva(oa, len)?;
        let len = usize::try_from(len).unwrap_or(0);
        // SAFETY: valid for `len` bytes while `self` lives (checked by `hva`), and the caller's alone.
        Ok(unsafe { std::slice::from_raw_parts_mut(ptr, len) })
    }

    /// Copies `data.len()` bytes at `oa` out. An aligned access of 1, 2, 4 or 8 bytes is
    /// single-copy atomic; one thread's accesses are seen in order.
    ///
    /// # Errors
    /// They are not inside RAM.
    pub fn read_at(&self, oa: Oa, data: &mut [u8]) -> Result<(), MemoryError> {
        let ptr = self.hva(oa, data.len() as u64)?;
        let aligned = oa.0.is_multiple_of(data.len().max(1) as u64);
        // SAFETY: `ptr` is valid for `data.len()` bytes while `self` lives (checked by `hva`); the
        // mapping is page aligned, so an aligned OA is an aligned pointer; all other accesses to
        // guest memory are atomic, volatile, or not made by Rust code.
        unsafe {
            match data.len() {
                1 => data.copy_from_slice(&[AtomicU8::from_ptr(ptr).load(Ordering::Acquire)]),
                2 if aligned => data.copy_from_slice(
                    &AtomicU16::from_ptr(ptr.cast()).load(Ordering::Acquire).to_ne_bytes(),
                ),
                4 if aligned => data.copy_from_slice(
                    &AtomicU32::from_ptr(ptr.cast()).load(Ordering::Acquire).to_ne_bytes(),
                ),
                8 if aligned => data.copy_from_slice(
                    &AtomicU64::from_ptr(ptr.cast()).load(Ordering::Acquire).to_ne_bytes(),
                ),
                _ => {
                    self.slice(oa, data.len() as u64)?.copy_to(data);
                    fence(Ordering::Acquire);
                }
            }
        }
        Ok(())
    }

    /// Copies `data` to `oa`; atomic as [`read_at`](Self::read_at).
    ///
    /// # Errors
    /// The bytes are not inside RAM.
    pub fn write_at(&self, oa: Oa, data: &[u8]) -> Result<(), MemoryError> {
        let ptr = self.hva(oa, data.len() as u64)?;
        let aligned = oa.0.is_multiple_of(data.len().max(1) as u64);
        // SAFETY: as in `read_at`.
        unsafe {
            match *data {
                [a] => AtomicU8::from_ptr(ptr).store(a, Ordering::Release),
                [a, b] if aligned => AtomicU16::from_ptr(ptr.cast())
                    .store(u16::from_ne_bytes([a, b]), Ordering::Release),
                [a, b, c, d] if aligned => AtomicU32::from_ptr(ptr.cast())
                    .store(u32::from_ne_bytes([a, b, c, d]), Ordering::Release),
                [a, b, c, d, e, f, g, h] if aligned => AtomicU64::from_ptr(ptr.cast())
                    .store(u64::from_ne_bytes([a, b, c, d, e, f, g, h]), Ordering::Release),
                _ => {
                    fence(Ordering::Release);
                    self.slice(oa, data.len() as u64)?.copy_from(data);
                    fence(Ordering::Release);
                }
            }
        }
        Ok(())
    }

    /// How many bytes from `oa` on, whole pages and at most `len`, nothing has ever been written
    /// to: they read as zeroes, and reading them would allocate them. 0 if that cannot be told.
    #[must_use]
    pub fn hole_at(&self, oa: Oa, len: u64) -> u64 {
        let data = match rustix::fs::seek(&*self.file, rustix::fs::SeekFrom::Data(oa.0)) {
            Ok(data) => data,
            // No data from here to the end.
            Err(rustix::io::Errno::NXIO) => self.bytes,
            Err(_) => oa.0,
        };
        let hole = data.min(self.bytes).saturating_sub(oa.0).min(len);
        hole - hole % drogher_iommu_types::PAGE_SIZE
    }

    /// How many bytes from `oa` on, which holds something, lie before the next hole; all that there are if that
    /// cannot be told.
    #[must_use]
    pub fn data_at(&self, oa: Oa) -> u64 {
        let hole = rustix::fs::seek(&*self.file, rustix::fs::SeekFrom::Hole(oa.0));
        hole.unwrap_or(self.bytes).min(self.bytes).saturating_sub(oa.0)
    }

    /// True if this host gives RAM large pages, but only by page faults: what is written through the
    /// file gets small ones.
    #[must_use]
    pub fn faults_in_large_pages() -> bool {
        std::fs::read_to_string(SHARED_LARGE_PAGES).is_ok_and(|text| text.contains("[advise]"))
    }

    /// Copies `data` to `oa` through the file instead of the mapping: for RAM that nothing has
    /// touched yet, that is twice as fast as taking a page fault for each page.
    ///
    /// # Errors
    /// The bytes are not inside RAM, or the kernel has no memory for them.
    pub fn write_unmapped(&self, oa: Oa, data: &[u8]) -> Result<(), MemoryError> {
        let len = data.len() as u64;
        self.slice(oa, len)?;
        let write = self.file.write_all_at(data, oa.0);
        write.map_err(|source| MemoryError::System { what: "write", bytes: len, source })
    }

    /// Sets `len` bytes at `oa` to `byte`.
    ///
    /// # Errors
    /// They are not inside RAM.
    pub fn fill_at(&self, oa: Oa, byte: u8, len: u64) -> Result<(), MemoryError> {
        let ptr = self.hva(oa, len)?;
        let n = usize::try_from(len).unwrap_or(0);
        fence(Ordering::Release);
        // SAFETY: `ptr` is valid for `len` bytes while `self` lives (checked by `hva`), and no
        // reference to guest memory exists.
        unsafe { std::ptr::write_bytes(ptr, byte, n) };
        fence(Ordering::Release);
        Ok(())
    }

    fn atomic_ptr(&self, oa: Oa, len: u64) -> Result<*mut u8, MemoryError> {
        if !oa.0.is_multiple_of(len) {
            return Err(MemoryError::Alignment { at: oa.0, len });
        }
        self.hva(oa, len)
    }

    /// The aligned u32 at `oa`, for read-modify-write accesses.
    ///
    /// # Errors
    /// Not aligned, or not inside RAM.
    pub fn atomic_u32(&self, oa: Oa) -> Result<&AtomicU32, MemoryError> {
        let ptr = self.atomic_ptr(oa, 4)?;
        // SAFETY: aligned and valid for four bytes while `self` lives; see `read_at`.
        Ok(unsafe { AtomicU32::from_ptr(ptr.cast()) })
    }

    /// The aligned u64 at `oa`, for read-modify-write accesses.
    ///
    /// # Errors
    /// Not aligned, or not inside RAM.
    pub fn atomic_u64(&self, oa: Oa) -> Result<&AtomicU64, MemoryError> {
        let ptr = self.atomic_ptr(oa, 8)?;
        // SAFETY: aligned and valid for eight bytes while `self` lives; see `read_at`.
        Ok(unsafe { AtomicU64::from_ptr(ptr.cast()) })
    }

    /// Allocates and maps every page now (`MADV_POPULATE_WRITE`), in pieces. Contents stay.
    /// A kernel without the advice (before 5.14) is no error: pages then come at first touch.
    ///
    /// # Errors
    /// The kernel has no memory for it.
    pub fn populate(&self) -> Result<(), MemoryError> {
        let mut at = 0;
        while at < self.bytes {
            let len = POPULATE_PIECE.min(self.bytes - at);
            match self.advise(at, len, Advice::LinuxPopulateWrite) {
                Ok(()) => at += len,
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(rustix::io::Errno::INVAL) => return Ok(()),
                Err(e) => return Err(system("populate", len)(e)),
            }
        }
        Ok(())
    }

    /// Maps every page that something has been written to, so that accesses take no page fault;
    /// holes stay holes. Contents stay. A kernel without the advice (before 5.14) is no error.
    ///
    /// # Errors
    /// The kernel has no memory for its page tables.
    pub fn map_written(&self) -> Result<(), MemoryError> {
        let mut at = 0;
        while at < self.bytes {
            at += self.hole_at(Oa(at), self.bytes - at);
            let end = rustix::fs::seek(&*self.file, rustix::fs::SeekFrom::Hole(at));
            let end = end.unwrap_or(self.bytes).min(self.bytes);
            if end <= at {
                return Ok(());
            }
            while at < end {
                // Reading maps a shared page for writing too, and its neighbours in the same fault.
                let len = POPULATE_PIECE.min(end - at);
                match self.advise(at, len, Advice::LinuxPopulateRead) {
                    Ok(()) => at += len,
                    Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                    Err(rustix::io::Errno::INVAL) => return Ok(()),
                    Err(e) => return Err(system("map", len)(e)),
                }
            }
        }
        Ok(())
    }

    fn advise(&self, at: u64, len: u64, advice: Advice) -> Result<(), rustix::io::Errno> {
        let ptr = self.hva(Oa(at), len).map_err(|_| rustix::io::Errno::INVAL)?;
        let len = usize::try_from(len).map_err(|_| rustix::io::Errno::INVAL)?;
        // SAFETY: the range is inside our own mapping, and no advice used here (populate, keep out
        // of dumps, large pages) changes its contents.
        unsafe { rustix::mm::madvise(ptr.cast(), len, advice) }
    }

    /// Guest RAM as vm-memory sees it, for loaders. Stays inside this crate: the regions borrow
    /// the one mapping, so the value must not outlive `self`.
    pub(crate) fn with_guest_memory<T>(
        &self,
        f: impl FnOnce(&GuestMemoryMmap) -> T,
    ) -> Result<T, MemoryError> {
        let failed = || MemoryError::Bounds { what: "OA", at: 0, len: self.bytes, ram: self.bytes };
        let mut regions = Vec::new();
        for r in &self.ranges {
            let ptr = self.hva(r.oa, r.len)?;
            let len = usize::try_from(r.len).map_err(|_| failed())?;
            // SAFETY: the range is mapped read-write and shared for as long as `self` lives. The
            // regions do not own it, and go away before this function returns: `f` gets a
            // reference whose lifetime it cannot name in `T`, and callers in this crate do not
            // clone it.
            let region = unsafe {
                MmapRegion::build_raw(
                    ptr,
                    len,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_SHARED,
                )
            }
            .map_err(|_| failed())?;
            regions.push(GuestRegionMmap::new(region, GuestAddress(r.gpa.0)).ok_or_else(failed)?);
        }
        Ok(f(&GuestMemoryMmap::from_regions(regions).map_err(|_| failed())?))
    }
}

/// The IOMMU's view: the same accesses, with the IOMMU's errors.
impl drogher_iommu::Memory for GuestRam {
    fn len(&self) -> u64 {
        self.bytes
    }

    fn read(&self, oa: Oa, data: &mut [u8]) -> Result<(), drogher_iommu::MemoryError> {
        self.read_at(oa, data).map_err(|e| self.refusal(oa, e))
    }

    fn write(&self, oa: Oa, data: &[u8]) -> Result<(), drogher_iommu::MemoryError> {
        self.write_at(oa, data).map_err(|e| self.refusal(oa, e))
    }

    fn fill(&self, oa: Oa, byte: u8, len: u64) -> Result<(), drogher_iommu::MemoryError> {
        self.fill_at(oa, byte, len).map_err(|e| self.refusal(oa, e))
    }

    fn fetch_add_u32(&self, oa: Oa, value: u32) -> Result<u32, drogher_iommu::MemoryError> {
        let word = self.atomic_u32(oa).map_err(|e| self.refusal(oa, e))?;
        Ok(word.fetch_add(value, Ordering::SeqCst))
    }

    fn fetch_add_u64(&self, oa: Oa, value: u64) -> Result<u64, drogher_iommu::MemoryError> {
        let word = self.atomic_u64(oa).map_err(|e| self.refusal(oa, e))?;
        Ok(word.fetch_add(value, Ordering::SeqCst))
    }

    fn compare_swap_u32(
        &self,
        oa: Oa,
        expected: u32,
        new: u32,
    ) -> Result<u32, drogher_iommu::MemoryError> {
        let word = self.atomic_u32(oa).map_err(|e| self.refusal(oa, e))?;
        Ok(word
            .compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst)
            .unwrap_or_else(|found| found))
    }

    fn compare_swap_u64(
        &self,
        oa: Oa,
        expected: u64,
        new: u64,
    ) -> Result<u64, drogher_iommu::MemoryError> {
        let word = self.atomic_u64(oa).map_err(|e| self.refusal(oa, e))?;
        Ok(word
            .compare_exchange(expected, new, Ordering::SeqCst, Ordering::SeqCst)
            .unwrap_or_else(|found| found))
    }

    fn host_ptr(&self, oa: Oa, len: u64) -> Option<std::ptr::NonNull<u8>> {
        std::ptr::NonNull::new(self.hva(oa, len).ok()?)
    }
}

impl GuestRam {
    fn refusal(&self, oa: Oa, error: MemoryError) -> drogher_iommu::MemoryError {
        match error {
            MemoryError::Alignment { len, .. } => {
                drogher_iommu::MemoryError::Misaligned { oa, size: len }
            }
            MemoryError::Bounds { len, .. } => {
                drogher_iommu::MemoryError::OutOfBounds { oa, len, size: self.bytes }
            }
            _ => drogher_iommu::MemoryError::OutOfBounds { oa, len: 0, size: self.bytes },
        }
    }
}

pub(crate) fn check_size(bytes: u64) -> Result<(), MemoryError> {
    if bytes == 0 || bytes > MAX_BYTES || !bytes.is_multiple_of(GRANULE) {
        return Err(MemoryError::Size(bytes));
    }
    Ok(())
}

/// How RAM of `bytes` lies in the guest's address space.
pub(crate) fn split(bytes: u64) -> Vec<RamRange> {
    let low = bytes.min(LOW_RAM_END);
    let mut ranges = vec![RamRange { gpa: Gpa(0), oa: Oa(0), len: low }];
    if bytes > low {
        ranges.push(RamRange { gpa: Gpa(HIGH_RAM_START), oa: Oa(low), len: bytes - low });
    }
    ranges
}

#[cfg(test)]
#[path = "memory_test.rs"]
mod tests;
