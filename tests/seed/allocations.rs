//! What a harvest and a start allocate: a global allocator that counts, by thread.
#![expect(unsafe_code, reason = "a global allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::common::Bench;

struct Counting;

thread_local! {
    /// Bytes ever allocated by this thread: tests run beside each other.
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    BYTES.with(|all| all.set(all.get() + bytes as u64));
}

// SAFETY: every call goes to the system's allocator as it is; a counter of this thread, which needs
// no allocation and has no destructor, is all that is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's own promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's own promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: the caller's own promise.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn bytes_of(act: impl FnOnce()) -> u64 {
    let before = BYTES.with(Cell::get);
    act();
    BYTES.with(Cell::get) - before
}

/// For each provider: ten harvests with something to report, after two to warm up.
pub fn harvests_allocate_nothing() {
    assert!(bytes_of(|| drop(std::hint::black_box(vec![0u8; 100]))) >= 100, "the counter counts");
    for choice in ["iommu", "fault", "device", "all", "pinned"] {
        let bench = Bench::new(256);
        let device = if choice == "pinned" { bench.pinning(1) } else { bench.logging(1) };
        bench.tracked.start(&bench.plan(&format!("provider={choice}"), &[])).expect("started");
        let into = bench.bitmap();
        for round in 0..12 {
            device.write_page(round * 3);
            let bytes = bytes_of(|| {
                bench.tracked.harvest(into.range(), &into).expect("harvested");
            });
            assert!(into.test(crate::common::page(round * 3)), "{choice}: the write is reported");
            assert!(round < 2 || bytes == 0, "{choice}: harvest {round} allocates {bytes} bytes");
        }
    }
}

/// Starting with eight devices behind one IOMMU, or that pin, takes no bitmap more than with one.
pub fn one_device_more_costs_no_bitmap() {
    const PAGES: u64 = 1 << 16;
    let started_with = |devices: u16| {
        let bench = Bench::new(PAGES);
        for number in 1..=devices {
            bench.plain(number);
        }
        let plan = bench.plan("provider=iommu", &[]);
        let all = bench.plan("provider=all", &[]);
        bytes_of(|| {
            bench.tracked.start(&plan).expect("started");
            bench.tracked.switch(&all).expect("switched");
        })
    };
    let (one, eight) = (started_with(1), started_with(8));
    let bitmap = PAGES / 8;
    assert!(one >= bitmap, "there is a bitmap at all: {one} bytes");
    assert!(eight - one < bitmap, "{one} bytes with one device, {eight} with eight");
}
