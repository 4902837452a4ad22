//! One suite over every format: which leaves a mapping gets, what of them an unmap takes, what a
//! write to one dirties, and what splitting and merging leave as it was.
//!
//! Leaves are not looked at; they show in what a write dirties while nothing is split.

mod common;

use std::ops::Range;
use std::sync::Arc;

use common::{Nothing, Random, config, dirty_pages, page, pages};
use drogher_iommu::{
    DirtyBitmap, Domain, DomainConfig, DomainError, FaultReason, Gpa, Iova, Oa, PAGE_SIZE,
    PageCount, Perm, Requester, Rid, SplitPolicy, TableFormat, TrackConfig, TrackMode, UnmapMode,
};

const NEVER: TrackConfig =
    TrackConfig { mode: TrackMode::DBits, split: SplitPolicy::Never, reserve: 0 };
const ON_WRITE: TrackConfig = TrackConfig { split: SplitPolicy::OnFirstWrite, ..NEVER };
const EAGER: TrackConfig = TrackConfig { split: SplitPolicy::Eager, ..NEVER };
const FAULTS: TrackConfig = TrackConfig { mode: TrackMode::WriteFault, ..EAGER };

/// A domain over memory that holds nothing, with one device.
struct World {
    domain: Domain,
    device: Requester,
}

impl World {
    fn new(config: DomainConfig) -> Self {
        let memory = Arc::new(Nothing(8 << 30));
        let domain = Domain::new(memory, config).expect("valid");
        let device = domain.attach(Rid(8)).expect("the first");
        Self { domain, device }
    }

    fn of(format: TableFormat) -> Self {
        Self::new(config(format))
    }

    fn map(&self, range: Range<u64>, output: u64) {
        self.domain
            .map(pages(range), Oa(output * PAGE_SIZE), Perm::READ_WRITE)
            .expect("nothing is mapped there");
    }

    fn write(&self, number: u64) {
        self.device.write(Iova(number * PAGE_SIZE), &[1]).expect("mapped and writable");
    }

    fn harvest(&self, range: Range<u64>) -> Vec<u64> {
        let bitmap = DirtyBitmap::new(pages(range.clone())).expect("aligned");
        self.domain.read_and_clear_dirty(pages(range), &bitmap).expect("drained");
        dirty_pages(&bitmap)
    }

    fn output(&self, number: u64) -> Option<u64> {
        self.domain.resolve(page(number)).map(|(oa, _)| oa.page())
    }
}

/// The leaf of page `at` in a mapping of `range` to `output`, as pages, found in the plainest way:
/// the largest size that is aligned on both sides and lies inside.
fn leaf_of(format: TableFormat, range: &Range<u64>, output: u64, at: u64) -> Range<u64> {
    for bytes in format.leaf_sizes().into_iter().rev() {
        let size = (bytes / PAGE_SIZE).max(1);
        let start = at / size * size;
        let inside = range.start <= start && start + size <= range.end;
        if inside && (output + start - range.start).is_multiple_of(size) {
            return start..start + size;
        }
    }
    unreachable!("a page always fits");
}

/// Pages near the edges of every level, in rising order.
fn edges(format: TableFormat) -> Vec<u64> {
    let [_, middle, large] = format.leaf_sizes().map(|bytes| bytes / PAGE_SIZE);
    let edges = [0, middle, 2 * middle, large - middle, large, large + middle, 2 * large];
    let near = edges.into_iter().flat_map(|edge| [edge.checked_sub(1), Some(edge), Some(edge + 1)]);
    let mut all: Vec<u64> = near.flatten().collect();
    all.dedup();
    all
}

