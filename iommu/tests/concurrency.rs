//! What waits for what. An access is held in flight in one range; operations on others go on,
//! except those that have to know that no access uses an old translation any more.

mod common;

use std::thread;
use std::time::Duration;

use common::{Bench, Gate, PATIENCE, page, pages, wait_until};
use drogher_iommu::{
    DirtyBitmap, DomainConfig, Gpa, HarvestStats, Iova, Oa, PAGE_SIZE, PageCount, Perm, Rid,
};

const GIB: u64 = 1 << 30;

/// A domain whose memory can be held up, with page 0 of the first GiB mapped.
fn bench(memory: std::sync::Arc<Gate>) -> Bench {
    let config = DomainConfig { drain_deadline: PATIENCE, ..DomainConfig::default() };
    Bench::over(memory, config)
}

/// The first four pages of a GiB.
fn part(number: u64) -> std::ops::Range<Gpa> {
    Gpa(number * GIB)..Gpa(number * GIB + 4 * PAGE_SIZE)
}

#[test]
fn what_needs_no_drain_does_not_wait_for_an_access_in_flight() {
    let memory = Gate::new(4);
    let bench = bench(memory.clone());
    bench.domain.start_tracking().expect("nothing is in flight");
    thread::scope(|scope| {
        let closed = memory.close();
        scope.spawn(|| bench.write(1, b"held"));
        memory.wait_for_write();
        // All of this on the thread of the test: it would hang if it waited.
        bench.domain.map(part(1), Oa(0), Perm::READ_WRITE).expect("free");
        assert!(bench.domain.resolve(part(1).start).is_some());
        bench.domain.mark_dirty(part(2)).expect("nothing is mapped there");
        let bitmap = DirtyBitmap::new(part(1)).expect("aligned");
        let clean = bench.domain.read_and_clear_dirty(part(1), &bitmap);
        assert_eq!(clean.map(|found| found.pages), Ok(PageCount(0)));
        assert_eq!(bench.domain.mapped_writable(part(1), &bitmap), Ok(PageCount(4)));
        assert_eq!(bench.domain.unmap(part(2)), Ok(PageCount(0)), "nothing is mapped there");
        bench.domain.split(part(1)).expect("nothing to split");
        bench.device.read(Iova(GIB), &mut [0; 8]).expect("mapped");
        assert_eq!(bench.domain.drain_sleeps(), 0);
        drop(closed);
    });
    assert_eq!(bench.harvest(), [1]);
}

#[test]
fn an_operation_that_waits_in_its_drain_keeps_out_only_its_own_range() {
    let memory = Gate::new(4);
    let bench = bench(memory.clone());
    bench.domain.map(part(1), Oa(0), Perm::READ_WRITE).expect("free");
    bench.domain.map(part(2), Oa(0), Perm::READ_WRITE).expect("free");
    bench.domain.start_tracking().expect("nothing is in flight");
    let other = bench.domain.attach(Rid(16)).expect("new");
    other.fetch_add_u64(Iova(2 * GIB), 1).expect("mapped");
    thread::scope(|scope| {
        let closed = memory.close();
        scope.spawn(|| bench.write(1, b"held"));
        memory.wait_for_write();
        let before = bench.domain.stats().generation;
        // Both have to know that nobody uses what they took: they wait.
        let unmap = scope.spawn(|| bench.domain.unmap(part(1)));
        let harvest = scope.spawn(|| {
            let bitmap = DirtyBitmap::new(part(2)).expect("aligned");
            bench.domain.read_and_clear_dirty(part(2), &bitmap)
        });
        // Each has changed the generation; that is what it does before it waits.
        wait_until("both to wait", || bench.domain.stats().generation >= before + 2);
        // Meanwhile map, DMA and a clean harvest of a third range, and of the first.
        bench.domain.map(part(3), Oa(0), Perm::READ_WRITE).expect("free");
        other.read(Iova(3 * GIB), &mut [0; 8]).expect("mapped");
        let bitmap = DirtyBitmap::new(part(3)).expect("aligned");
        let clean = bench.domain.read_and_clear_dirty(part(3), &bitmap);
        assert_eq!(clean, Ok(HarvestStats::default()));
        bench.domain.map(pages(4..5), Oa(0), Perm::READ).expect("free");
        assert!(!unmap.is_finished() && !harvest.is_finished());
        drop(closed);
        assert_eq!(unmap.join().expect("no panic"), Ok(PageCount(4)));
        let found = harvest.join().expect("no panic").expect("drained");
        assert_eq!(found.pages, PageCount(1));
    });
}

#[test]
fn operations_on_one_range_follow_one_another() {
    let memory = Gate::new(4);
    let bench = bench(memory.clone());
    thread::scope(|scope| {
        let closed = memory.close();
        scope.spawn(|| bench.write(1, b"held"));
        memory.wait_for_write();
        let unmap = scope.spawn(|| bench.domain.unmap(pages(2..3)));
        wait_until("unmap to wait", || unmap.is_finished() || bench.domain.drain_sleeps() > 0);
        let map = scope.spawn(|| bench.domain.map(pages(2..3), Oa(0), Perm::READ));
        // Not a figure to meet: however long this takes, it must not have been let in.
        thread::sleep(Duration::from_millis(20));
        assert!(!map.is_finished(), "the page may still be written through what was there");
        drop(closed);
        map.join().expect("no panic").expect("free by then");
    });
    assert_eq!(bench.domain.resolve(page(2)), Some((Oa(0), Perm::READ)));
}

/// Many threads, each in a GiB of its own, with tables above that they share.
#[test]
fn maps_and_unmaps_of_many_units_do_not_disturb_each_other() {
    let bench = Bench::new(16);
    bench.domain.start_tracking().expect("nothing is in flight");
    thread::scope(|scope| {
        for number in 1..5u64 {
            let bench = &bench;
            scope.spawn(move || {
                // Four GiB of one 512 GiB and then of another: upper tables come and go.
                for round in 0..400u64 {
                    let at = (round % 3) * 512 * GIB + number * GIB;
                    let range = Gpa(at)..Gpa(at + 3 * PAGE_SIZE);
                    let oa = Oa((number + round % 3) * PAGE_SIZE);
                    bench.domain.map(range.clone(), oa, Perm::READ_WRITE).expect("free");
                    bench.device.fetch_add_u64(Iova(at + PAGE_SIZE), 1).expect("mapped");
                    let bitmap = DirtyBitmap::new(range.clone()).expect("aligned");
                    let found = bench.domain.read_and_clear_dirty(range.clone(), &bitmap);
                    assert_eq!(found.expect("drained").pages, PageCount(1));
                    assert!(bitmap.test(Gpa(at + PAGE_SIZE)));
                    let gone = bench.domain.resolve(range.start);
                    assert_eq!(gone, Some((oa, Perm::READ_WRITE)));
                    assert_eq!(bench.domain.unmap(range.clone()), Ok(PageCount(3)));
                    assert_eq!(bench.domain.resolve(range.start), None);
                }
            });
        }
    });
    assert_eq!(bench.domain.stats().tables, 4, "those of the first GiB");
    assert_eq!(bench.harvest(), []);
}
