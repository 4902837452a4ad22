//! Pages records: runs of page numbers, then the contents of those that are not zero.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 4 | number of runs |
//! | 4 | 4 | zero |
//! | 8 | 8 | hash of the contents, if that feature was chosen, else zero |
//! | 16 | 16 each | runs: first page (8), pages (4), kind (4; 0 contents follow, 1 zeroes) |
//! | | 4096 each | contents, in the order of the runs |
//!
//! The record's checksum covers all but the contents.

use std::ops::Range;

use super::message::{array, put};
use super::{At, WireError};
use crate::hash::hash_of;
use crate::host::PAGE_SIZE;

/// Most pages with contents in a record: 256 KiB.
pub(crate) const MAX_DATA_PAGES: usize = 64;
/// Most runs in a record.
pub(crate) const MAX_RUNS: usize = 128;
/// Bytes before the runs.
pub(crate) const PAGES_HEAD: usize = 16;
/// Bytes of a run.
pub(crate) const RUN_BYTES: usize = 16;

const KIND_DATA: u32 = 0;
const KIND_ZERO: u32 = 1;

/// A run of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    first: u64,
    pages: u32,
    kind: u32,
}

/// What became of a page offered to a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// Its contents are in the record.
    Data,
    /// It is in the record as a page of zeroes.
    Zero,
    /// It is not in the record, which has no room for its run.
    Full,
}

/// Gathers pages for a record, in buffers that are used again for each.
#[derive(Debug)]
pub(crate) struct PagesBuilder {
    meta: Vec<u8>,
    last: Option<Run>,
    contents: Vec<u8>,
    data_pages: usize,
    zero_pages: u64,
    hash: bool,
}

impl PagesBuilder {
    /// With or without a hash over the contents.
    pub(crate) fn new(hash: bool) -> Self {
        let mut meta = Vec::with_capacity(PAGES_HEAD + MAX_RUNS * RUN_BYTES);
        meta.resize(PAGES_HEAD, 0);
        Self {
            meta,
            last: None,
            contents: vec![0; MAX_DATA_PAGES * PAGE_SIZE],
            data_pages: 0,
            zero_pages: 0,
            hash,
        }
    }

    /// Room for so many pages with contents, if runs are not the limit.
    pub(crate) fn room(&self) -> usize {
        MAX_DATA_PAGES - self.data_pages
    }

    /// True if no page more can be taken for certain.
    pub(crate) fn is_full(&self) -> bool {
        self.room() == 0 || self.meta.len() >= PAGES_HEAD + (MAX_RUNS - 1) * RUN_BYTES
    }

    /// True if there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.last.is_none() && self.meta.len() == PAGES_HEAD
    }

    /// Where the contents of the next `pages` pages may be put, to be judged by
    /// [`take`](Self::take) one after another.
    pub(crate) fn space(&mut self, pages: usize) -> &mut [u8] {
        let from = self.data_pages * PAGE_SIZE;
        let to = (from + pages * PAGE_SIZE).min(self.contents.len());
        self.contents.get_mut(from..to).unwrap_or_default()
    }

    /// Takes `page`, whose contents are the `skipped`-th after what has been taken so far: pages of
    /// zeroes leave gaps.
    pub(crate) fn take(&mut self, page: u64, skipped: usize) -> Taken {
        let from = (self.data_pages + skipped) * PAGE_SIZE;
        let Some(contents) = self.contents.get(from..from + PAGE_SIZE) else {
            return Taken::Full;
        };
        if is_zero(contents) {
            return match self.zeroes(page..page + 1) {
                true => Taken::Zero,
                false => Taken::Full,
            };
        }
        if !self.extend(page, 1, KIND_DATA) {
            return Taken::Full;
        }
        if skipped > 0 {
            let to = self.data_pages * PAGE_SIZE;
            self.contents.copy_within(from..from + PAGE_SIZE, to);
        }
        self.data_pages += 1;
        Taken::Data
    }

    /// Takes pages that are known to be zero. Returns false if there is no room for the run.
    pub(crate) fn zeroes(&mut self, pages: Range<u64>) -> bool {
        let mut at = pages.start;
        while at < pages.end {
            let count = u32::try_from(pages.end - at).unwrap_or(u32::MAX);
            if !self.extend(at, count, KIND_ZERO) {
                return false;
            }
            at += u64::from(count);
            self.zero_pages += u64::from(count);
        }
        true
    }

    fn extend(&mut self, first: u64, pages: u32, kind: u32) -> bool {
        if let Some(last) = &mut self.last {
            if last.kind == kind
                && last.first + u64::from(last.pages) == first
                && let Some(joined) = last.pages.checked_add(pages)
            {
                last.pages = joined;
                return true;
            }
            if self.meta.len() + 2 * RUN_BYTES > PAGES_HEAD + MAX_RUNS * RUN_BYTES {
                return false;
            }
        }
        self.put_last();
        self.last = Some(Run { first, pages, kind });
        true
    }

    fn put_last(&mut self) {
        if let Some(run) = self.last.take() {
            self.meta.extend_from_slice(&run.first.to_le_bytes());
            self.meta.extend_from_slice(&run.pages.to_le_bytes());
            self.meta.extend_from_slice(&run.kind.to_le_bytes());
        }
    }

    /// The two parts of the payload: checked, and contents.
    pub(crate) fn finish(&mut self) -> (&[u8], &[u8]) {
        self.put_last();
        let runs = (self.meta.len() - PAGES_HEAD) / RUN_BYTES;
        let contents = self.contents.get(..self.data_pages * PAGE_SIZE).unwrap_or_default();
        let hash = if self.hash { hash_of(contents) } else { 0 };
        let head = u32::try_from(runs).unwrap_or(u32::MAX).to_le_bytes();
        put(&mut self.meta, 0, &head);
        put(&mut self.meta, 8, &hash.to_le_bytes());
        (&self.meta, contents)
    }

    /// Pages with contents and pages of zeroes so far.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.data_pages as u64, self.zero_pages)
    }

    /// Ready for the next record.
    pub(crate) fn clear(&mut self) {
        self.meta.truncate(PAGES_HEAD);
        self.last = None;
        self.data_pages = 0;
        self.zero_pages = 0;
    }
}

