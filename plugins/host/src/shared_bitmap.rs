//! A bitmap in a memfd, in which a plugin, or a process of its own, sets bits itself.
#![expect(unsafe_code, reason = "Maps the memfd")]

use crate::context::lock;
use drogher_iommu_types::Gpa;
use drogher_tracking::TrackingPageSize;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

const WORD_PAGES: u64 = 64;

/// One bit for each tracking page of a range of GPA. Others set bits by atomic OR with release order;
/// the host takes them with acquire order, so that what was stored before a bit is visible with it.
pub(crate) struct SharedBitmap {
    words: NonNull<AtomicU64>,
    count: usize,
    file: OwnedFd,
    first: Gpa,
    page_size: TrackingPageSize,
    /// One harvest at a time takes bits.
    taking: Mutex<()>,
}

// SAFETY: the mapping is owned, and every access to it is atomic.
unsafe impl Send for SharedBitmap {}
// SAFETY: as above.
unsafe impl Sync for SharedBitmap {}

impl SharedBitmap {
    /// A clean bitmap over `range`, which begins with a tracking page. Its memfd is sealed, so that
    /// no one can make an access to it a signal.
    pub(crate) fn new(range: &Range<Gpa>, page_size: TrackingPageSize) -> io::Result<SharedBitmap> {
        let pages = (range.end.0 - range.start.0).div_ceil(page_size.bytes());
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let count = usize::try_from(pages.div_ceil(WORD_PAGES)).map_err(|_| too_large())?;
        let bytes = count.checked_mul(8).ok_or_else(too_large)?;
        let size = libc::off_t::try_from(bytes).map_err(|_| too_large())?;
        // SAFETY: system calls without pointers, but for a constant text.
        let file = unsafe {
            let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
            let fd = check(libc::memfd_create(c"drogher-dma-log".as_ptr(), flags))?;
            let file = OwnedFd::from_raw_fd(fd);
            check(libc::ftruncate(fd, size))?;
            let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
            check(libc::fcntl(fd, libc::F_ADD_SEALS, seals))?;
            file
        };
        // SAFETY: a new mapping, of a file that has these bytes and cannot lose them.
        let at = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(at.cast()).ok_or_else(too_large)?;
        Ok(SharedBitmap {
            words,
            count,
            file,
            first: range.start,
            page_size,
            taking: Mutex::default(),
        })
    }

    /// For the plugin: the words, how many, and the memfd.
    pub(crate) fn parts(&self) -> (*mut u64, u64, RawFd) {
        (self.words.as_ptr().cast(), self.count as u64, self.file.as_raw_fd())
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page aligned, has `count` words, and is accessed atomically only.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.count) }
    }

    /// Takes the bits of the tracking pages of `range`: calls `each` for each run of them that was
    /// set. Bits that are set meanwhile are taken or stay.
    pub(crate) fn take<E>(
        &self,
        range: &Range<Gpa>,
        mut each: impl FnMut(Range<Gpa>) -> Result<(), E>,
    ) -> Result<(), E> {
        let _taking = lock(&self.taking);
        let size = self.page_size.bytes();
        let end = self.count as u64 * WORD_PAGES;
        let from = (range.start.0.saturating_sub(self.first.0) / size).min(end);
        let to = range.end.0.saturating_sub(self.first.0).div_ceil(size).min(end);
        for index in from / WORD_PAGES..to.div_ceil(WORD_PAGES) {
            let base = index * WORD_PAGES;
            // Below `count`.
            let Some(word) = self.words().get(index as usize) else { break };
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mask = mask(from.saturating_sub(base), (to - base).min(WORD_PAGES));
            let bits = match mask {
                u64::MAX => word.swap(0, Ordering::AcqRel),
                part => word.fetch_and(!part, Ordering::AcqRel) & part,
            };
            for (at, len) in runs(bits) {
                let start = self.first.0 + (base + at) * size;
                each(Gpa(start)..Gpa(start + len * size))?;
            }
        }
        Ok(())
    }
}

impl Drop for SharedBitmap {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` has made; nobody uses it any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.count * 8) };
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Bits `from..to` of a word, `to` at most 64 and above `from`.
fn mask(from: u64, to: u64) -> u64 {
    (u64::MAX << from) & (u64::MAX >> (WORD_PAGES - to))
}

/// First bit and length of each run of ones.
pub(crate) fn runs(mut bits: u64) -> impl Iterator<Item = (u64, u64)> {
    std::iter::from_fn(move || {
        if bits == 0 {
            return None;
        }
        let at = bits.trailing_zeros();
        let len = (bits >> at).trailing_ones();
        bits &= u64::MAX.checked_shl(at + len).unwrap_or(0);
        Some((u64::from(at), u64::from(len)))
    })
}

#[cfg(test)]
#[path = "shared_bitmap_test.rs"]
mod tests;
