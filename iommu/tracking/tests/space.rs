//! One address space: the counter of devices that could write anywhere, failures, exactness.

mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Bench, Random, SoftLog, dirty_pages, pages};
use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PageCount, Rid};
use drogher_tracking::{
    AddressSpace, Class, Device, DeviceLog, Dma, LogFailure, PinBoard, Pins, ProviderKind,
    SpaceError, TrackedSpace, TrackingPageSize,
};

/// As when adding a length wrapped.
fn reversed() -> std::ops::Range<drogher_iommu_types::Gpa> {
    common::page(5)..common::page(4)
}

#[test]
fn start_says_what_each_provider_is_worth() {
    let bench = Bench::new(64);
    let (_plain, _log, _pins) = (bench.plain(1), bench.logging(2), bench.pinning(3));
    let rules = [("dev2", "provider=device,page-size=64K"), ("dev3", "provider=pinned")];
    let started = bench.tracked.start(&bench.plan("", &rules)).expect("started");
    let told: Vec<_> =
        started.iter().map(|s| (s.provider, s.device, s.class, s.page_size.to_string())).collect();
    assert_eq!(
        told,
        [
            (ProviderKind::Iommu, None, Class::Exact, "4K".into()),
            (ProviderKind::Device, Some(Rid(16)), Class::Exact, "64K".into()),
            (ProviderKind::Pinned, Some(Rid(24)), Class::Pinned, "4K".into()),
        ]
    );
    assert_eq!(bench.tracked.status().class, Class::Pinned);
}

#[test]
fn two_trackers_of_one_device_are_ored() {
    let bench = Bench::new(64);
    let (plain, log) = (bench.plain(1), bench.logging(2));
    bench.tracked.start(&bench.plan("", &[("dev2", "provider=device")])).expect("started");
    plain.write_page(1);
    log.write_page(2);
    let into = bench.bitmap();
    into.set(common::page(60)).expect("inside");
    let found = bench.tracked.harvest(pages(0..64), &into).expect("harvested");
    assert_eq!(dirty_pages(&into), [1, 2, 60], "and the caller's bits stay");
    // Page 2 by both.
    assert_eq!((found.tracked.pages, found.carried), (PageCount(3), PageCount(0)));
    assert_eq!((found.class, found.failed, found.wide), (Class::Exact, 0, None));
}

#[test]
fn ndma_is_entered_once_and_left_once() {
    let bench = Bench::new(64);
    let (a, b) = (bench.plain(1), bench.plain(2));
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    assert_eq!(bench.tracked.status().n_unlimited, 2);
    let left = bench.tracked.ndma_left(a.rid());
    assert!(matches!(left, Err(SpaceError::NotInNdma { .. })));
    bench.tracked.ndma_entered(a.rid()).expect("it has NDMA");
    let again = bench.tracked.ndma_entered(a.rid());
    // Device b goes on, seen by nobody but the counter.
    bench.harvest();
    b.write_page(5);
    let found = bench.harvest();
    assert!(found.contains(&5), "entering twice must not count for another device");
    assert!(matches!(again, Err(SpaceError::InNdma { .. })));
    assert_eq!(bench.tracked.status().n_unlimited, 1);
    let nobody = bench.tracked.ndma_entered(Rid(0x99));
    assert!(matches!(nobody, Err(SpaceError::NoDevice { .. })));
}

#[test]
fn a_device_without_ndma_that_has_stopped_counts_no_more() {
    let bench = Bench::new(64);
    let mut device = bench.make(1);
    device.caps.ndma = false;
    let device = bench.attach(device);
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    let refused = bench.tracked.ndma_entered(device.rid());
    assert!(matches!(refused, Err(SpaceError::NoNdma { .. })));
    device.write_page(5);
    bench.tracked.stopped(device.rid()).expect("it may stop");
    assert!(matches!(bench.tracked.stopped(device.rid()), Err(SpaceError::InNdma { .. })));
    assert_eq!(bench.tracked.status().n_unlimited, 0);
    assert_eq!(bench.harvest().len(), 64, "the last wide report");
    assert!(bench.harvest().is_empty());
    bench.tracked.ndma_left(device.rid()).expect("it goes on");
    assert_eq!(bench.tracked.status().n_unlimited, 1);
}

