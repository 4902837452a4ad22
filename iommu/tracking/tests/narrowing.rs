//! Each way of narrowing what is reported: a write, then the narrowing, then a harvest that has it.

mod common;

use std::sync::atomic::Ordering;

use common::{Bench, TestDevice, page, pages};
use drogher_iommu::{Oa, Perm};
use drogher_iommu_types::{Iova, PAGE_SIZE};
use drogher_tracking::{Class, PinAccess, SpaceError};

/// Starts by one plan, writes, goes over to another, writes again: both writes are reported, and
/// nothing is after that.
fn write_switch_write(bench: &Bench, device: &TestDevice, from: &str, to: &str) {
    bench.tracked.start(&bench.plan(from, &[])).expect("started");
    device.write_page(5);
    bench.tracked.switch(&bench.plan(to, &[])).expect("switched");
    device.write_page(40);
    let found = bench.harvest();
    assert!(found.contains(&5), "{from} to {to}: the write before it is missing from {found:?}");
    assert!(found.contains(&40), "{from} to {to}: the write after it is missing from {found:?}");
    device.write_page(9);
    let found = bench.harvest();
    assert!(found.contains(&9), "{from} to {to}: {found:?}");
    bench.tracked.stop().expect("it runs");
}

#[test]
fn a_write_before_a_tracker_is_switched_on_is_reported() {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    assert_eq!(bench.tracked.status().n_unlimited, 1);
    device.write_page(5);
    bench.tracked.switch(&bench.plan("provider=iommu", &[])).expect("switched");
    assert_eq!(bench.tracked.status().n_unlimited, 0);
    assert_eq!(bench.harvest(), bench.everything(), "once more, with page 5 in it");
    assert_eq!(bench.harvest(), [0u64; 0], "and then it is narrow");
}

#[test]
fn every_switch_between_providers_and_page_sizes_keeps_the_writes() {
    let common =
        ["provider=iommu", "provider=iommu,page-size=64K", "provider=fault", "provider=all"];
    let log = ["provider=device", "provider=device,page-size=64K"];
    for from in common.iter().chain(&log) {
        for to in common.iter().chain(&log) {
            let bench = Bench::new(64);
            let device = bench.logging(1);
            write_switch_write(&bench, &device, from, to);
        }
    }
    for (from, to) in [
        ("provider=all", "provider=pinned"),
        ("provider=pinned", "provider=all"),
        ("provider=pinned", "provider=iommu"),
        ("provider=iommu", "provider=pinned,page-size=16K"),
        ("provider=pinned", "provider=pinned,page-size=2M"),
    ] {
        let bench = Bench::new(64);
        let device = bench.pinning(1);
        write_switch_write(&bench, &device, from, to);
    }
}

#[test]
fn exact_to_exact_reports_no_more_than_was_written() {
    for (from, to) in [("provider=iommu", "provider=device"), ("provider=pinned", "provider=iommu")]
    {
        let bench = Bench::new(64);
        let device = if from.ends_with("pinned") { bench.pinning(1) } else { bench.logging(1) };
        bench.tracked.start(&bench.plan(from, &[])).expect("started");
        device.write_page(5);
        bench.tracked.switch(&bench.plan(to, &[])).expect("switched");
        device.write_page(40);
        assert_eq!(bench.harvest(), [5, 40], "{from} to {to}");
    }
}

#[test]
fn a_device_that_enters_ndma_is_reported_widely_once_more() {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    bench.harvest();
    device.write_page(5);
    bench.tracked.ndma_entered(device.rid()).expect("it has NDMA");
    assert_eq!(bench.harvest(), bench.everything());
    assert_eq!(bench.harvest(), [0u64; 0]);
    // Widening: plus one, then DMA.
    bench.tracked.ndma_left(device.rid()).expect("it is in NDMA");
    device.write_page(6);
    assert_eq!(bench.harvest(), bench.everything());
}

#[test]
fn a_device_that_is_detached_is_reported_widely_once_more() {
    let bench = Bench::new(64);
    let (tracked, ignorant) = (bench.plain(1), bench.plain(2));
    bench.tracked.start(&bench.plan("", &[("dev2", "provider=all")])).expect("started");
    assert_eq!(bench.harvest(), bench.everything(), "one ignorant device widens the result");
    ignorant.write_page(5);
    ignorant.requester.revoke().expect("drained");
    bench.tracked.detach(ignorant.rid()).expect("attached");
    assert_eq!(bench.harvest(), bench.everything());
    tracked.write_page(7);
    assert_eq!(bench.harvest(), [7], "removing it narrows the result");
}

#[test]
fn a_detached_device_takes_no_report_of_its_own_with_it() {
    for provider in ["provider=device", "provider=pinned", "provider=iommu"] {
        let bench = Bench::new(64);
        let device = if provider.ends_with("pinned") { bench.pinning(1) } else { bench.logging(1) };
        bench.tracked.start(&bench.plan(provider, &[])).expect("started");
        device.write_page(5);
        device.requester.revoke().expect("drained");
        bench.tracked.detach(device.rid()).expect("attached");
        assert_eq!(bench.harvest(), [5], "{provider}");
        assert_eq!(bench.harvest(), [0u64; 0], "{provider}");
    }
}

