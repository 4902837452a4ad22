//! Rows 16 to 22: what starts a tracker, NDMA, and devices that differ.

use drogher_iommu_types::PageCount;
use drogher_tracking::{
    Class, Costs, DeviceCaps, DeviceLog, Explanation, Inputs, Policy, ProviderKind, Quirks,
    Refusal, RefusalCode, SpaceCaps, SpaceError, planner,
};

use crate::common::{Bench, dirty_pages, pages};
use crate::moving::{Copy, write_somewhere};

#[test]
fn seed_16_a_tracker_runs_where_it_was_chosen_and_is_told_so() {
    let bench = Bench::new(64);
    let (chosen, other) = (bench.logging(1), bench.logging(2));
    let (log, idle) = (chosen.log.clone().expect("a log"), other.log.clone().expect("a log"));
    // Whatever the devices are asked for before: nothing logs.
    chosen.write_page(1);
    let (space, into) = (pages(0..64), bench.bitmap());
    log.report(&space, Default::default(), &into).expect_err("no log has started by itself");
    assert_eq!(into.count(), PageCount(0), "and none has recorded");
    let plan = bench.plan("", &[("dev1", "provider=device"), ("dev2", "provider=iommu")]);
    bench.tracked.start(&plan).expect("started");
    chosen.write_page(2);
    other.write_page(3);
    idle.report(&space, Default::default(), &into).expect_err("the IOMMU covers this device");
    assert_eq!(into.count(), PageCount(0), "so its log has not recorded");
    assert_eq!(bench.harvest(), [2, 3], "each by its own tracker");
    bench.tracked.stop().expect("it runs");
    log.stop().expect_err("it was stopped with the tracking");
}

#[test]
fn seed_17_memory_is_tracked_or_not_whatever_device_state_does() {
    // Without a tracker everything is sent in the stop, whether device state is sent early or not;
    // with one, what was dirtied. `steps.rs` moves a guest with device state sent early.
    for (choice, all) in [("provider=all", true), ("provider=iommu", false)] {
        let bench = Bench::new(256);
        let device = bench.plain(1);
        let mut copy = Copy::begin(&bench, &bench.plan(choice, &[]));
        write_somewhere(&device, 64, 3);
        let in_the_stop = copy.round();
        assert_eq!(in_the_stop == PageCount(256), all, "{choice}: {in_the_stop:?}");
        copy.end();
    }
}

#[test]
fn seed_18_ndma_enlightens_and_a_counter_takes_it_back() {
    let bench = Bench::new(64);
    let (a, b) = (bench.plain(1), bench.plain(2));
    bench.tracked.start(&bench.plan("provider=all", &[])).expect("started");
    let unlimited = || bench.tracked.status().n_unlimited;
    assert_eq!(unlimited(), 2);
    a.write_page(5);
    bench.tracked.ndma_entered(a.rid()).expect("it has NDMA");
    assert_eq!(unlimited(), 1);
    let twice = bench.tracked.ndma_entered(a.rid());
    assert!(matches!(twice, Err(SpaceError::InNdma { .. })), "{twice:?}");
    assert_eq!(unlimited(), 1, "nothing is counted twice");
    bench.tracked.ndma_entered(b.rid()).expect("it has NDMA");
    assert_eq!(unlimited(), 0);
    assert_eq!(bench.harvest(), bench.everything(), "the final wide set");
    assert_eq!(bench.harvest(), [0u64; 0], "nobody can write");
    bench.tracked.ndma_left(a.rid()).expect("it is in NDMA");
    let twice = bench.tracked.ndma_left(a.rid());
    assert!(matches!(twice, Err(SpaceError::NotInNdma { .. })), "{twice:?}");
    assert_eq!(unlimited(), 1, "no underflow");
    assert_eq!(bench.harvest(), bench.everything(), "all mapped again");
}

