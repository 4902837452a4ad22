//! Random operations on one thread against a plain model: exact, no page more and none less.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::{
    DirtyBitmap, Domain, DomainConfig, Gpa, HeapMemory, Iova, Oa, PAGE_SIZE, Perm, Requester, Rid,
    SplitPolicy, TableFormat, TrackConfig, TrackMode,
};

/// Pages of the windows below; each lies across the edge of a level.
fn window(format: TableFormat) -> u64 {
    if format == TableFormat::Mock { 150 } else { 1300 }
}

fn edges(format: TableFormat) -> [u64; 3] {
    match format {
        TableFormat::Mock => [4, 64, 1024],
        _ => [512, 512 * 512, 512 * 512 * 512],
    }
}

struct Random(u64, TableFormat);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// A range of pages of one of the windows; mostly short.
    fn range(&mut self) -> Range<u64> {
        let (edges, window) = (edges(self.1), window(self.1));
        let edge = edges[usize::try_from(self.below(3)).expect("small")];
        let longest = [3, 70, 600][usize::try_from(self.below(3)).expect("small")];
        let start = self.below(window);
        let end = (start + self.below(longest) + 1).min(window);
        let base = edge.saturating_sub(window / 2);
        base + start..base + end
    }
}

/// What the domain should be, in the plainest way.
#[derive(Default)]
struct Model {
    mapped: BTreeMap<u64, bool>,
    dirty: BTreeSet<u64>,
}

fn gpa(pages: &Range<u64>) -> Range<Gpa> {
    Gpa(pages.start * PAGE_SIZE)..Gpa(pages.end * PAGE_SIZE)
}

fn step(domain: &Domain, device: &Requester, model: &mut Model, random: &mut Random) {
    let pages = random.range();
    match random.below(14) {
        0 | 1 => {
            let writable = random.below(4) != 0;
            let perm = if writable { Perm::READ_WRITE } else { Perm::READ };
            let free = model.mapped.range(pages.clone()).next().is_none();
            // Aligned with the GPA for the most part, so that large leaves are made.
            let output = if random.below(4) == 0 { 0 } else { pages.start % window(random.1) };
            assert_eq!(domain.map(gpa(&pages), Oa(output * PAGE_SIZE), perm).is_ok(), free);
            if free {
                model.mapped.extend(pages.map(|page| (page, writable)));
            }
        }
        2 => {
            let gone: Vec<u64> = model.mapped.range(pages.clone()).map(|(page, _)| *page).collect();
            let count = domain.unmap(gpa(&pages)).expect("drained").0;
            assert_eq!(count, u64::try_from(gone.len()).expect("small"));
            model.mapped.retain(|page, _| !pages.contains(page));
        }
        3 => {
            domain.mark_dirty(gpa(&pages)).expect("a good range");
            let mapped = model.mapped.range(pages).map(|(page, _)| *page);
            model.dirty.extend(mapped);
        }
        4..=6 => {
            let end = pages.end.min(pages.start + 80);
            let written =
                (pages.start..end).take_while(|page| model.mapped.get(page) == Some(&true));
            let written: Vec<u64> = written.collect();
            let len = (end - pages.start) * PAGE_SIZE;
            let result = device.fill(Iova(pages.start * PAGE_SIZE), 1, len);
            let done = result.map_or_else(|error| error.done, |()| len);
            assert_eq!(done / PAGE_SIZE, u64::try_from(written.len()).expect("small"));
            model.dirty.extend(written);
        }
        7 => domain.split(gpa(&pages)).expect("tables are free"),
        8 => drop(domain.merge(gpa(&pages)).expect("drained")),
        9 => {
            let mode = [TrackMode::DBits, TrackMode::WriteFault][usize::from(random.below(2) == 0)];
            domain.set_track_mode(mode).expect("tracking is on");
        }
        _ => {
            let bitmap = DirtyBitmap::new(gpa(&pages)).expect("aligned");
            domain.read_and_clear_dirty(gpa(&pages), &bitmap).expect("drained");
            let found: Vec<u64> =
                bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect();
            let expected: Vec<u64> = model.dirty.range(pages.clone()).copied().collect();
            assert_eq!(found, expected);
            model.dirty.retain(|page| !pages.contains(page));
        }
    }
}

/// Every format, and every way to track that is exact.
#[test]
fn random_operations_match_a_plain_model() {
    for format in TableFormat::ALL {
        for split in [SplitPolicy::Eager, SplitPolicy::OnFirstWrite] {
            for seed in 1..=8u64 {
                println!("{format:?} {split:?} seed {seed}");
                let memory = Arc::new(HeapMemory::new(2 * window(format) * PAGE_SIZE));
                let config = DomainConfig {
                    format,
                    address_bits: format.width(),
                    ..DomainConfig::default()
                };
                let domain = Domain::new(memory, config).expect("valid");
                let device = domain.attach(Rid(8)).expect("first");
                let track = TrackConfig { split, ..TrackConfig::default() };
                domain.start_tracking_with(track).expect("nothing is in flight");
                let mut random = Random(seed * 0x9e37_79b9, format);
                let mut model = Model::default();
                for _ in 0..1500 {
                    step(&domain, &device, &mut model, &mut random);
                }
                let mapped = u64::try_from(model.mapped.len()).expect("small");
                assert_eq!(domain.stats().mapped.0, mapped);
                let writable = model.mapped.values().filter(|writable| **writable).count();
                let all = Gpa(0)..Gpa(1 << format.width().min(40));
                let bitmap = DirtyBitmap::new(all.clone()).expect("aligned");
                let found = domain.mapped_writable(all, &bitmap).expect("covered").0;
                assert_eq!(found, u64::try_from(writable).expect("small"));
            }
        }
    }
}

/// All pages of three leaf tables dirty, harvested in two parts: every cut near an edge.
#[test]
fn every_cut_near_the_edges_of_words_and_tables() {
    let pages = 3 * 512;
    let memory = Arc::new(HeapMemory::new(pages * PAGE_SIZE));
    let config = DomainConfig { largest_leaf: PAGE_SIZE, ..DomainConfig::default() };
    let domain = Domain::new(memory, config).expect("valid");
    domain.map(gpa(&(0..pages)), Oa(0), Perm::READ_WRITE).expect("free");
    domain.start_tracking().expect("nothing is in flight");
    let near = |edge: u64| edge.saturating_sub(2)..=edge + 2;
    for start in near(0).chain(near(64)).chain(near(512)) {
        for end in near(512).chain(near(1024)).chain(pages - 2..=pages) {
            if start > end {
                continue;
            }
            domain.mark_dirty(gpa(&(0..pages))).expect("a good range");
            let part = DirtyBitmap::new(gpa(&(start..end))).expect("aligned");
            let stats = domain.read_and_clear_dirty(gpa(&(start..end)), &part).expect("drained");
            assert_eq!((stats.pages.0, part.count().0), (end - start, end - start));
            let rest = DirtyBitmap::new(gpa(&(0..pages))).expect("aligned");
            domain.read_and_clear_dirty(gpa(&(0..pages)), &rest).expect("drained");
            assert_eq!(rest.count().0, pages - (end - start));
            assert!(start == end || !rest.test(Gpa(start * PAGE_SIZE)));
        }
    }
}
