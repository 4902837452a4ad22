//! RAM above the image, shared out: DMA areas and stacks first, the rest is the working set.

use crate::logic::pattern::Page;
use crate::pvh::Regions;

pub const PAGE: u64 = 4096;
/// What the page tables map.
const MAPPED_END: u64 = 8 << 30;
const EXTENTS: usize = 16;

unsafe extern "C" {
    static image_end: u8;
}

/// Free RAM, as half-open page-aligned ranges in rising order of the loader's map.
pub struct Arena {
    free: Regions,
}

impl Arena {
    pub fn new(memory: &Regions) -> Self {
        let floor = (&raw const image_end) as u64;
        let free = memory.map(|(start, end)| {
            let start = start.max(floor).next_multiple_of(PAGE);
            (start, (end.min(MAPPED_END) & !(PAGE - 1)).max(start))
        });
        Self { free }
    }

    /// Takes `bytes` (rounded up to pages) in one piece and clears them.
    pub fn take(&mut self, bytes: u64) -> Option<u64> {
        let bytes = bytes.next_multiple_of(PAGE);
        let range = self.free.iter_mut().find(|(start, end)| end - start >= bytes)?;
        let base = range.0;
        range.0 += bytes;
        // SAFETY: RAM that nobody else has: it lies beyond the image and was just taken.
        unsafe { (base as *mut u8).write_bytes(0, bytes as usize) };
        Some(base)
    }

    /// All that is left.
    pub fn rest(self) -> Extents {
        Extents { list: self.free.map(|(start, end)| (start, (end - start) / PAGE)) }
    }
}

/// The working set's memory: first pages and lengths, in pages.
pub struct Extents {
    list: [(u64, u64); EXTENTS],
}

impl Extents {
    pub const fn none() -> Self {
        Self { list: [(0, 0); EXTENTS] }
    }

    pub fn pages(&self) -> u64 {
        self.list.iter().map(|(_, pages)| pages).sum()
    }

    /// GPA of page `index`; there is one for every index below `pages()`.
    #[inline]
    pub fn address(&self, mut index: u64) -> u64 {
        for (base, pages) in &self.list {
            if index < *pages {
                return base + index * PAGE;
            }
            index -= pages;
        }
        panic!("page index beyond the working set")
    }

    /// Page `index`, for the processor whose share it is in.
    #[inline]
    pub fn page(&self, index: u64) -> *mut Page {
        // What the page holds may change without this program's doing: that is what is tested.
        core::hint::black_box(self.address(index) as *mut Page)
    }
}