#[test]
fn the_counter_is_what_the_devices_say_whatever_happens() {
    let bench = Bench::new(16);
    let devices = [bench.plain(1), bench.logging(2), bench.pinning(3)];
    let kinds = [
        ["provider=all", "provider=iommu", "provider=fault"],
        ["provider=all", "provider=device", "provider=iommu"],
        ["provider=all", "provider=pinned", "provider=all"],
    ];
    let mut random = Random(7);
    let (mut ndma, mut all, mut on) = ([false; 3], [false; 3], false);
    for step in 0..2000 {
        let which = usize::try_from(random.below(3)).expect("small");
        let rid = devices[which].rid();
        match random.below(5) {
            0 => assert_eq!(
                bench.tracked.ndma_entered(rid).is_ok(),
                !std::mem::replace(&mut ndma[which], true)
            ),
            1 => assert_eq!(
                bench.tracked.ndma_left(rid).is_ok(),
                std::mem::replace(&mut ndma[which], false)
            ),
            2 if on => {
                bench.tracked.stop().expect("on");
                (on, all) = (false, [false; 3]);
            }
            2 | 3 => {
                let pick: [usize; 3] =
                    [0; 3].map(|_: i32| usize::try_from(random.below(3)).expect("small"));
                let choice = |n: usize| kinds[n][pick[n]];
                // A space records in one way: the first device's goes.
                let second = if choice(0).ends_with("fault") && pick[1] == 2 { 0 } else { pick[1] };
                let rules = [("dev1", choice(0)), ("dev2", kinds[1][second]), ("dev3", choice(2))];
                let plan = bench.plan("", &rules);
                if on { bench.tracked.switch(&plan) } else { bench.tracked.start(&plan) }
                    .expect("a good plan");
                on = true;
                all = rules.map(|(_, choice)| choice.ends_with("all"));
            }
            _ => drop(on.then(|| bench.harvest())),
        }
        let expected = (0..3).filter(|n| all[*n] && !ndma[*n]).count();
        assert_eq!(bench.tracked.status().n_unlimited, expected as u64, "step {step}");
    }
}

#[test]
fn a_failed_tracker_costs_exactness_and_no_page() {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=iommu", &[])).expect("started");
    device.write_page(5);
    bench.space.fail_harvest.store(true, Ordering::SeqCst);
    let into = bench.bitmap();
    // Of one part: what was lost may lie in the other.
    let found = bench.tracked.harvest(pages(32..64), &into).expect("goes on");
    assert_eq!((found.failed, found.class), (1, Class::AllMapped));
    assert_eq!(dirty_pages(&into), (32..64).collect::<Vec<_>>());
    bench.space.fail_harvest.store(false, Ordering::SeqCst);
    assert_eq!(bench.harvest(), bench.everything(), "a write in flight then may land later");
    assert_eq!(bench.harvest(), [0u64; 0]);
    let status = bench.tracked.status();
    assert_eq!(status.failures, 1);
    assert!(status.last_failure.is_some_and(|e| e.to_string().contains("own tracking failed")));
}

#[test]
fn what_a_failed_tracker_had_recorded_of_unmapped_memory_is_reported_too() {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=iommu", &[])).expect("started");
    device.write_page(5);
    bench.tracked.unmap(pages(0..64)).expect("drained");
    bench.space.fail_harvest.store(true, Ordering::SeqCst);
    assert_eq!(bench.harvest(), bench.everything());
}

