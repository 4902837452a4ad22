//! Sends pages: the path that all of RAM takes.

use std::ops::Range;
use std::time::Duration;

use drogher_iommu_types::mutant;

use super::ram::PIECE_WORDS;
use super::source::Session;
use crate::error::Error;
use crate::host::{Extent, Harvest, PAGE_SIZE, SourceHost};
use crate::phase::Phase;
use crate::wire::Tag;
use crate::wire::pages::Taken;

/// Longest time for which pages are gathered without being sent.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// Records between two looks for the destination's giving up.
const LOOK_EVERY: u32 = 8;

impl<H: SourceHost> Session<'_, H> {
    /// Reads the dirty logs into the bitmaps.
    pub(super) fn harvest(&mut self, kind: Harvest, dma: bool) -> Result<(), Error> {
        let phase = self.phase;
        for (index, region) in self.ram.regions.iter().enumerate() {
            let vcpus = self.host.harvest_vcpus(kind, index, &region.vcpus);
            vcpus.map_err(Error::host(phase, "harvest_vcpus"))?;
            if dma {
                let dma = self.host.harvest_dma(index, &region.dma);
                dma.map_err(Error::host(phase, "harvest_dma"))?;
            }
        }
        Ok(())
    }

    /// Sends every dirty page and leaves the bitmaps clean. With `clear`, the vCPU log is cleared
    /// piece by piece, each just before its pages are read: what is written after that is found
    /// by the next harvest, what was written before it is read now.
    pub(super) fn send_dirty(&mut self, clear: bool) -> Result<(), Error> {
        for index in 0..self.ram.regions.len() {
            let words = self.ram.regions.get(index).map_or(0, |r| r.words());
            for from in (0..words).step_by(PIECE_WORDS) {
                self.send_piece(index, from..words.min(from + PIECE_WORDS), clear)?;
            }
        }
        self.flush_pages()
    }

    fn send_piece(&mut self, index: usize, words: Range<usize>, clear: bool) -> Result<(), Error> {
        let Some(region) = self.ram.regions.get(index) else {
            return Ok(());
        };
        let (by_vcpus, any) = region.any(words.start, words.end);
        if !any {
            return Ok(());
        }
        let all = region.region.pages();
        let page_of = |word: usize| all.end.min(all.start + word as u64 * 64);
        let pages = page_of(words.start)..page_of(words.end);
        self.check()?;
        let clear = clear && by_vcpus;
        let copy_first = mutant!("copy-before-harvest");
        if clear && !copy_first {
            self.clear_log(index, pages.clone())?;
        }
        let mut run = 0..0;
        for word in words {
            let Some(region) = self.ram.regions.get(index) else {
                break;
            };
            let mut bits = region.take(word);
            while bits != 0 {
                let skip = bits.trailing_zeros();
                let len = (bits >> skip).trailing_ones();
                bits &= !((u64::MAX >> (64 - len)) << skip);
                let first = all.start + word as u64 * 64 + u64::from(skip);
                if run.end != first {
                    self.send_run(run)?;
                    run = first..first;
                }
                run.end = first + u64::from(len);
            }
        }
        self.send_run(run)?;
        if clear && copy_first {
            self.flush_pages()?;
            self.clear_log(index, pages)?;
        }
        Ok(())
    }

    fn clear_log(&mut self, index: usize, pages: Range<u64>) -> Result<(), Error> {
        let result = self.host.clear_vcpu_log(index, pages);
        result.map_err(Error::host(self.phase, "clear_vcpu_log"))
    }

    fn send_run(&mut self, run: Range<u64>) -> Result<(), Error> {
        let mut at = run.start;
        if mutant!("page-not-sent") && self.phase == Phase::FinalHarvest && !self.left_out {
            self.left_out = at < run.end;
            at += u64::from(self.left_out);
        }
        while at < run.end {
            let left = run.end - at;
            let data = match self.phase {
                Phase::Bulk => match self.host.extent(at..run.end).within(left) {
                    Extent::Data(data) => data,
                    Extent::Hole(zeroes) => {
                        match self.builder.zeroes(at..at + zeroes) {
                            true => at += zeroes,
                            false => self.flush_pages()?,
                        }
                        self.keep_alive()?;
                        continue;
                    }
                },
                // What was written to is no hole.
                _ => left,
            };
            let count = usize::try_from(data).unwrap_or(usize::MAX);
            let count = count.min(self.builder.room());
            let space = self.builder.space(count);
            let read = self.host.read_ram(at, space);
            read.map_err(Error::host(self.phase, "read_ram"))?;
            let mut zeroes = 0;
            for _ in 0..count {
                match self.builder.take(at, zeroes) {
                    Taken::Data => {}
                    Taken::Zero => zeroes += 1,
                    Taken::Full => break,
                }
                at += 1;
            }
            if self.builder.is_full() {
                self.flush_pages()?;
            }
            self.keep_alive()?;
        }
        Ok(())
    }

    /// Sends what has gathered if nothing was sent for a while: zeroes are read at length and take
    /// no room, and the destination must not take that for silence.
    fn keep_alive(&mut self) -> Result<(), Error> {
        match self.channel.now().saturating_sub(self.flushed_at) >= KEEP_ALIVE {
            true => self.flush_pages(),
            false => Ok(()),
        }
    }

    /// Sends the pages gathered so far.
    pub(super) fn flush_pages(&mut self) -> Result<(), Error> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let until = self.send_deadline();
        self.flushed_at = self.channel.now();
        let (data, zeroes) = self.builder.counts();
        let (meta, contents) = self.builder.finish();
        self.channel.record(Tag::Pages, &[meta], contents, until)?;
        self.builder.clear();
        self.now.pages += data + zeroes;
        self.now.zero_pages += zeroes;
        self.data_bytes += data * PAGE_SIZE as u64;
        self.report.pages += data + zeroes;
        self.report.zero_pages += zeroes;
        self.records = self.records.wrapping_add(1);
        if self.records.is_multiple_of(LOOK_EVERY) && !self.phase.in_switchover() {
            self.check()?;
            self.show_progress();
            if let Some(record) = self.channel.look(Duration::ZERO)? {
                return Err(self.channel.unexpected(&record, "nothing was asked"));
            }
        }
        Ok(())
    }
}
