//! What a harvest reports, and when it returns. Each step that guards data has a test here that
//! fails without it.

mod common;

use std::thread;
use std::time::Duration;

use common::{Bench, Gate, dirty_pages, page, pages, wait_until};
use drogher_iommu::{
    BitmapError, DirtyBitmap, DomainConfig, DomainError, DrainError, FaultReason, Iova, Oa,
    PAGE_SIZE, PageCount, Perm, Rid,
};

#[test]
fn a_dma_write_is_reported_once() {
    let bench = Bench::tracked(600);
    bench.write(3, &[1]);
    bench.write(511, &[1; 4097]);
    assert_eq!(bench.harvest(), [3, 511, 512]);
    assert_eq!(bench.harvest(), []);
}

#[test]
fn every_kind_of_write_is_reported_and_no_read_is() {
    let bench = Bench::tracked(16);
    let at = |number: u64| Iova(number * PAGE_SIZE);
    bench.device.fill(at(1), 7, 10).expect("mapped");
    bench.device.fetch_add_u32(at(2), 1).expect("mapped");
    bench.device.fetch_add_u64(at(3), 1).expect("mapped");
    bench.device.compare_swap_u32(at(4), 0, 1).expect("mapped");
    bench.device.compare_swap_u64(at(5), 9, 1).expect("mapped, and does not compare equal");
    bench.device.read(at(6), &mut [0; 5000]).expect("mapped");
    bench.device.write(at(8), &[]).expect("nothing to write");
    assert_eq!(bench.harvest(), [1, 2, 3, 4, 5]);
}

#[test]
fn a_second_write_after_a_harvest_is_reported_again() {
    let bench = Bench::tracked(4);
    // By the same thread: its IOTLB holds the page, with D known to be set.
    for round in 0..3 {
        bench.write(2, &[round]);
        assert_eq!(bench.harvest(), [2], "round {round}");
    }
}

#[test]
fn a_harvest_of_one_range_makes_no_other_write_invisible() {
    let bench = Bench::tracked(1024);
    bench.write(5, &[1]);
    bench.write(700, &[1]);
    let part = bench.domain.read_and_clear_dirty(pages(0..6), &bench.bitmap).expect("drained");
    assert_eq!(part.pages, PageCount(1));
    bench.write(5, &[2]);
    bench.write(700, &[2]);
    assert_eq!(dirty_pages(&bench.bitmap.take()), [5]);
    assert_eq!(bench.harvest(), [5, 700]);
}

#[test]
fn a_harvest_waits_for_a_write_in_flight() {
    let memory = Gate::new(4);
    let config = DomainConfig { drain_deadline: common::PATIENCE, ..DomainConfig::default() };
    let bench = Bench::over(memory.clone(), config);
    bench.domain.start_tracking().expect("nothing is in flight");
    thread::scope(|scope| {
        let closed = memory.close();
        scope.spawn(|| bench.write(1, b"late"));
        memory.wait_for_write();
        let harvest = scope.spawn(|| {
            let reported = bench.harvest();
            let mut copy = [0; 4];
            bench.domain.memory().read(Oa(PAGE_SIZE), &mut copy).expect("in bounds");
            (reported, copy)
        });
        // Either it waits, which it says, or it has returned with the write still outside.
        wait_until("the harvest to end or to wait", || {
            harvest.is_finished() || bench.domain.drain_sleeps() > 0
        });
        drop(closed);
        let (reported, copy) = harvest.join().expect("no panic");
        assert_eq!(reported, [1]);
        assert_eq!(&copy, b"late", "the page was copied before the write had ended");
    });
}

#[test]
fn an_unmapped_dirty_page_is_reported() {
    let bench = Bench::tracked(1100);
    bench.write(9, &[1]);
    bench.write(1030, &[1]);
    assert_eq!(bench.domain.unmap(pages(0..1100)), Ok(PageCount(1100)));
    let stats = bench.domain.read_and_clear_dirty(pages(0..1100), &bench.bitmap).expect("drained");
    assert_eq!((stats.pages, stats.unmapped), (PageCount(2), PageCount(2)));
    assert_eq!(dirty_pages(&bench.bitmap), [9, 1030]);
    assert_eq!(bench.harvest(), [9, 1030], "the caller's bits stay");
    assert_eq!(bench.harvest(), []);
}