#[test]
fn a_page_whose_log_entry_is_still_to_come_is_not_lost_by_an_unmap_and_a_switch() {
    let bench = Bench::new(64);
    let device = bench.logging(1);
    bench.tracked.start(&bench.plan("provider=device", &[])).expect("started");
    // Stored, and not marked yet.
    device.requester.write(drogher_iommu_types::Iova(5 * 4096), &[1]).expect("mapped");
    bench.tracked.unmap(pages(5..6)).expect("drained");
    bench.tracked.switch(&bench.plan("provider=iommu", &[])).expect("switched");
    assert!(bench.harvest().contains(&5));
}

#[test]
fn a_failed_log_of_a_device_does_the_same() {
    let bench = Bench::new(64);
    let device = bench.logging(1);
    let log = device.log.clone().expect("it has one");
    bench.tracked.start(&bench.plan("provider=device", &[])).expect("started");
    log.fails.store(true, Ordering::SeqCst);
    assert_eq!(bench.harvest(), bench.everything());
    log.fails.store(false, Ordering::SeqCst);
    bench.harvest();
    device.write_page(3);
    assert_eq!(bench.harvest(), [3]);
}

/// The guest may reset a device at any time, and a reset ends its log.
///
/// Caught mutant: `ended-log-stays-off`.
#[test]
fn a_log_that_a_reset_has_ended_is_wide_twice_and_then_exact_again() {
    for plan in ["provider=device", "provider=device,page-size=64K"] {
        let bench = Bench::new(64);
        let device = bench.logging(1);
        let log = device.log.clone().expect("it has one");
        bench.tracked.start(&bench.plan(plan, &[])).expect("started");
        DeviceLog::stop(log.as_ref()).expect("it runs");
        device.write_page(5);
        assert_eq!(bench.harvest(), bench.everything(), "{plan}: nobody saw page 5");
        device.write_page(3);
        assert_eq!(bench.harvest(), bench.everything(), "{plan}: once more");
        device.write_page(17);
        let found = bench.harvest();
        assert!(found.contains(&17) && found.len() <= 16, "{plan}: {found:?}");
        assert_eq!(bench.tracked.status().failures, 1);
        bench.tracked.stop().expect("it runs again");
    }
}

/// A log that takes whole tracking pages only, as a plugin's.
struct Strict(Arc<SoftLog>);

impl DeviceLog for Strict {
    fn start(
        &self,
        ranges: &[Range<Gpa>],
        page_size: TrackingPageSize,
    ) -> Result<TrackingPageSize, LogFailure> {
        DeviceLog::start(self.0.as_ref(), ranges, page_size)
    }

    fn report(
        &self,
        range: &Range<Gpa>,
        page_size: TrackingPageSize,
        into: &DirtyBitmap,
    ) -> Result<(), LogFailure> {
        if !page_size.is_aligned(range.start) {
            return Err(format!("{} is inside a tracking page", range.start).into());
        }
        self.0.report(range, page_size, into)
    }

    fn stop(&self) -> Result<(), LogFailure> {
        DeviceLog::stop(self.0.as_ref())
    }
}

#[test]
fn memory_that_begins_inside_a_tracking_page_is_logged_in_whole_ones() {
    let bench = Bench::new(64);
    let mut device = bench.logging(1).device();
    let log = SoftLog::new(pages(0..64));
    device.log = Some(Arc::new(Strict(log.clone())));
    let tracked = TrackedSpace::new("s", bench.space.clone(), &[pages(3..50)]).expect("good");
    tracked.attach(device).expect("new");
    tracked.start(&bench.plan("provider=device,page-size=64K", &[])).expect("started");
    log.mark(pages(5..6));
    let into = bench.bitmap();
    let found = tracked.harvest(pages(3..50), &into).expect("harvested");
    assert_eq!((found.failed, found.class), (0, Class::Exact));
    assert_eq!(dirty_pages(&into), (3..16).collect::<Vec<_>>());
}

