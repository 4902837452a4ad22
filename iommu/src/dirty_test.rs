//! Random operations on one thread against a plain model: exact, no page more and none less.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::{
    DirtyBitmap, Domain, DomainConfig, Gpa, HeapMemory, Iova, Oa, PAGE_SIZE, Perm, Requester, Rid,
};

/// Pages of the windows below; each lies across the edge of a level.
const WINDOW: u64 = 1300;
const EDGES: [u64; 3] = [512, 512 * 512, 512 * 512 * 512];

struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    /// A range of pages of one of the windows; mostly short.
    fn range(&mut self) -> Range<u64> {
        let edge = EDGES[usize::try_from(self.below(3)).expect("small")];
        let longest = [3, 70, 600][usize::try_from(self.below(3)).expect("small")];
        let start = self.below(WINDOW);
        let end = (start + self.below(longest) + 1).min(WINDOW);
        let base = edge.saturating_sub(WINDOW / 2);
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
    match random.below(10) {
        0 | 1 => {
            let writable = random.below(4) != 0;
            let perm = if writable { Perm::READ_WRITE } else { Perm::READ };
            let free = model.mapped.range(pages.clone()).next().is_none();
            assert_eq!(domain.map(gpa(&pages), Oa(0), perm).is_ok(), free);
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

#[test]
fn random_operations_match_a_plain_model() {
    for seed in 1..=12u64 {
        println!("seed {seed}");
        let memory = Arc::new(HeapMemory::new(WINDOW * PAGE_SIZE));
        let domain = Domain::new(memory, DomainConfig::default()).expect("valid");
        let device = domain.attach(Rid(8)).expect("first");
        domain.start_tracking().expect("nothing is in flight");
        let (mut model, mut random) = (Model::default(), Random(seed * 0x9e37_79b9));
        for _ in 0..1500 {
            step(&domain, &device, &mut model, &mut random);
        }
        assert_eq!(domain.stats().mapped.0, u64::try_from(model.mapped.len()).expect("small"));
    }
}

/// All pages of three leaf tables dirty, harvested in two parts: every cut near an edge.
#[test]
fn every_cut_near_the_edges_of_words_and_tables() {
    let pages = 3 * 512;
    let memory = Arc::new(HeapMemory::new(pages * PAGE_SIZE));
    let domain = Domain::new(memory, DomainConfig::default()).expect("valid");
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
