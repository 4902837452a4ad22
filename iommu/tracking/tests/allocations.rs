//! A harvest allocates nothing once its address space is warm. In a binary of its own, for the
//! allocator that counts.
#![expect(unsafe_code, reason = "a global allocator cannot be written without")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;

use common::{Bench, TestDevice, pages};

struct Counting;

thread_local! {
    /// Allocations by this thread: the test harness has others.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it is; a counter of this thread, which needs
// no allocation and has no destructor, is all that is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's own promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(act: impl FnOnce()) -> u64 {
    let before = COUNT.with(Cell::get);
    act();
    COUNT.with(Cell::get) - before
}

/// Allocations of ten harvests with something to report, after two to warm up.
fn of_harvests(bench: &Bench, device: &TestDevice) -> u64 {
    let into = bench.bitmap();
    let mut count = 0;
    for round in 0..12 {
        device.write_page(round * 3);
        device.write_page(150 + round);
        let harvest = || {
            for range in [pages(0..77), pages(77..200)] {
                bench.tracked.harvest(range, &into).expect("harvested");
            }
        };
        let now = allocations(harvest);
        count += if round < 2 { 0 } else { now };
        assert!(into.test(common::page(round * 3)));
    }
    count
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 1);
    assert_eq!(allocations(|| drop(black_box(vec![0u8; 100]))), 1);
}

#[test]
fn a_harvest_allocates_nothing() {
    for choice in ["iommu", "fault", "device", "all"] {
        for size in ["4K", "64K"] {
            let bench = Bench::new(200);
            let device = bench.logging(1);
            let choice = format!("provider={choice},page-size={size}");
            bench.tracked.start(&bench.plan(&choice, &[])).expect("started");
            assert_eq!(of_harvests(&bench, &device), 0, "{choice}");
        }
    }
    for choice in ["provider=pinned", "provider=pinned,page-size=16K"] {
        let bench = Bench::new(200);
        let device = bench.pinning(1);
        bench.tracked.start(&bench.plan(choice, &[])).expect("started");
        assert_eq!(of_harvests(&bench, &device), 0, "{choice}");
    }
}