/// Every length and alignment near the edges of every level.
#[test]
fn a_mapping_gets_the_largest_leaves_that_fit() {
    for format in TableFormat::ALL {
        let world = World::of(format);
        world.domain.start_tracking_with(NEVER).expect("nothing is in flight");
        let (edges, [_, middle, large]) = (edges(format), format.leaf_sizes());
        let shifts = [0, 1, middle / PAGE_SIZE, large / PAGE_SIZE];
        let end = edges[edges.len() - 1];
        let bitmap = DirtyBitmap::new(pages(0..end)).expect("aligned");
        for (first, start) in edges.iter().enumerate() {
            for end_at in &edges[first + 1..] {
                for shift in shifts {
                    let (range, output) = (*start..*end_at, start + shift);
                    world.map(range.clone(), output);
                    // Writing where leaves begin and end shows them all.
                    let mut at = range.start;
                    while at < range.end {
                        let leaf = leaf_of(format, &range, output, at);
                        let dirty = world.harvest_after_write(leaf.end - 1, &bitmap);
                        assert_eq!(dirty, leaf, "{format:?}, {range:?} to {output}, page {at}");
                        assert_eq!(world.output(at), Some(output + at - range.start));
                        // Not every small leaf of the thousands that there may be.
                        at = if leaf.end - leaf.start == 1 { at + 1 + at % 97 } else { leaf.end };
                    }
                    let count = world.domain.unmap(pages(0..end)).expect("drained");
                    assert_eq!(count, PageCount(range.end - range.start));
                    assert_eq!(world.domain.stats().tables, 1, "tables are given back");
                }
            }
        }
    }
}

impl World {
    /// The run of pages that one write dirties. `bitmap` is clean, and is so again.
    fn harvest_after_write(&self, number: u64, bitmap: &DirtyBitmap) -> Range<u64> {
        self.write(number);
        let found = self.domain.read_and_clear_dirty(bitmap.range(), bitmap).expect("drained");
        let mut start = number;
        while start > 0 && bitmap.test(page(start - 1)) {
            start -= 1;
        }
        let run = start..start + found.pages.0;
        assert_eq!(found.pages, found.fresh);
        assert!(run.contains(&number) && run.clone().all(|at| bitmap.test(page(at))));
        bitmap.clear_range(pages(run.clone())).expect("inside");
        run
    }
}

#[test]
fn the_largest_leaf_is_as_configured() {
    for format in TableFormat::ALL {
        let sizes = format.leaf_sizes();
        let all = 2 * sizes[2] / PAGE_SIZE;
        for (largest, expected) in [
            (PAGE_SIZE, PAGE_SIZE),
            (sizes[1], sizes[1]),
            (sizes[2] - 1, sizes[1]),
            (u64::MAX, sizes[2]),
        ] {
            let world = World::new(DomainConfig { largest_leaf: largest, ..config(format) });
            world.map(0..all, 0);
            world.domain.start_tracking_with(NEVER).expect("nothing is in flight");
            let bitmap = DirtyBitmap::new(pages(0..all)).expect("aligned");
            let dirty = world.harvest_after_write(0, &bitmap);
            assert_eq!(dirty, 0..expected / PAGE_SIZE, "{format:?} {largest:#x}");
        }
    }
}

/// What is left, what was dirty and what is reported after `gone` was taken out of a mapping, one
/// page of which was written.
fn check_partial_unmap(
    world: &World,
    format: TableFormat,
    (range, output): (Range<u64>, u64),
    gone: Range<u64>,
    written: u64,
    all: Range<u64>,
    look_at: &[u64],
) {
    world.map(range.clone(), output);
    world.write(written);
    let leaf = leaf_of(format, &range, output, written);
    let taken =
        gone.start.max(range.start)..gone.end.min(range.end).max(gone.start.max(range.start));
    let what = format!("{format:?}: {range:?} to {output}, written {written}, gone {gone:?}");

    let cut = [gone.start, gone.end].into_iter().find_map(|at| {
        let inside = range.start < at && at < range.end;
        let leaf = inside.then(|| leaf_of(format, &range, output, at))?;
        (leaf.start < at).then_some(leaf)
    });
    let refused = world.domain.unmap_with(pages(gone.clone()), UnmapMode::Refuse);
    if let Some(cut) = cut {
        let leaf_bytes = (cut.end - cut.start) * PAGE_SIZE;
        let error = DomainError::PartialLeaf { leaf: page(cut.start), leaf_bytes };
        assert_eq!(refused, Err(error), "{what}");
        let count = world.domain.unmap_with(pages(gone.clone()), UnmapMode::Split);
        assert_eq!(count, Ok(PageCount(taken.end - taken.start)), "{what}");
    } else {
        assert_eq!(refused, Ok(PageCount(taken.end - taken.start)), "{what}");
    }
    for at in look_at {
        let here = range.contains(at) && !gone.contains(at);
        assert_eq!(world.output(*at), here.then(|| output + at - range.start), "{what}: {at}");
    }
    assert_eq!(world.harvest(all.clone()), leaf.collect::<Vec<_>>(), "{what}");
    assert_eq!(world.harvest(all.clone()), [], "{what}");
    let rest = world.domain.unmap(pages(all)).expect("drained");
    let mapped = (range.end - range.start) - (taken.end - taken.start);
    assert_eq!((rest, world.domain.stats().tables), (PageCount(mapped), 1), "{what}");
}

