use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use drogher_iommu_types::{DirtyBitmap, Gpa, PAGE_SIZE, PageCount};

use crate::pins::{MAX_PINNED_RANGES, PinAccess, PinBoard, PinError, PinStats};

fn pages(start: u64, end: u64) -> Range<Gpa> {
    Gpa(start * PAGE_SIZE)..Gpa(end * PAGE_SIZE)
}

fn recording(end: u64) -> PinBoard {
    let board = PinBoard::new(pages(0, end));
    board.start_recording().expect("small");
    board
}

fn harvest(board: &PinBoard) -> Vec<u64> {
    let into = DirtyBitmap::new(pages(0, 100)).expect("aligned");
    board.harvest(&pages(0, 100), &into).expect("covered");
    into.runs().flat_map(|run| run.start.page()..run.end.page()).collect()
}

#[test]
fn a_write_pin_is_reported_while_it_lasts_and_once_more() {
    let board = recording(100);
    board.pin(pages(3, 5), PinAccess::Write).expect("inside");
    assert_eq!(harvest(&board), [3, 4]);
    assert_eq!(harvest(&board), [3, 4], "for as long as it is pinned");
    board.unpin(pages(3, 5), PinAccess::Write).expect("pinned");
    assert_eq!(harvest(&board), [3, 4], "once more");
    assert_eq!(harvest(&board), [0u64; 0]);
}

#[test]
fn pin_and_unpin_between_two_harvests_is_reported_once() {
    let board = recording(100);
    board.pin(pages(9, 10), PinAccess::Write).expect("inside");
    board.unpin(pages(9, 10), PinAccess::Write).expect("pinned");
    assert_eq!(harvest(&board), [9]);
    assert_eq!(harvest(&board), [0u64; 0]);
}

#[test]
fn a_read_pin_contributes_nothing() {
    let board = recording(100);
    board.pin(pages(0, 50), PinAccess::Read).expect("inside");
    assert_eq!(harvest(&board), [0u64; 0]);
    board.unpin(pages(0, 50), PinAccess::Read).expect("pinned");
    assert_eq!(harvest(&board), [0u64; 0]);
}

#[test]
fn one_mark_is_one_report() {
    let board = recording(100);
    board.mark_dirty(Gpa(7 * PAGE_SIZE + 4095)..Gpa(8 * PAGE_SIZE + 1)).expect("inside");
    assert_eq!(harvest(&board), [7, 8]);
    assert_eq!(harvest(&board), [0u64; 0]);
}

#[test]
fn pins_are_counted_by_range_and_access() {
    let board = recording(100);
    for _ in 0..2 {
        board.pin(pages(1, 3), PinAccess::Write).expect("inside");
    }
    board.pin(pages(2, 4), PinAccess::Write).expect("may overlap");
    board.pin(pages(1, 3), PinAccess::Read).expect("inside");
    let write_pages = PageCount(2 + 2);
    assert_eq!(board.stats(), PinStats { pins: 4, write_pins: 3, write_pages, ranges: 3 });
    board.unpin(pages(1, 3), PinAccess::Write).expect("pinned");
    harvest(&board);
    assert_eq!(harvest(&board), [1, 2, 3], "the second pin lasts");
    board.unpin(pages(1, 3), PinAccess::Write).expect("pinned");
    harvest(&board);
    assert_eq!(harvest(&board), [2, 3], "the other range lasts");
    let again = board.unpin(pages(1, 3), PinAccess::Write);
    let (start, end) = (Gpa(PAGE_SIZE), Gpa(3 * PAGE_SIZE));
    assert_eq!(again, Err(PinError::NotPinned { start, end, access: PinAccess::Write }));
    assert!(board.unpin(pages(2, 3), PinAccess::Write).is_err(), "a part of a pin");
}

#[test]
fn ranges_that_cannot_be_pinned() {
    let board = recording(100);
    for range in [pages(99, 101), pages(200, 300), Gpa(0)..Gpa(u64::MAX), pages(100, 101)] {
        assert!(matches!(board.pin(range, PinAccess::Read), Err(PinError::Outside { .. })));
    }
    for range in [pages(3, 3), pages(5, 4), Gpa(u64::MAX)..Gpa(0)] {
        assert!(matches!(board.pin(range.clone(), PinAccess::Write), Err(PinError::Empty { .. })));
        assert!(matches!(board.mark_dirty(range), Err(PinError::Empty { .. })));
    }
    board.pin(pages(99, 100), PinAccess::Write).expect("the last page");
    assert_eq!(harvest(&board), [99]);
}

#[test]
fn a_device_cannot_pin_without_end() {
    let end = 2 * MAX_PINNED_RANGES as u64;
    let board = PinBoard::new(pages(0, end));
    for number in 0..MAX_PINNED_RANGES as u64 {
        board.pin(pages(number, number + 1), PinAccess::Write).expect("room");
    }
    let error = board.pin(pages(end - 1, end), PinAccess::Write);
    assert_eq!(error, Err(PinError::TooMany { max: MAX_PINNED_RANGES }));
    board.pin(pages(0, 1), PinAccess::Write).expect("one that is there already");
}

#[test]
fn only_the_range_asked_for_is_taken() {
    let board = recording(100);
    board.pin(pages(0, 100), PinAccess::Write).expect("inside");
    board.unpin(pages(0, 100), PinAccess::Write).expect("pinned");
    let into = DirtyBitmap::new(pages(0, 100)).expect("aligned");
    let stats = board.harvest(&pages(10, 70), &into).expect("covered");
    assert_eq!((stats.0, into.count().0), (60, 60));
    assert_eq!(harvest(&board), (0..10).chain(70..100).collect::<Vec<_>>());
}

#[test]
fn nothing_of_before_the_start_is_reported_but_what_is_still_pinned() {
    let board = PinBoard::new(pages(0, 100));
    board.pin(pages(1, 2), PinAccess::Write).expect("inside");
    board.pin(pages(5, 6), PinAccess::Write).expect("inside");
    board.unpin(pages(1, 2), PinAccess::Write).expect("pinned");
    board.start_recording().expect("small");
    assert_eq!(harvest(&board), [5]);
    board.unpin(pages(5, 6), PinAccess::Write).expect("pinned");
    board.stop_recording();
    board.start_recording().expect("small");
    assert_eq!(harvest(&board), [0u64; 0]);
}

#[test]
fn threads_that_pin_and_unpin_lose_no_page() {
    let board = recording(100);
    let (end, all) = (AtomicBool::new(false), DirtyBitmap::new(pages(0, 100)).expect("aligned"));
    std::thread::scope(|scope| {
        let pinners: Vec<_> = (0..3u64)
            .map(|thread| {
                let board = &board;
                scope.spawn(move || {
                    for step in 0..20_000u64 {
                        let first = (step * 7 + thread * 31) % 98;
                        board.pin(pages(first, first + 3), PinAccess::Write).expect("inside");
                        board.unpin(pages(first, first + 3), PinAccess::Write).expect("pinned");
                    }
                })
            })
            .collect();
        let harvester = scope.spawn(|| {
            while !end.load(Ordering::Relaxed) {
                board.harvest(&pages(0, 100), &all).expect("covered");
            }
        });
        pinners.into_iter().for_each(|pinner| pinner.join().expect("no panic"));
        end.store(true, Ordering::Relaxed);
        harvester.join().expect("no panic");
    });
    board.harvest(&pages(0, 100), &all).expect("covered");
    assert_eq!(all.count().0, 100);
    assert_eq!(board.stats(), PinStats::default());
}