#[test]
fn a_device_that_comes_while_tracking_is_on_widens_or_is_seen_by_the_recorder() {
    let bench = Bench::new(64);
    let first = bench.logging(1);
    bench.tracked.start(&bench.plan("provider=device", &[])).expect("started");
    let second = bench.plain(2);
    assert_eq!(bench.tracked.status().class, Class::AllMapped);
    second.write_page(5);
    assert_eq!(bench.harvest(), bench.everything());
    bench.tracked.switch(&bench.plan("provider=iommu", &[])).expect("switched");
    let third = bench.plain(3);
    assert_eq!(bench.tracked.status().class, Class::Exact);
    bench.harvest();
    first.write_page(1);
    second.write_page(2);
    third.write_page(3);
    assert_eq!(bench.harvest(), [1, 2, 3]);
}

/// Between the look-up of what is mapped and the start of the new tracker nothing may be mapped
/// and written; so the tracker has to be first.
#[test]
fn a_page_mapped_while_the_tracker_starts_is_in_the_wide_report() {
    let bench = Bench::unmapped(64);
    bench.space.domain.map(pages(0..32), Oa(0), Perm::READ_WRITE).expect("free");
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    bench.harvest();
    let (domain, requester) = (bench.space.domain.clone(), device.requester.clone());
    let disturb = move || {
        domain.map(pages(50..51), Oa(50 * PAGE_SIZE), Perm::READ_WRITE).expect("free");
        requester.write(Iova(50 * PAGE_SIZE), &[1]).expect("mapped");
    };
    *bench.space.before_start.lock().expect("no panic") = Some(Box::new(disturb));
    bench.tracked.switch(&bench.plan("provider=iommu", &[])).expect("switched");
    let found = bench.harvest();
    assert!(found.contains(&50), "written before the tracker recorded, and not in {found:?}");
}

#[test]
fn a_page_unmapped_while_everything_counts_is_reported() {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    bench.harvest();
    device.write_page(5);
    bench.tracked.unmap(pages(4..8)).expect("drained");
    let without = |skip: std::ops::Range<u64>| (0..64).filter(move |p| !skip.contains(p));
    assert_eq!(bench.harvest(), bench.everything(), "with the unmapped ones, once");
    assert_eq!(bench.harvest(), without(4..8).collect::<Vec<_>>());
}

#[test]
fn a_narrowing_that_cannot_wait_for_writes_in_flight_does_not_happen() {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    bench.space.fail_drain.store(true, Ordering::SeqCst);
    let refused = bench.tracked.ndma_entered(device.rid());
    assert!(matches!(refused, Err(SpaceError::AddressSpace(_))));
    assert!(matches!(bench.tracked.detach(device.rid()), Err(SpaceError::AddressSpace(_))));
    assert_eq!(bench.tracked.status().n_unlimited, 1);
    bench.harvest();
    assert_eq!(bench.harvest(), bench.everything(), "still wide");
}

#[test]
fn a_tracker_that_does_not_start_leaves_the_old_plan() {
    let bench = Bench::new(64);
    let device = bench.logging(1);
    bench.tracked.start(&bench.plan("provider=device", &[])).expect("started");
    device.write_page(5);
    bench.space.fail_start.store(true, Ordering::SeqCst);
    let refused = bench.tracked.switch(&bench.plan("provider=iommu", &[]));
    assert!(matches!(refused, Err(SpaceError::Start { .. })));
    device.write_page(6);
    assert_eq!(bench.harvest(), [5, 6], "the log goes on");
}

#[test]
fn a_recorder_that_can_neither_be_replaced_nor_restarted_leaves_everything_dirty() {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=iommu", &[])).expect("started");
    device.write_page(5);
    bench.space.fail_start.store(true, Ordering::SeqCst);
    let refused = bench.tracked.switch(&bench.plan("provider=fault", &[]));
    assert!(matches!(refused, Err(SpaceError::Start { .. })));
    let status = bench.tracked.status();
    assert_eq!((status.n_unlimited, status.class), (1, Class::AllMapped));
    for _ in 0..2 {
        device.write_page(6);
        assert_eq!(bench.harvest(), bench.everything());
    }
    // And the way back.
    bench.space.fail_start.store(false, Ordering::SeqCst);
    bench.tracked.switch(&bench.plan("provider=fault", &[])).expect("switched");
    bench.harvest();
    device.write_page(6);
    assert_eq!(bench.harvest(), [6]);
}

#[test]
fn memory_pinned_over_a_switch_is_dirty_before_and_after() {
    let bench = Bench::new(64);
    let device = bench.pinning(1);
    let board = device.pins.clone().expect("it pins");
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    board.pin(page(5)..page(6), PinAccess::Write).expect("inside");
    bench.tracked.switch(&bench.plan("provider=pinned", &[])).expect("switched");
    assert_eq!(bench.harvest(), bench.everything());
    assert_eq!(bench.harvest(), [5], "still pinned");
    board.unpin(page(5)..page(6), PinAccess::Write).expect("pinned");
    assert_eq!(bench.harvest(), [5], "unpinned since");
    assert_eq!(bench.harvest(), [0u64; 0]);
}
