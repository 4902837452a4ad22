//! What is dirty: two bitmaps a region, so that the report can tell vCPUs and DMA apart.

use std::sync::atomic::{AtomicU64, Ordering};

use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa};

use crate::config::{ConfigBlock, MemoryRegion};
use crate::host::PIECE_PAGES;

/// Words of a bitmap that cover a piece.
pub(super) const PIECE_WORDS: usize = (PIECE_PAGES / 64) as usize;

/// One region's dirty pages.
#[derive(Debug)]
pub(super) struct RegionDirty {
    pub(super) region: MemoryRegion,
    pub(super) vcpus: DirtyBitmap,
    pub(super) dma: DirtyBitmap,
}

impl RegionDirty {
    fn new(region: MemoryRegion) -> Result<Self, BitmapError> {
        let range = Gpa(region.gpa)..Gpa(region.gpa + region.bytes);
        Ok(Self { region, vcpus: DirtyBitmap::new(range.clone())?, dma: DirtyBitmap::new(range)? })
    }

    /// Words of its bitmaps.
    pub(super) fn words(&self) -> usize {
        self.vcpus.words().len()
    }

    /// Whether any page of these words is dirty by vCPUs, or by anything.
    pub(super) fn any(&self, from: usize, to: usize) -> (bool, bool) {
        let set = |map: &DirtyBitmap| {
            let words = map.words().get(from..to).unwrap_or_default();
            words.iter().any(|w| w.load(Ordering::Relaxed) != 0)
        };
        let vcpus = set(&self.vcpus);
        (vcpus, vcpus || set(&self.dma))
    }

    /// Takes a word's dirty pages.
    pub(super) fn take(&self, word: usize) -> u64 {
        let take = |map: &DirtyBitmap| {
            let word = map.words().get(word);
            word.map_or(0, |w: &AtomicU64| match w.load(Ordering::Relaxed) {
                0 => 0,
                _ => w.swap(0, Ordering::AcqRel),
            })
        };
        take(&self.vcpus) | take(&self.dma)
    }

    /// Pages dirty by either.
    fn dirty(&self) -> u64 {
        let both = self.vcpus.words().iter().zip(self.dma.words());
        both.map(|(a, b)| {
            let bits = a.load(Ordering::Relaxed) | b.load(Ordering::Relaxed);
            u64::from(bits.count_ones())
        })
        .sum()
    }
}

/// All of RAM.
#[derive(Debug, Default)]
pub(super) struct Ram {
    pub(super) regions: Vec<RegionDirty>,
    pub(super) pages: u64,
}

/// Dirty pages, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) vcpus: u64,
    pub(super) dma: u64,
    pub(super) either: u64,
}

impl Ram {
    pub(super) fn new(config: &ConfigBlock) -> Result<Self, BitmapError> {
        let regions = config.memory.iter().map(|r| RegionDirty::new(*r));
        Ok(Self { regions: regions.collect::<Result<_, _>>()?, pages: config.total_pages() })
    }

    /// Every page is to be sent.
    pub(super) fn set_all(&self) -> Result<(), BitmapError> {
        self.regions.iter().try_for_each(|r| r.vcpus.set_range(r.vcpus.range()))
    }

    pub(super) fn counts(&self) -> Counts {
        let sum = |of: fn(&RegionDirty) -> u64| self.regions.iter().map(of).sum();
        Counts {
            vcpus: sum(|r| r.vcpus.count().0),
            dma: sum(|r| r.dma.count().0),
            either: sum(RegionDirty::dirty),
        }
    }
}