/// Every mapping, every part of it, in a window of several tables of two levels.
#[test]
fn a_partial_unmap_is_exact_exhaustively() {
    let format = TableFormat::Mock;
    let window = 18;
    let world = World::of(format);
    world.domain.start_tracking_with(NEVER).expect("nothing is in flight");
    let look_at: Vec<u64> = (0..window).collect();
    let parts = || (0..window).flat_map(|start| (start + 1..=window).map(move |end| start..end));
    for (count, range) in parts().enumerate() {
        for gone in parts() {
            // The page written and the alignment of the output go round.
            let turn = u64::try_from(count).expect("small") + gone.start * 7 + gone.end;
            let written = range.start + turn % (range.end - range.start);
            let output = range.start + [0, 1, 4][usize::try_from(turn % 3).expect("small")];
            let mapping = (range.clone(), output);
            check_partial_unmap(&world, format, mapping, gone, written, 0..window, &look_at);
        }
    }
}

#[test]
fn a_partial_unmap_is_exact_near_the_edges_of_every_level() {
    for format in TableFormat::ALL {
        let world = World::of(format);
        world.domain.start_tracking_with(NEVER).expect("nothing is in flight");
        let edges = edges(format);
        let (all, mut random) = (0..edges[edges.len() - 1], Random(7));
        let mut choose = |from: &[u64]| from[random.below(from.len() as u64) as usize];
        for _ in 0..400 {
            let [a, b, c, d] = std::array::from_fn(|_| choose(&edges));
            if a == b || c == d {
                continue;
            }
            let (range, gone) = (a.min(b)..a.max(b), c.min(d)..c.max(d));
            let inside: Vec<u64> = edges.iter().copied().filter(|at| range.contains(at)).collect();
            let written = choose(&inside);
            let mapping = (range.clone(), range.start);
            check_partial_unmap(&world, format, mapping, gone, written, all.clone(), &edges);
        }
    }
}

#[test]
fn a_harvest_of_part_of_a_dirty_leaf_keeps_the_rest() {
    for format in TableFormat::ALL {
        for size in &format.leaf_sizes()[1..] {
            let count = size / PAGE_SIZE;
            let world = World::of(format);
            world.map(0..count, 0);
            world.domain.start_tracking_with(NEVER).expect("nothing is in flight");
            world.write(0);
            assert_eq!(world.harvest(1..3), [1, 2], "{format:?}");
            assert_eq!(world.harvest(0..count), [vec![0], (3..count).collect()].concat());
            assert_eq!(world.harvest(0..count), []);
        }
    }
}

