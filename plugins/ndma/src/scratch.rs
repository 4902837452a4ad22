//! The memory on the device, and which of its pages were written since they were last saved.

/// Granularity of dirty tracking and of the saved state, in bytes.
pub const PAGE: usize = 4096;

/// The scratch memory. One mutex guards it, so a store and its dirty bit appear together, and a
/// page is copied out and its bit cleared in one step: no store is ever lost between the two.
#[derive(Debug)]
pub struct Scratch {
    bytes: Vec<u8>,
    dirty: Vec<bool>,
}

impl Scratch {
    /// Zeroed memory of `pages` pages.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self { bytes: vec![0; pages.saturating_mul(PAGE)], dirty: vec![false; pages] }
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Size in pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.dirty.len()
    }

    /// Writes `data` at byte `offset`, then marks the pages. False (and nothing written) if the
    /// range is not inside the memory.
    pub fn store(&mut self, offset: u64, data: &[u8]) -> bool {
        let Some(range) = range(offset, data.len()) else {
            return false;
        };
        let Some(into) = self.bytes.get_mut(range.clone()) else {
            return false;
        };
        into.copy_from_slice(data);
        let pages = range.start / PAGE..range.end.div_ceil(PAGE);
        if let Some(bits) = self.dirty.get_mut(pages) {
            bits.fill(true);
        }
        true
    }

    /// Reads bytes at `offset` into `out`. False (and `out` untouched) if the range is not inside.
    #[must_use]
    pub fn load(&self, offset: u64, out: &mut [u8]) -> bool {
        let from = range(offset, out.len()).and_then(|range| self.bytes.get(range));
        from.map(|from| out.copy_from_slice(from)).is_some()
    }

    /// Zeroes everything. All pages are dirty then.
    pub fn wipe(&mut self) {
        self.bytes.fill(0);
        self.dirty.fill(true);
    }

    /// Takes over loaded bytes. False if they are of another size.
    pub fn replace(&mut self, bytes: Vec<u8>) -> bool {
        let fits = bytes.len() == self.bytes.len();
        if fits {
            self.bytes = bytes;
            self.dirty.fill(true);
        }
        fits
    }

    /// The bytes of a page, which is clean from here on; `None` if there is no such page.
    pub fn take(&mut self, page: usize) -> Option<&[u8]> {
        *self.dirty.get_mut(page)? = false;
        let start = page.checked_mul(PAGE)?;
        self.bytes.get(start..start.checked_add(PAGE)?)
    }

    /// The first dirty page at or after `from`, else the first of all.
    #[must_use]
    pub fn next_dirty(&self, from: usize) -> Option<usize> {
        let (low, high) = self.dirty.split_at(from.min(self.dirty.len()));
        let found = high.iter().position(|dirty| *dirty).map(|at| at.saturating_add(low.len()));
        found.or_else(|| low.iter().position(|dirty| *dirty))
    }

    /// How many of the first `pages` pages are dirty.
    #[must_use]
    pub fn dirty_among_first(&self, pages: usize) -> usize {
        self.dirty.iter().take(pages).filter(|dirty| **dirty).count()
    }
}

/// `offset..offset + len` as an index range, if it can be one.
fn range(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    Some(start..start.checked_add(len)?)
}

#[cfg(test)]
#[path = "scratch_test.rs"]
mod tests;