#[test]
fn where_exactness_is_required_a_failure_ends_it_with_nothing_lost() {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("require=exact", &[])).expect("started");
    device.write_page(5);
    bench.space.fail_harvest.store(true, Ordering::SeqCst);
    let into = bench.bitmap();
    let error = bench.tracked.harvest(pages(0..64), &into).expect_err("not exact");
    assert!(matches!(error, SpaceError::Failed { .. }));
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(into.count(), PageCount(64));
    bench.space.fail_harvest.store(false, Ordering::SeqCst);
    assert_eq!(bench.harvest(), bench.everything());
    assert_eq!(bench.harvest(), [0u64; 0]);
}

#[test]
fn where_exactness_is_required_a_newcomer_that_nothing_tracks_ends_it() {
    let bench = Bench::new(64);
    let _first = bench.logging(1);
    bench.tracked.start(&bench.plan("provider=device,require=exact", &[])).expect("started");
    let second = bench.plain(2);
    let into = bench.bitmap();
    let error = bench.tracked.harvest(pages(0..64), &into).expect_err("not exact");
    assert!(error.to_string().contains("all-mapped because of dev2"), "{error}");
    assert_eq!(into.count(), PageCount(64), "reported all the same");
    bench.tracked.ndma_entered(second.rid()).expect("it has NDMA");
    bench.harvest();
}

#[test]
fn a_raw_device_is_refused_by_name_before_anything_starts() {
    let bench = Bench::new(64);
    let _known = bench.plain(1);
    let plan = bench.plan("", &[]);
    let mut raw = bench.make(2);
    raw.caps.dma = Dma::Raw;
    let raw = bench.attach(raw);
    // The planner refuses it, see its tests; a plan that was made without it does not fit.
    let error = bench.tracked.start(&plan).expect_err("does not fit");
    assert!(error.to_string().contains("dev2 is attached"), "{error}");
    let mut forged = plan.clone();
    let mut device = forged.devices[0].clone();
    (device.rid, device.label) = (raw.rid(), raw.caps.label.clone());
    forged.devices.push(device);
    let error = bench.tracked.start(&forged).expect_err("raw");
    assert!(matches!(&error, SpaceError::Raw { device } if device == "dev2 (00:02.0)"));
    assert!(!bench.space.domain.is_tracking());
    bench.tracked.detach(raw.rid()).expect("attached");
    bench.tracked.start(&plan).expect("started");
    let refused = bench.tracked.attach(raw.device());
    assert!(matches!(refused, Err(SpaceError::Raw { .. })), "nor may one come later");
}

#[test]
fn with_a_raw_device_wide_means_all_memory() {
    let bench = Bench::unmapped(64);
    let mut raw = bench.make(1);
    (raw.caps.dma, raw.caps.pins) = (Dma::Raw, Pins::All);
    raw.pins = Some(Arc::new(PinBoard::new(pages(0..64))));
    let raw = bench.attach(raw);
    let _other = bench.plain(2);
    bench.tracked.start(&bench.plan("", &[("dev2", "provider=all")])).expect("started");
    raw.write_page(5);
    assert_eq!(bench.harvest(), bench.everything(), "although nothing is mapped");
    bench.tracked.ndma_entered(Rid(16)).expect("it has NDMA");
    bench.harvest();
    raw.write_page(6);
    assert_eq!(bench.harvest(), [6], "the pins alone cover it");
}

#[test]
fn an_enlightened_device_that_pins_nothing_reports_nothing() {
    let bench = Bench::new(64);
    let device = bench.pinning(1);
    bench.tracked.start(&bench.plan("provider=pinned", &[])).expect("started");
    assert_eq!(bench.harvest(), [0u64; 0]);
    device.write_page(4);
    assert_eq!(bench.harvest(), [4], "unpinned since");
}