#[test]
fn an_eager_start_makes_tracking_exact_and_a_stop_merges_again() {
    for format in TableFormat::ALL {
        let sizes = format.leaf_sizes();
        let all = sizes[2] / PAGE_SIZE + 2 * sizes[1] / PAGE_SIZE + 1;
        let world = World::of(format);
        world.map(0..all, 0);
        let before = world.domain.stats().tables;
        for tracked in [EAGER, FAULTS] {
            world.domain.start_tracking_with(tracked).expect("nothing is in flight");
            assert!(world.domain.stats().tables > before);
            for number in [0, 1, sizes[2] / PAGE_SIZE - 1, sizes[2] / PAGE_SIZE, all - 1] {
                world.write(number);
                assert_eq!(world.harvest(0..all), [number], "{format:?}");
                assert_eq!(world.output(number), Some(number));
            }
            // Mapped while tracking: exact as well.
            world.domain.unmap(pages(0..sizes[1] / PAGE_SIZE)).expect("drained");
            world.map(0..sizes[1] / PAGE_SIZE, 0);
            world.write(1);
            assert_eq!(world.harvest(0..all), [1], "{format:?}");
            let stats = world.domain.track_stats();
            assert_eq!(stats.splits_on_write + stats.coarse, 0);
            world.domain.stop_tracking();
            world.domain.invalidate().expect("nothing is in flight");
            assert_eq!(world.domain.stats().tables, before, "{format:?}: merged again");
            assert!((0..all).step_by(7).all(|at| world.output(at) == Some(at)));
            world.write(all - 1);
        }
    }
}

#[test]
fn a_first_write_splits_only_what_it_must() {
    for format in TableFormat::ALL {
        let all = format.leaf_sizes()[2] / PAGE_SIZE;
        let world = World::of(format);
        world.map(0..all, 0);
        let before = world.domain.stats().tables;
        world.domain.start_tracking_with(ON_WRITE).expect("nothing is in flight");
        assert_eq!(world.domain.stats().tables, before);
        world.device.read(Iova(0), &mut [0]).expect("mapped");
        assert_eq!(world.domain.track_stats().splits, 0, "a read splits nothing");
        for number in [2, 3, all - 1] {
            world.write(number);
            assert_eq!(world.harvest(0..all), [number], "{format:?}");
        }
        let stats = world.domain.track_stats();
        // The large one, then the two that the writes landed on.
        assert_eq!((stats.splits_on_write, stats.coarse), (3, 0), "{format:?}");
        world.domain.stop_tracking();
        world.domain.invalidate().expect("nothing is in flight");
        assert_eq!(world.domain.stats().tables, before);
    }
}

#[test]
fn a_first_write_that_finds_no_table_dirties_the_leaf() {
    for format in TableFormat::ALL {
        let (middle, levels) = (format.leaf_sizes()[1] / PAGE_SIZE, 4);
        let world = World::new(DomainConfig { table_limit: levels, ..config(format) });
        world.map(0..4 * middle, 0);
        let free = u64::from(levels) - world.domain.stats().tables;
        world.domain.start_tracking_with(ON_WRITE).expect("nothing is in flight");
        // One leaf for each table that is left gets it.
        for leaf in 0..free {
            world.write(leaf * middle);
            assert_eq!(world.harvest(0..4 * middle), [leaf * middle], "{format:?}");
        }
        world.write(free * middle + 1);
        let expected: Vec<u64> = (free * middle..(free + 1) * middle).collect();
        assert_eq!(world.harvest(0..4 * middle), expected, "{format:?}: {free}");
        assert_eq!(world.domain.track_stats().coarse, 1);
        // And eager splitting says so at the start.
        world.domain.stop_tracking();
        let error = world.domain.start_tracking();
        let Err(DomainError::SplitLimit { leaf, limit }) = error else { panic!("{error:?}") };
        assert_eq!((leaf, limit), (page(free * middle), levels));
        assert!(!world.domain.is_tracking());
        world.domain.invalidate().expect("nothing is in flight");
        assert_eq!(world.domain.stats().tables, u64::from(levels) - free, "nothing left behind");
    }
}

/// A dirty leaf is split: every part of it is dirty, and stays so.
#[test]
fn a_split_keeps_the_d_bit() {
    for format in TableFormat::ALL {
        for size in &format.leaf_sizes()[1..] {
            let count = size / PAGE_SIZE;
            let world = World::of(format);
            world.map(0..2 * count, 0);
            world.domain.start_tracking_with(NEVER).expect("nothing is in flight");
            world.write(count + 1);
            world.domain.split(pages(count..count + 1)).expect("tables are free");
            world.domain.split(pages(0..1)).expect("tables are free");
            assert_eq!(world.harvest(0..2 * count), (count..2 * count).collect::<Vec<_>>());
            world.write(count + 2);
            assert_eq!(world.harvest(0..2 * count), [count + 2], "{format:?}");
        }
    }
}

