//! The destination's half of a pages record: contents come right to where they belong, if they can.

use std::ops::Range;

use drogher_iommu_types::{Gpa, mutant};

use super::destination::Incoming;
use super::load::{Loader, RegionGot, gpas};
use crate::error::Error;
use crate::hash::{Hasher, hash_of};
use crate::host::{DestinationHost, PAGE_SIZE};
use crate::phase::Phase;
use crate::wire::pages::PagesHead;
use crate::wire::{Record, WireError};

/// Pages that a run has to have, on average, to be received right where it belongs.
const DIRECT_PAGES: u64 = 8;

impl<H: DestinationHost> Incoming<'_, H> {
    pub(super) fn take_pages(&mut self, loader: &mut Loader, record: &Record) -> Result<(), Error> {
        let phase = self.phase;
        let mut head = std::mem::take(&mut loader.head);
        let payload = self.channel.reader.payload(record);
        let known = |pages: &Range<u64>| loader.region(pages).is_some();
        let decoded = head.decode(payload, record.contents, record.at, known);
        decoded.map_err(|e| self.channel.stream(e))?;
        let hashed = loader.hash_pages;
        let hash = match self.is_direct(&head) {
            true => self.take_in_place(&head, hashed)?,
            false => self.take_by_buffer(&head, record.contents, &mut loader.buffer, hashed)?,
        };
        for run in &head.runs {
            let pages = run.range();
            if let Some(region) = loader.region(&pages) {
                region.seen.set_range(gpas(&pages)).map_err(Error::bitmap)?;
                match run.is_zero() {
                    true => zero(self.host, phase, region, pages.clone())?,
                    false => region.written.set_range(gpas(&pages)).map_err(Error::bitmap)?,
                }
            }
            let count = pages.end - pages.start;
            let zeroes = if run.is_zero() { count } else { 0 };
            loader.round.pages += count;
            loader.round.zero_pages += zeroes;
            self.report.pages += count;
            self.report.zero_pages += zeroes;
        }
        self.show_progress_now_and_then();
        // In RAM already; but nothing runs before every record was right.
        if hashed && hash != head.hash && !mutant!("page-hash-ignored") {
            return Err(self.channel.stream(WireError::PageHash { at: record.at }));
        }
        loader.head = head;
        Ok(())
    }

    /// True if the contents may come right to their places, and it is worth it: each run takes a call.
    fn is_direct(&mut self, head: &PagesHead) -> bool {
        let mut runs = head.data();
        let Some(first) = runs.next() else { return false };
        let (mut count, mut pages) = (1, first.end - first.start);
        for run in runs {
            count += 1;
            pages += run.end - run.start;
        }
        pages >= count * DIRECT_PAGES && self.host.ram_mut(first).is_some()
    }

    /// Receives the contents of each run where they belong; their hash, if it is wanted.
    fn take_in_place(&mut self, head: &PagesHead, hashed: bool) -> Result<u64, Error> {
        let mut hash = Hasher::default();
        for pages in head.data() {
            let until = self.idle_deadline();
            let Some(place) = self.host.ram_mut(pages.clone()) else {
                return Err(Error::HostRule {
                    phase: self.phase,
                    call: "ram_mut",
                    what: format!("pages {pages:?} have no place here, and others have"),
                });
            };
            self.channel.contents(place, until)?;
            if hashed {
                hash.update(place);
            }
        }
        Ok(hash.digest())
    }

    /// Receives all contents in one piece, and stores each run; their hash, if it is wanted.
    fn take_by_buffer(
        &mut self,
        head: &PagesHead,
        bytes: u64,
        buffer: &mut [u8],
        hashed: bool,
    ) -> Result<u64, Error> {
        let until = self.idle_deadline();
        // Bounded by the limits of a record.
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        let contents = buffer.get_mut(..bytes).unwrap_or_default();
        self.channel.contents(contents, until)?;
        let mut rest = &*contents;
        for pages in head.data() {
            let bytes = usize::try_from(pages.end - pages.start).unwrap_or(0) * PAGE_SIZE;
            let (own, behind) = rest.split_at_checked(bytes).unwrap_or((rest, &[]));
            let written = self.host.write_ram(pages.start, own);
            written.map_err(Error::host(self.phase, "write_ram"))?;
            rest = behind;
        }
        Ok(if hashed { hash_of(contents) } else { 0 })
    }
}

/// Makes pages zero where something was written.
fn zero<H: DestinationHost>(
    host: &mut H,
    phase: Phase,
    region: &RegionGot,
    pages: Range<u64>,
) -> Result<(), Error> {
    let mut at = pages.start;
    while at < pages.end {
        let touched = |page: u64| region.written.test(Gpa(page << 12));
        if !touched(at) {
            at += 1;
            continue;
        }
        let mut end = at + 1;
        while end < pages.end && touched(end) {
            end += 1;
        }
        host.zero_ram(at..end).map_err(Error::host(phase, "zero_ram"))?;
        region.written.clear_range(gpas(&(at..end))).map_err(Error::bitmap)?;
        at = end;
    }
    Ok(())
}