#[test]
fn two_spaces_one_wide_and_one_exact_stay_apart() {
    let (wide, exact) = (Bench::new(64), Bench::new(64));
    let (_a, b) = (wide.plain(1), exact.plain(2));
    wide.tracked.start(&wide.plan("provider=all", &[])).expect("started");
    exact.tracked.start(&exact.plan("", &[])).expect("started");
    b.write_page(5);
    let union = wide.bitmap();
    exact.tracked.harvest(pages(0..64), &union).expect("harvested");
    assert_eq!(dirty_pages(&union), [5], "the second stays small");
    wide.tracked.harvest(pages(0..64), &union).expect("harvested");
    assert_eq!(union.count(), PageCount(64));
}

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_taken() {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    let into = bench.bitmap();
    let off = bench.tracked.harvest(pages(0..64), &into);
    assert!(matches!(off, Err(SpaceError::NotTracking)));
    assert!(matches!(bench.tracked.stop(), Err(SpaceError::NotTracking)));
    let plan = bench.plan("", &[]);
    assert!(matches!(bench.tracked.switch(&plan), Err(SpaceError::NotTracking)));
    bench.tracked.start(&plan).expect("started");
    assert!(matches!(bench.tracked.start(&plan), Err(SpaceError::AlreadyTracking)));
    device.write_page(5);
    for range in [pages(0..65), reversed(), drogher_iommu_types::Gpa(1)..common::page(2)] {
        let refused = bench.tracked.harvest(range, &into);
        assert!(matches!(refused, Err(SpaceError::Range { .. })));
    }
    let small = drogher_iommu_types::DirtyBitmap::new(pages(0..32)).expect("aligned");
    let refused = bench.tracked.harvest(pages(0..64), &small);
    assert!(matches!(refused, Err(SpaceError::Bitmap(BitmapError::Outside { .. }))));
    assert!(matches!(bench.tracked.attach(device.device()), Err(SpaceError::Attached { .. })));
    let mut other = bench.make(9);
    other.caps.ndma = false;
    bench.tracked.attach(Device::new(other.caps.clone())).expect("new");
    let refused = bench.tracked.ndma_entered(other.rid());
    assert!(matches!(refused, Err(SpaceError::NoNdma { .. })));
    assert_eq!(bench.harvest(), [5]);
    let space: Arc<dyn AddressSpace> = bench.space.clone();
    for ram in [vec![pages(4..8), pages(0..2)], vec![pages(0..4), pages(3..5)], vec![reversed()]] {
        let refused = TrackedSpace::new("x", space.clone(), &ram);
        assert!(matches!(refused, Err(SpaceError::Ram { .. })), "{ram:?}");
    }
}

#[test]
fn a_source_that_was_not_brought_is_missed_by_name() {
    let bench = Bench::new(64);
    let device = bench.logging(1);
    bench.tracked.detach(device.rid()).expect("attached");
    bench.tracked.attach(Device::new(device.caps.clone())).expect("new");
    let error = bench.tracked.start(&bench.plan("provider=device", &[])).expect_err("no log");
    assert_eq!(error.to_string(), "Device dev1 was attached without what provider device needs");
}

#[test]
fn a_harvest_in_pieces_gives_what_a_whole_one_gives() {
    for size in ["4K", "16K", "64K", "2M"] {
        for provider in ["iommu", "device"] {
            let bench = Bench::new(200);
            let device = bench.logging(1);
            let choice = format!("provider={provider},page-size={size}");
            bench.tracked.start(&bench.plan(&choice, &[])).expect("started");
            device.write_page(50);
            device.write_page(199);
            let into = bench.bitmap();
            // Cut inside tracking pages, and each piece twice: a cut one's rest is for the next.
            for _ in 0..2 {
                for range in [pages(0..49), pages(49..51), pages(51..130), pages(130..200)] {
                    bench.tracked.harvest(range, &into).expect("harvested");
                }
            }
            let per = size.parse::<drogher_tracking::TrackingPageSize>().expect("a size").pages();
            let same = |p: &u64| p / per == 50 / per || p / per == 199 / per;
            let expected: Vec<u64> = (0..200).filter(same).collect();
            assert_eq!(dirty_pages(&into), expected, "{choice}");
            assert_eq!(bench.harvest(), [0u64; 0], "{choice}");
        }
    }
}
