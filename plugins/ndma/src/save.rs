//! A session of reading: the state as a byte stream, while the device runs and after it stopped.

use drogher_plugin_sdk::{PrecopyInfo, Read};

use crate::format::{self, HEADER_BYTES, SCRATCH_BYTES, SECTION_BYTES, TAIL_BYTES};
use crate::ops::lock;
use crate::worker::Shared;

const PAGE_SECTION: usize = SECTION_BYTES + SCRATCH_BYTES;

/// Reads header, all scratch pages in order (the initial part), pages dirtied since, and, once the
/// device is stopped, the registers and the end.
#[derive(Debug)]
pub struct Save {
    /// The section being read, and how much of it was. One section at a time is made, so what is
    /// read is as fresh as can be.
    section: Vec<u8>,
    read: usize,
    next: Next,
    /// Pages of the initial part that were made into sections.
    sent: usize,
    /// The section at hand is of the initial part.
    initial: bool,
    /// Where the search for a dirty page goes on, so that a page dirtied for ever starves no other.
    search: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Header,
    Pages,
    Nothing,
}

impl Default for Save {
    /// A new session. Whatever earlier sessions read, this one starts from the first page.
    fn default() -> Self {
        Self {
            section: Vec::with_capacity(PAGE_SECTION.max(TAIL_BYTES)),
            read: 0,
            next: Next::Header,
            sent: 0,
            initial: true,
            search: 0,
        }
    }
}

impl Save {
    /// Fills `out` as far as there is something to read. `stopped`: the device is in STOP_COPY,
    /// its worker parked.
    pub fn read(&mut self, shared: &Shared, stopped: bool, out: &mut [u8]) -> Read {
        let mut filled = 0;
        while let Some(room) = out.get_mut(filled..).filter(|room| !room.is_empty()) {
            if self.pending().is_empty() && !self.make_section(shared, stopped) {
                break;
            }
            let size = room.len().min(self.pending().len());
            room.split_at_mut(size).0.copy_from_slice(self.pending().split_at(size).0);
            filled = filled.saturating_add(size);
            self.read = self.read.saturating_add(size);
        }
        match (filled, out.is_empty()) {
            (0, false) if stopped => Read::End,
            (0, false) => Read::NoMoreNow,
            _ => Read::Bytes(filled),
        }
    }

    /// Made, but not read yet.
    fn pending(&self) -> &[u8] {
        self.section.get(self.read..).unwrap_or_default()
    }

    /// Makes the next section; false if there is none now.
    fn make_section(&mut self, shared: &Shared, stopped: bool) -> bool {
        self.section.clear();
        self.read = 0;
        let mut scratch = lock(&shared.scratch);
        match self.next {
            Next::Header => {
                format::put_header(&mut self.section, scratch.size());
                self.next = Next::Pages;
            }
            Next::Pages => {
                self.initial = self.sent < scratch.pages();
                let page =
                    if self.initial { Some(self.sent) } else { scratch.next_dirty(self.search) };
                if let Some((page, bytes)) = page.and_then(|page| Some((page, scratch.take(page)?)))
                {
                    format::put_scratch(&mut self.section, page, bytes);
                    self.search = page.saturating_add(1);
                    self.sent = self.sent.saturating_add(usize::from(self.initial));
                } else if stopped {
                    drop(scratch);
                    shared.peek(|inner| {
                        format::put_tail(&mut self.section, &inner.regs, &inner.window);
                    });
                    self.next = Next::Nothing;
                }
            }
            Next::Nothing => {}
        }
        !self.section.is_empty()
    }

    /// What is still to be read before the device stops, exact at this moment.
    #[must_use]
    pub fn remaining(&self, shared: &Shared) -> PrecopyInfo {
        let scratch = lock(&shared.scratch);
        let sections = |pages: usize| (pages as u64).saturating_mul(PAGE_SECTION as u64);
        let header = if self.next == Next::Header { HEADER_BYTES as u64 } else { 0 };
        let unsent = sections(scratch.pages().saturating_sub(self.sent));
        let dirty = sections(scratch.dirty_among_first(self.sent));
        let pending = self.pending().len() as u64;
        let (of_initial, of_dirty) = if self.initial { (pending, 0) } else { (0, pending) };
        PrecopyInfo {
            initial_bytes: unsent.saturating_add(header).saturating_add(of_initial),
            dirty_bytes: dirty.saturating_add(of_dirty),
        }
    }

    /// All bytes that STOP_COPY would still give.
    #[must_use]
    pub fn size(&self, shared: &Shared) -> u64 {
        let PrecopyInfo { initial_bytes, dirty_bytes } = self.remaining(shared);
        let tail = if self.next == Next::Nothing { 0 } else { TAIL_BYTES as u64 };
        initial_bytes.saturating_add(dirty_bytes).saturating_add(tail)
    }
}

#[cfg(test)]
#[path = "save_test.rs"]
mod tests;
