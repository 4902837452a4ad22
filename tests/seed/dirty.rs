//! Rows 7 to 15: what may be reported as dirty.

use drogher_iommu_types::{Gpa, PAGE_SIZE, PageCount};
use drogher_tracking::{
    Class, Costs, Dma, Explanation, Inputs, PinAccess, Policy, Quirks, RefusalCode, SpaceCaps,
    planner,
};

use crate::common::{Bench, TestDevice, dirty_pages, pages};
use crate::moving::move_under_load;

/// What the planner says about the devices of a bench under a policy.
fn explain(bench: &Bench, global: &str) -> Explanation {
    let policy = Policy { global: global.parse().expect("a choice"), devices: Vec::new() };
    let space = SpaceCaps::of("s", "test", bench.space.as_ref());
    let devices = bench.caps.lock().expect("no panic").clone();
    let (quirks, costs) = (Quirks::default(), Costs::default());
    planner::plan(&[(space, devices)], Inputs { policy: &policy, quirks: &quirks, costs: &costs })
        .into()
}

#[test]
fn seed_07_by_default_everything_mapped_is_dirty_for_ever() {
    let bench = Bench::unmapped(64);
    bench
        .space
        .domain
        .map(pages(8..40), drogher_iommu::Oa(8 * PAGE_SIZE), drogher_iommu::Perm::READ_WRITE)
        .expect("free");
    bench
        .space
        .domain
        .map(pages(50..52), drogher_iommu::Oa(50 * PAGE_SIZE), drogher_iommu::Perm::READ)
        .expect("free");
    let _device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    for _ in 0..3 {
        assert_eq!(bench.harvest(), (8..40).collect::<Vec<_>>(), "writable pages, and no others");
    }
    let words = explain(&bench, "provider=all").to_string();
    assert!(words.contains("degraded"), "{words}");
}

#[test]
fn seed_08_one_ignorant_device_makes_the_least_common_denominator() {
    let bench = Bench::new(64);
    let pinning = bench.pinning(1);
    bench.tracked.start(&bench.plan("provider=pinned", &[])).expect("started");
    pinning.write_page(5);
    assert_eq!(bench.harvest(), [5], "the pinned set alone");
    let ignorant = bench.plain(2);
    assert_eq!(bench.tracked.status().n_unlimited, 1);
    assert_eq!(bench.harvest(), bench.everything(), "widened at once");
    bench.tracked.detach(ignorant.rid()).expect("attached");
    assert_eq!(bench.tracked.status().class, Class::Pinned);
    assert_eq!(bench.harvest(), bench.everything(), "what it wrote last");
    pinning.write_page(6);
    assert_eq!(bench.harvest(), [6], "and narrow again");
}

/// A write, then a narrowing: the write is in the next harvest.
fn narrow(by: &str, narrow: impl FnOnce(&Bench, &TestDevice)) {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    bench.harvest();
    device.write_page(9);
    narrow(&bench, &device);
    assert!(bench.harvest().contains(&9), "{by}: the write before it is lost");
    assert_eq!(bench.tracked.status().n_unlimited, 0, "{by}: it has narrowed");
    assert_eq!(bench.harvest(), [0u64; 0], "{by}: and reports nothing more");
}

#[test]
fn seed_09_the_denominator_is_evaluated_at_the_time_and_narrowing_loses_nothing() {
    narrow("a tracker is switched on", |bench, _| {
        bench.tracked.switch(&bench.plan("provider=iommu", &[])).expect("switched");
    });
    narrow("NDMA", |bench, device| bench.tracked.ndma_entered(device.rid()).expect("it has NDMA"));
    narrow("detach", |bench, device| bench.tracked.detach(device.rid()).expect("attached"));
}

#[test]
fn seed_10_it_always_works_and_says_how_well() {
    for (choice, class) in [("provider=iommu", Class::Exact), ("provider=all", Class::AllMapped)] {
        let bench = Bench::new(64);
        let _device = bench.plain(1);
        let started = bench.tracked.start(&bench.plan(choice, &[])).expect("always");
        assert_eq!(bench.tracked.status().class, class);
        // Everything mapped needs no tracker; whatever runs has a class.
        assert!(started.iter().all(|tracker| tracker.class <= class), "{choice}");
    }
    let bench = Bench::new(64);
    let _device = bench.pinning(1);
    let started = bench.tracked.start(&bench.plan("provider=pinned", &[])).expect("always");
    assert_eq!(started[0].class, Class::Pinned);
    // Who needs more can say so, and is told before anything starts.
    for worse in ["provider=all,require=exact", "provider=pinned,require=exact"] {
        let bench = Bench::new(64);
        let _device = bench.pinning(1);
        let explanation = explain(&bench, worse);
        assert!(!explanation.possible, "{worse}");
        assert_eq!(explanation.refusals[0].code, RefusalCode::NotExact, "{worse}");
        assert!(!bench.space.domain.is_tracking());
    }
}