/// True if every byte is zero. Pages that are not mostly show it in their first bytes.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(256).all(|chunk| {
        let (words, rest) = chunk.as_chunks::<8>();
        let word = words.iter().fold(0, |all, w| all | u64::from_ne_bytes(*w));
        word == 0 && rest.iter().all(|b| *b == 0)
    })
}

/// The head of a pages record that was received: what its contents have to be.
#[derive(Debug, Default)]
pub(crate) struct PagesHead {
    /// The runs in order. Room for the most that there can be is kept.
    pub(crate) runs: Vec<Run>,
    /// The hash of the contents, if that feature was chosen.
    pub(crate) hash: u64,
}

impl PagesHead {
    /// Room for any record.
    pub(crate) fn new() -> Self {
        Self { runs: Vec::with_capacity(MAX_RUNS), hash: 0 }
    }

    /// The pages whose contents follow, in order.
    pub(crate) fn data(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.iter().filter(|run| !run.is_zero()).map(Run::range)
    }

    /// Takes the checked part of a payload, which `contents` bytes follow, and checks its sizes. Whether the
    /// pages exist is checked by `known`, which says whether a range of pages is RAM.
    pub(crate) fn decode(
        &mut self,
        payload: &[u8],
        contents: u64,
        at: At,
        known: impl Fn(&Range<u64>) -> bool,
    ) -> Result<(), WireError> {
        let size = |what| WireError::Size { at, what, length: payload.len() };
        let (head, rest) = payload.split_at_checked(PAGES_HEAD).ok_or_else(|| size("head"))?;
        let count = u32::from_le_bytes(array(head, 0));
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count == 0 || count > MAX_RUNS {
            return Err(WireError::Value { at, what: "number of runs", value: count as u64 });
        }
        if rest.len() != count * RUN_BYTES {
            return Err(size("runs"));
        }
        self.hash = u64::from_le_bytes(array(head, 8));
        self.runs.clear();
        let mut data_pages = 0u64;
        for run in rest.chunks_exact(RUN_BYTES).map(Run::decode) {
            let range = run.range();
            if run.pages == 0 || !known(&range) {
                return Err(WireError::Value { at, what: "page", value: run.first });
            }
            match run.kind {
                KIND_DATA => data_pages += u64::from(run.pages),
                KIND_ZERO => {}
                kind => {
                    return Err(WireError::Value { at, what: "kind of run", value: kind.into() });
                }
            }
            self.runs.push(run);
        }
        if contents != data_pages.saturating_mul(PAGE_SIZE as u64) {
            let length = usize::try_from(contents).unwrap_or(usize::MAX);
            return Err(WireError::Size { at, what: "contents", length });
        }
        Ok(())
    }
}

impl Run {
    /// Its pages.
    pub(crate) fn range(&self) -> Range<u64> {
        self.first..self.first.saturating_add(u64::from(self.pages))
    }

    /// True if its pages are zero, and no contents follow.
    pub(crate) fn is_zero(&self) -> bool {
        self.kind == KIND_ZERO
    }

    fn decode(bytes: &[u8]) -> Self {
        Self {
            first: u64::from_le_bytes(array(bytes, 0)),
            pages: u32::from_le_bytes(array(bytes, 8)),
            kind: u32::from_le_bytes(array(bytes, 12)),
        }
    }
}

#[cfg(test)]
#[path = "pages_test.rs"]
mod tests;