#[test]
fn a_page_unmapped_and_mapped_again_is_reported_once() {
    let bench = Bench::tracked(8);
    bench.write(3, &[1]);
    bench.domain.unmap(pages(3..4)).expect("drained");
    bench.domain.map(pages(3..4), Oa(3 * PAGE_SIZE), Perm::READ_WRITE).expect("free");
    bench.write(3, &[2]);
    assert_eq!(bench.harvest(), [3]);
    assert_eq!(bench.harvest(), []);
}

#[test]
fn the_log_gives_out_only_the_range_asked_for() {
    let bench = Bench::tracked(200);
    for number in [10, 63, 64, 100] {
        bench.write(number, &[1]);
    }
    bench.domain.unmap(pages(0..200)).expect("drained");
    bench.domain.read_and_clear_dirty(pages(11..64), &bench.bitmap).expect("drained");
    assert_eq!(dirty_pages(&bench.bitmap.take()), [63]);
    assert_eq!(bench.harvest(), [10, 64, 100]);
}

#[test]
fn bits_set_before_survive_a_harvest() {
    let bench = Bench::tracked(8);
    bench.bitmap.set(page(6)).expect("inside");
    bench.write(2, &[1]);
    let stats = bench.domain.read_and_clear_dirty(pages(0..8), &bench.bitmap).expect("drained");
    assert_eq!((stats.pages, stats.fresh), (PageCount(1), PageCount(1)));
    assert_eq!(dirty_pages(&bench.bitmap), [2, 6]);
    bench.write(2, &[1]);
    let stats = bench.domain.read_and_clear_dirty(pages(0..8), &bench.bitmap).expect("drained");
    assert_eq!((stats.pages, stats.fresh), (PageCount(1), PageCount(0)));
}

#[test]
fn a_bitmap_that_cannot_hold_the_range_is_refused_before_anything_is_cleared() {
    let bench = Bench::tracked(8);
    bench.write(7, &[1]);
    let small = DirtyBitmap::new(pages(0..7)).expect("aligned");
    assert_eq!(
        bench.domain.read_and_clear_dirty(pages(0..8), &small),
        Err(DomainError::Bitmap(BitmapError::Outside {
            start: page(0),
            end: page(8),
            covered_start: page(0),
            covered_end: page(7),
        }))
    );
    assert_eq!(bench.harvest(), [7]);
}

#[test]
fn nothing_is_recorded_unless_tracking_is_on() {
    let bench = Bench::new(8);
    bench.write(1, &[1]);
    assert_eq!(
        bench.domain.read_and_clear_dirty(pages(0..8), &bench.bitmap),
        Err(DomainError::NotTracking)
    );
    bench.domain.start_tracking().expect("nothing is in flight");
    assert_eq!(bench.domain.start_tracking(), Err(DomainError::AlreadyTracking));
    assert_eq!(bench.harvest(), []);
    // The IOTLB knew the page as writable without D.
    bench.write(1, &[2]);
    bench.write(2, &[2]);
    bench.domain.stop_tracking();
    assert!(!bench.domain.is_tracking());
    bench.domain.start_tracking().expect("nothing is in flight");
    assert_eq!(bench.harvest(), [], "a new migration copies everything anyway");
}

#[test]
fn a_second_migration_after_a_failed_one_misses_nothing() {
    let bench = Bench::tracked(8);
    bench.write(1, &[1]);
    assert_eq!(bench.harvest(), [1]);
    bench.domain.stop_tracking();
    bench.domain.start_tracking().expect("nothing is in flight");
    bench.write(1, &[2]);
    assert_eq!(bench.harvest(), [1]);
}

#[test]
fn mark_dirty_marks_what_is_mapped() {
    let bench = Bench::tracked(600);
    bench.domain.unmap(pages(2..3)).expect("drained");
    bench.domain.mark_dirty(pages(1..4)).expect("a good range");
    bench.domain.mark_dirty(pages(511..513)).expect("a good range");
    assert_eq!(bench.harvest(), [1, 3, 511, 512]);
}