#[test]
fn seed_11_a_device_past_the_iommu_is_refused_by_name() {
    let bench = Bench::new(64);
    let _tracked = bench.plain(1);
    let mut raw = bench.make(2);
    raw.caps.dma = Dma::Raw;
    bench.attach(raw);
    let explanation = explain(&bench, "");
    assert!(!explanation.possible);
    let refusal = &explanation.refusals[0];
    assert_eq!(refusal.code, RefusalCode::RawDevice);
    assert!(refusal.device.as_ref().is_some_and(|name| name.contains("dev2")), "{refusal}");
    assert!(!refusal.hint.is_empty());
    assert!(!bench.space.domain.is_tracking(), "nothing has started");
}

#[test]
fn seed_12_what_is_pinned_is_dirty_and_what_was_unpinned_once_more() {
    let bench = Bench::new(64);
    let device = bench.pinning(1);
    bench.tracked.start(&bench.plan("provider=pinned", &[])).expect("started");
    let board = device.pins.as_ref().expect("it pins");
    board.pin(pages(4..6), PinAccess::Write).expect("inside");
    assert_eq!(bench.harvest(), [4, 5]);
    assert_eq!(bench.harvest(), [4, 5], "for as long as it is pinned");
    board.unpin(pages(4..6), PinAccess::Write).expect("pinned");
    assert_eq!(bench.harvest(), [4, 5], "once more");
    assert_eq!(bench.harvest(), [0u64; 0]);
    // Pinned and unpinned between two harvests.
    device.write_page(20);
    assert_eq!(bench.harvest(), [20]);
    assert_eq!(bench.harvest(), [0u64; 0]);
}

#[test]
fn seed_13_marking_once_reports_once() {
    let bench = Bench::new(64);
    let device = bench.pinning(1);
    bench.tracked.start(&bench.plan("provider=pinned", &[])).expect("started");
    let board = device.pins.as_ref().expect("it pins");
    board.mark_dirty(Gpa(7 * PAGE_SIZE + 5)..Gpa(7 * PAGE_SIZE + 6)).expect("inside");
    assert_eq!(bench.harvest(), [7]);
    assert_eq!(bench.harvest(), [0u64; 0]);
}

#[test]
fn seed_14_pages_pinned_for_reading_are_not_dirty() {
    let bench = Bench::new(512);
    let device = bench.pinning(1);
    bench.tracked.start(&bench.plan("provider=pinned", &[])).expect("started");
    let board = device.pins.as_ref().expect("it pins");
    // A device that only transmits.
    let mut sent = [0; 64];
    for buffer in 0..400 {
        board.pin(pages(buffer..buffer + 2), PinAccess::Read).expect("inside");
        bench.memory.read(drogher_iommu::Oa(buffer * PAGE_SIZE), &mut sent).expect("inside");
        if buffer % 2 == 0 {
            board.unpin(pages(buffer..buffer + 2), PinAccess::Read).expect("pinned");
        }
    }
    assert_eq!(bench.harvest(), [0u64; 0]);
}

#[test]
fn seed_15_a_device_can_be_enlightened_without_one_pinned_page() {
    let bench = Bench::new(64);
    let device = bench.pinning(1);
    // Before tracking starts nothing depends on what it has pinned.
    device.write_page(3);
    bench.tracked.start(&bench.plan("", &[])).expect("started");
    let into = bench.bitmap();
    let plan = bench.plan("provider=pinned", &[]);
    bench.tracked.switch(&plan).expect("switched");
    bench.harvest();
    let harvest = bench.tracked.harvest(into.range(), &into).expect("harvested");
    assert_eq!(
        (harvest.class, into.count()),
        (Class::Pinned, PageCount(0)),
        "enlightened, and empty"
    );
    device.write_page(4);
    bench.tracked.harvest(into.range(), &into).expect("harvested");
    assert_eq!(dirty_pages(&into), [4]);
}

#[test]
fn seed_07_everything_mapped_converges_by_the_stop_alone() {
    let bench = Bench::new(256);
    let device = bench.plain(1);
    let sent = move_under_load(&bench, &[&device], &bench.plan("provider=all", &[]));
    assert_eq!(sent, 6 * 256, "every page in each of five rounds and at the end");
}