/// Dirty pages are merged away: each is reported, and no other.
#[test]
fn a_merge_keeps_every_dirty_page() {
    for format in TableFormat::ALL {
        for tracked in [EAGER, FAULTS] {
            let all = format.leaf_sizes()[2] / PAGE_SIZE;
            let world = World::of(format);
            world.map(0..all, 0);
            world.domain.start_tracking_with(tracked).expect("nothing is in flight");
            for number in [0, 5, all - 2] {
                world.write(number);
            }
            assert!(world.domain.merge(pages(0..all)).expect("drained") > 1);
            assert!((0..all).step_by(5).all(|at| world.output(at) == Some(at)), "{format:?}");
            // The device's IOTLB knows the page as dirty.
            world.write(5);
            let bitmap = DirtyBitmap::new(pages(0..all)).expect("aligned");
            let found = world.domain.read_and_clear_dirty(pages(0..all), &bitmap);
            assert_eq!(dirty_pages(&bitmap), [0, 5, all - 2], "{format:?}");
            assert_eq!(found.expect("drained").unmapped, PageCount(3));
            world.write(6);
            assert_eq!(world.harvest(0..all), [6], "the leaf is split again by the write");
        }
    }
}

#[test]
fn only_leaves_that_are_alike_and_neighbours_are_merged() {
    for format in TableFormat::ALL {
        let size = format.leaf_sizes()[1] / PAGE_SIZE;
        let smaller = DomainConfig { largest_leaf: PAGE_SIZE, ..config(format) };
        let merged = |world: &World| world.domain.merge(pages(0..4 * size)).expect("drained");
        // Largest leaf as configured.
        let world = World::new(smaller);
        world.map(0..size, 0);
        assert_eq!(merged(&world), 0, "{format:?}");
        let world = World::of(format);
        // A hole; another permission; another place; an output that is not aligned.
        world.map(0..size - 1, 0);
        world.map(size..2 * size - 1, size);
        let last = pages(2 * size - 1..2 * size);
        world.domain.map(last, Oa((2 * size - 1) * PAGE_SIZE), Perm::READ).expect("free");
        world.map(2 * size..3 * size - 1, 2 * size);
        world.map(3 * size - 1..3 * size, 0);
        world.map(3 * size..4 * size, 3 * size + 1);
        assert_eq!(merged(&world), 0, "{format:?}");
        world.map(size - 1..size, size - 1);
        assert_eq!(merged(&world), 1, "{format:?}");
        // A range that does not hold all of the table.
        world.domain.split(pages(0..1)).expect("tables are free");
        assert_eq!(world.domain.merge(pages(1..size)), Ok(0));
    }
}