#[test]
fn an_access_past_the_deadline_is_an_error_that_names_the_device() {
    let memory = Gate::new(4);
    let config =
        DomainConfig { drain_deadline: Duration::from_millis(5), ..DomainConfig::default() };
    let bench = Bench::over(memory.clone(), config);
    bench.domain.start_tracking().expect("nothing is in flight");
    let late = bench.domain.attach(Rid(0x1234)).expect("a new id");
    thread::scope(|scope| {
        let closed = memory.close();
        scope.spawn(|| late.write(Iova(PAGE_SIZE), b"late").expect("mapped"));
        memory.wait_for_write();
        let names_it = |error: &DrainError| {
            let DrainError::Deadline { rid, .. } = error else { return false };
            *rid == Rid(0x1234) && error.to_string().starts_with("Requester 12:06.4 ")
        };
        let harvest = bench.domain.read_and_clear_dirty(pages(0..4), &bench.bitmap);
        assert!(matches!(&harvest, Err(DomainError::Drain(e)) if names_it(e)), "{harvest:?}");
        assert_eq!(dirty_pages(&bench.bitmap.take()), [1], "what was cleared is not lost");
        // Nothing is dirty now, yet the write is still on its way: no harvest may succeed.
        let harvest = bench.domain.read_and_clear_dirty(pages(2..3), &bench.bitmap);
        assert!(matches!(&harvest, Err(DomainError::Drain(e)) if names_it(e)), "{harvest:?}");
        let revoke = late.revoke();
        assert!(matches!(&revoke, Err(e) if names_it(e)), "{revoke:?}");
        let unmap = bench.domain.unmap(pages(3..4));
        assert!(matches!(&unmap, Err(DomainError::Drain(e)) if names_it(e)), "{unmap:?}");
        drop(closed);
    });
    bench.domain.read_and_clear_dirty(pages(0..4), &bench.bitmap).expect("it has ended");
    let refused = late.write(Iova(0), &[1]).expect_err("revoked all the same");
    assert_eq!(refused.fault.reason, FaultReason::Revoked);
}

#[test]
fn revoke_waits_for_a_write_in_flight_and_nothing_comes_after() {
    let memory = Gate::new(4);
    let config = DomainConfig { drain_deadline: common::PATIENCE, ..DomainConfig::default() };
    let bench = Bench::over(memory.clone(), config);
    thread::scope(|scope| {
        let closed = memory.close();
        scope.spawn(|| bench.write(0, b"x"));
        memory.wait_for_write();
        let revoke = scope.spawn(|| bench.device.revoke());
        wait_until("revoke to end or to wait", || {
            revoke.is_finished() || bench.domain.drain_sleeps() > 0
        });
        assert!(!revoke.is_finished(), "the write is still in flight");
        drop(closed);
        assert_eq!(revoke.join().expect("no panic"), Ok(()));
    });
    let accesses = bench.device.accesses();
    assert!(bench.device.write(Iova(0), &[1]).is_err());
    assert!(bench.device.read(Iova(0), &mut [1]).is_err());
    assert_eq!(bench.device.accesses(), accesses);
    bench.device.restore();
    bench.write(0, &[1]);
    assert_eq!(bench.device.accesses(), accesses + 1);
}

#[test]
fn an_empty_harvest_does_not_disturb_the_iotlb() {
    let bench = Bench::tracked(8);
    bench.write(1, &[1]);
    bench.harvest();
    bench.write(1, &[1]);
    let misses = bench.device.stats().iotlb_misses;
    let generation = bench.domain.stats().generation;
    bench.domain.read_and_clear_dirty(pages(2..8), &bench.bitmap).expect("drained");
    bench.write(1, &[1]);
    assert_eq!(bench.device.stats().iotlb_misses, misses);
    assert_eq!(bench.domain.stats().generation, generation);
    assert_eq!(bench.harvest(), [1]);
}