#[test]
fn seed_19_the_simple_device_rests_early_and_the_others_are_tracked_to_the_end() {
    let bench = Bench::new(256);
    let (simple, clever) = (bench.plain(1), bench.logging(2));
    let plan =
        bench.plan("", &[("dev1", "provider=all,early-ndma=on"), ("dev2", "provider=device")]);
    assert_eq!((plan.class, plan.class_after_ndma), (Class::AllMapped, Class::Exact));
    assert!(plan.devices[0].early_ndma && !plan.devices[1].early_ndma);
    let mut copy = Copy::begin(&bench, &plan);
    simple.write_page(200);
    assert_eq!(copy.round(), PageCount(256), "before it everything counts");
    simple.write_page(201);
    bench.tracked.ndma_entered(simple.rid()).expect("it has NDMA");
    assert_eq!(copy.round(), PageCount(256), "its last writes");
    for page in 0..4 {
        clever.write_page(page);
        assert_eq!(copy.round(), PageCount(1), "then the tracked device's alone");
    }
    copy.end();
}

#[test]
fn seed_20_containers_are_split_and_one_that_is_wide_leaves_the_other_small() {
    let (wide, exact) = (Bench::new(64), Bench::new(64));
    let mut without = wide.make(1);
    without.caps.ndma = false;
    let _without = wide.attach(without);
    let tracked = exact.plain(2);
    wide.tracked.start(&wide.plan("provider=all", &[])).expect("started");
    exact.tracked.start(&exact.plan("", &[])).expect("started");
    tracked.write_page(5);
    let union = wide.bitmap();
    let harvest = exact.tracked.harvest(pages(0..64), &union).expect("harvested");
    assert_eq!((harvest.class, dirty_pages(&union)), (Class::Exact, vec![5]));
    let harvest = wide.tracked.harvest(pages(0..64), &union).expect("harvested");
    assert_eq!((harvest.class, union.count()), (Class::AllMapped, PageCount(64)));
}

fn plan_of(devices: Vec<DeviceCaps>, bench: &Bench, global: &str) -> Explanation {
    let policy = Policy { global: global.parse().expect("a choice"), devices: Vec::new() };
    let space = SpaceCaps::of("s", "test", bench.space.as_ref());
    let inputs = Inputs { policy: &policy, quirks: &Quirks::default(), costs: &Costs::default() };
    planner::plan(&[(space, devices)], inputs).into()
}

#[test]
fn seed_21_the_containers_tracker_covers_all_its_devices_and_a_devices_log_itself() {
    let bench = Bench::new(64);
    let (a, b) = (bench.logging(1), bench.plain(2));
    let plan = bench.plan("", &[("dev1", "provider=device")]);
    let covers = |kind: ProviderKind| {
        let found = plan.providers.iter().find(|provider| provider.provider == kind);
        found.map(|provider| provider.covers.clone())
    };
    assert_eq!(covers(ProviderKind::Device), Some(vec!["dev1".to_owned()]));
    let by_iommu = covers(ProviderKind::Iommu).expect("dev2 is covered by nothing else");
    assert!(by_iommu.contains(&"dev2".to_owned()), "{by_iommu:?}");
    // Who writes through the table is seen there too; overlap is harmless, reports are ORed.
    bench.tracked.start(&plan).expect("started");
    a.write_page(1);
    b.write_page(2);
    let into = bench.bitmap();
    bench.tracked.harvest(pages(0..64), &into).expect("harvested");
    assert_eq!(dirty_pages(&into), [1, 2]);
    // Nothing of a plan that leaves a device out is started.
    bench.tracked.stop().expect("it runs");
    let mut partial = plan.clone();
    partial.devices.retain(|device| device.label != "dev2");
    bench.tracked.start(&partial).expect_err("dev2 would be covered by nobody");
    assert!(!bench.space.domain.is_tracking());
}

#[test]
fn seed_22_a_device_that_cannot_be_migrated_is_named() {
    let bench = Bench::new(64);
    let mut caps = vec![bench.plain(1).caps, bench.plain(2).caps, bench.plain(3).caps];
    caps[1].migratable = false;
    caps[2].migratable = false;
    let refusals: Vec<Refusal> = plan_of(caps, &bench, "").refusals;
    let named: Vec<_> = refusals.iter().filter_map(|refusal| refusal.device.clone()).collect();
    assert_eq!(refusals.len(), 2, "all at once: {refusals:?}");
    assert!(refusals.iter().all(|refusal| refusal.code == RefusalCode::NotMigratable));
    assert!(named[0].contains("dev2") && named[1].contains("dev3"), "{named:?}");
}