#[test]
fn write_faults_give_the_same_result_and_are_counted() {
    for format in TableFormat::ALL {
        let all = 4 * format.leaf_sizes()[1] / PAGE_SIZE;
        let world = World::of(format);
        world.map(0..all - 1, 0);
        let last = pages(all - 1..all);
        world.domain.map(last, Oa(0), Perm::WRITE).expect("free");
        world.domain.start_tracking_with(FAULTS).expect("nothing is in flight");
        let mut faults = 0;
        for round in 0..3 {
            for _ in 0..3 {
                [1, 2, all - 1].into_iter().for_each(|number| world.write(number));
            }
            world.device.read(Iova(PAGE_SIZE), &mut [0]).expect("mapped");
            world.device.read(Iova(4 * PAGE_SIZE), &mut [0]).expect("mapped");
            faults += 3;
            assert_eq!(world.domain.track_stats().faults, faults, "{format:?} round {round}");
            assert_eq!(world.harvest(0..all), [1, 2, all - 1], "{format:?}");
        }
        assert_eq!(world.domain.resolve(page(1)).expect("mapped").1, Perm::READ_WRITE);
        let error = world.device.read(Iova((all - 1) * PAGE_SIZE), &mut [0]).expect_err("no");
        assert_eq!(error.fault.reason, FaultReason::NotReadable);
        // What is dirty stays dirty over a change of mode, and is reported once.
        world.write(3);
        world.domain.set_track_mode(TrackMode::DBits).expect("tracking is on");
        world.write(4);
        world.domain.set_track_mode(TrackMode::WriteFault).expect("tracking is on");
        world.write(4);
        world.write(0);
        assert_eq!(world.harvest(0..all), [0, 3, 4], "{format:?}");
        assert_eq!(world.domain.track_stats().faults, faults + 2);
        world.domain.stop_tracking();
        assert_eq!(world.domain.set_track_mode(TrackMode::DBits), Err(DomainError::NotTracking));
        world.write(1);
        world.domain.start_tracking().expect("nothing is in flight");
        assert_eq!(world.harvest(0..all), []);
        world.write(1);
        assert_eq!((world.harvest(0..all), world.domain.track_stats().faults), (vec![1], 0));
    }
}

#[test]
fn mapped_writable_is_what_a_device_could_write() {
    for format in TableFormat::ALL {
        let size = format.leaf_sizes()[1] / PAGE_SIZE;
        let world = World::of(format);
        world.map(1..2 * size, 1);
        let read_only = pages(2 * size..2 * size + 2);
        world.domain.map(read_only, Oa(0), Perm::READ).expect("free");
        world.domain.map(pages(2 * size + 2..2 * size + 3), Oa(0), Perm::WRITE).expect("free");
        let bitmap = DirtyBitmap::new(pages(0..4 * size)).expect("aligned");
        let expected: Vec<u64> = (1..2 * size).chain([2 * size + 2]).collect();
        for _ in 0..2 {
            let count = world.domain.mapped_writable(pages(0..4 * size), &bitmap);
            assert_eq!(count, Ok(PageCount(2 * size)), "{format:?}");
            assert_eq!(dirty_pages(&bitmap.take()), expected);
            // Protected pages are writable still.
            if !world.domain.is_tracking() {
                world.domain.start_tracking_with(FAULTS).expect("nothing is in flight");
            }
        }
        let part = world.domain.mapped_writable(pages(2..5), &bitmap);
        assert_eq!((part, dirty_pages(&bitmap)), (Ok(PageCount(3)), vec![2, 3, 4]));
        let small = DirtyBitmap::new(pages(0..2)).expect("aligned");
        let refused = world.domain.mapped_writable(pages(0..3), &small);
        assert!(matches!(refused, Err(DomainError::Bitmap(_))), "{refused:?}");
        assert!(small.is_clean());
    }
}

#[test]
fn the_width_and_the_output_of_each_format_are_kept() {
    for format in TableFormat::ALL {
        let width = 1u64 << format.width();
        let world = World::of(format);
        let last = Gpa(width - PAGE_SIZE)..Gpa(width);
        world.domain.map(last.clone(), Oa(0), Perm::READ_WRITE).expect("inside");
        world.domain.start_tracking().expect("nothing is in flight");
        world.write(last.start.page());
        let bitmap = DirtyBitmap::new(last.clone()).expect("aligned");
        world.domain.read_and_clear_dirty(Gpa(0)..last.end, &bitmap).expect_err("not covered");
        world.domain.read_and_clear_dirty(last.clone(), &bitmap).expect("drained");
        assert_eq!(bitmap.count(), PageCount(1), "{format:?}");
        let beyond = world.device.write(Iova(width), &[1]).expect_err("outside").fault;
        assert_eq!(beyond.reason, FaultReason::AddressWidth);
        let wide = DomainConfig { address_bits: format.width() + 1, ..config(format) };
        let error = Domain::new(Arc::new(Nothing(PAGE_SIZE)), wide).err();
        let max = format.width();
        assert_eq!(error, Some(DomainError::Width { bits: max + 1, max }));
    }
}
