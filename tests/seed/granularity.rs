//! Rows 23 to 34: page sizes, bitmaps, and how data goes.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;

use drogher_iommu::{TrackConfig, TrackMode};
use drogher_iommu_types::{DirtyBitmap, Iova, PAGE_SIZE, PageCount};
use drogher_tests::{Migration, Place, kvm};
use drogher_tracking::{ProviderKind, TrackingPageSize};

use crate::common::{Bench, dirty_pages, page, pages};
use crate::moving::{Copy, move_under_load, write_somewhere};

/// So dense that no round passes without a write of a device.
const DENSE: &str = "ws=16M rate=10000 dma=on dma_rate=8000 status_ms=200";

#[test]
fn seed_23_smaller_tracking_pages_send_less_and_every_size_is_right() {
    for provider in ["iommu", "fault", "device"] {
        let mut sent = Vec::new();
        for size in ["4K", "16K", "64K", "2M"] {
            let bench = Bench::new(2048);
            let device = bench.logging(1);
            let plan = bench.plan(&format!("provider={provider},page-size={size}"), &[]);
            sent.push(move_under_load(&bench, &[&device], &plan));
        }
        assert!(sent.windows(2).all(|pair| pair[0] <= pair[1]), "{provider}: {sent:?}");
        assert!(sent[0] < sent[3], "{provider}: a size that makes no difference: {sent:?}");
    }
    // Reports are in pages of 4 KiB whatever the size.
    let bench = Bench::new(2048);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=iommu,page-size=64K", &[])).expect("started");
    device.write_page(17);
    assert_eq!(bench.harvest(), (16..32).collect::<Vec<_>>());
    for wrong in [3072, 2048, 4 << 20] {
        assert!(TrackingPageSize::new(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn seed_24_a_harvest_copies_into_the_callers_bitmap_and_allocates_nothing() {
    let bench = Bench::new(256);
    let device = bench.logging(1);
    bench.tracked.start(&bench.plan("provider=device", &[])).expect("started");
    let into = bench.bitmap();
    device.write_page(70);
    bench.tracked.harvest(into.range(), &into).expect("harvested");
    assert_eq!(dirty_pages(&into), [70]);
    crate::allocations::harvests_allocate_nothing();
}

#[test]
fn seed_25_bits_are_set_and_taken_atomically() {
    const PAGES: u64 = 512;
    let bitmap = DirtyBitmap::new(pages(0..PAGES)).expect("aligned");
    let over = AtomicBool::new(false);
    // Each writer counts how often it set a bit that was clear; the taker, how many it took.
    let (set, mut taken) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|writer| {
                let bitmap = &bitmap;
                scope.spawn(move || {
                    let own = |number: &u64| number % 3 == writer;
                    let mut set = vec![0u32; PAGES as usize];
                    for _ in 0..300 {
                        for number in (0..PAGES).filter(own) {
                            set[number as usize] +=
                                u32::from(bitmap.set(page(number)).expect("inside"));
                        }
                    }
                    set
                })
            })
            .collect();
        let taker = scope.spawn(|| {
            let mut taken = vec![0u32; PAGES as usize];
            while !over.load(Ordering::SeqCst) {
                take(&bitmap, &mut taken);
            }
            taken
        });
        let mut set = vec![0; PAGES as usize];
        for writer in writers {
            for (sum, own) in set.iter_mut().zip(writer.join().expect("no panic")) {
                *sum += own;
            }
        }
        over.store(true, Ordering::SeqCst);
        (set, taker.join().expect("no panic"))
    });
    take(&bitmap, &mut taken);
    assert_eq!(set, taken, "a bit is lost or doubled");
}

fn take(bitmap: &DirtyBitmap, taken: &mut [u32]) {
    bitmap.take_words(|first, bits| {
        for bit in (0..64).filter(|bit| bits >> bit & 1 == 1) {
            taken[(first.page() + bit) as usize] += 1;
        }
    });
}

/// The device itself sets bits in a bitmap that the host has made in shared memory, and that
/// another process could map as well as the plugin; the guest moves by it alone.
#[test]
fn seed_26_a_driver_sets_bits_itself_in_shared_memory() -> anyhow::Result<()> {
    if !kvm("seed_26") {
        return Ok(());
    }
    let place = Place::new();
    let gate = place.path("gate");
    let hook = format!("source:forecast=wait:{}", gate.display());
    let device = ["--device", "ndma,vm.name=logs,log=shared,vm.tracker=device"];
    let mut source = place.run("a", DENSE, &device, &[("DROGHER_TEST_HOOK", &hook)])?;
    source.progress(2)?;
    let pid = source.pid();
    let shared = || -> anyhow::Result<usize> {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?;
        let targets = descriptors.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        Ok(targets.filter(|to| to.to_string_lossy().contains("drogher-dma-log")).count())
    };
    assert_eq!(shared()?, 0, "no migration, no log");
    let mut destination = place.receive("b", &[], &[])?;
    let migrating = Migration::start(&place, &source, &destination, &["--verify"])?;
    source.wait_for_file(&place.path("gate.reached"))?;
    assert_eq!(shared()?, 1, "one bitmap, in a memfd");
    std::fs::File::create(&gate)?;
    let migration = migrating.end()?;
    let tracking = migration.tracking.clone().context("how it was tracked")?;
    let logs = tracking.devices.iter().find(|device| device.device == "logs");
    let logs = logs.with_context(|| format!("{tracking:?}"))?;
    assert_eq!(logs.provider, Some(ProviderKind::Device));
    let verified = migration.expect_moved()?.verified.context("it was asked for")?;
    assert_eq!((verified.differing, verified.differing_states.len()), (0, 0));
    destination.progress(3)
}

#[test]
fn seed_27_every_provider_ors_and_clears_nothing_of_the_callers() {
    for choice in ["iommu", "device", "fault", "all", "pinned"] {
        let bench = Bench::new(64);
        let device = if choice == "pinned" { bench.pinning(1) } else { bench.logging(1) };
        bench.tracked.start(&bench.plan(&format!("provider={choice}"), &[])).expect("started");
        device.write_page(9);
        let into = bench.bitmap();
        into.set_range(pages(30..34)).expect("inside");
        bench.tracked.harvest(pages(0..32), &into).expect("harvested");
        let found = dirty_pages(&into);
        assert!([30, 31, 32, 33].iter().all(|page| found.contains(page)), "{choice}: {found:?}");
        assert!(found.contains(&9), "{choice}");
    }
}

#[test]
fn seed_28_the_reports_of_several_containers_meet_in_one_bitmap_by_gpa() {
    let (a, b) = (Bench::new(64), Bench::new(64));
    let (one, two) = (a.plain(1), b.logging(2));
    a.tracked.start(&a.plan("", &[])).expect("started");
    b.tracked.start(&b.plan("provider=device", &[])).expect("started");
    one.write_page(3);
    two.write_page(3);
    two.write_page(60);
    let into = a.bitmap();
    let first = a.tracked.harvest(pages(0..64), &into).expect("harvested");
    let second = b.tracked.harvest(pages(0..64), &into).expect("harvested");
    assert_eq!(dirty_pages(&into), [3, 60]);
    assert_eq!((first.tracked.pages, second.tracked.pages), (PageCount(1), PageCount(2)));
}

#[test]
fn seed_29_providers_are_switched_in_mid_migration() {
    let bench = Bench::new(512);
    let device = bench.logging(1);
    let choices = ["iommu", "device", "fault", "all", "device", "iommu", "fault", "iommu"];
    let mut copy = Copy::begin(&bench, &bench.plan("provider=all", &[]));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut seed = 0;
            while !over.load(Ordering::SeqCst) {
                write_somewhere(&device, 512, seed);
                seed += 1;
            }
        });
        for choice in choices.iter().cycle().take(40) {
            bench
                .tracked
                .switch(&bench.plan(&format!("provider={choice}"), &[]))
                .expect("switched");
            copy.round();
        }
        over.store(true, Ordering::SeqCst);
        writing.join().expect("no panic");
    });
    copy.end();
}

#[test]
fn seed_30_an_address_spaces_providers_share_its_bitmaps() {
    crate::allocations::one_device_more_costs_no_bitmap();
}

#[test]
fn seed_31_a_fault_handler_on_first_writes_reports_the_same_as_d_bits() {
    let found = ["iommu", "fault"].map(|provider| {
        let bench = Bench::new(512);
        let device = bench.plain(1);
        bench.tracked.start(&bench.plan(&format!("provider={provider}"), &[])).expect("started");
        let mut reports = Vec::new();
        for seed in 0..4 {
            write_somewhere(&device, 512, seed);
            reports.push(bench.harvest());
        }
        (reports, bench.space.domain.track_stats().faults)
    });
    assert_eq!(found[0].0, found[1].0);
    assert_eq!(found[0].1, 0, "D bits fault never");
    let pages: usize = found[1].0.iter().map(Vec::len).sum();
    assert_eq!(found[1].1, pages as u64, "a fault for each page and harvest, and they are counted");
}

#[test]
fn seed_32_the_leaf_records_writes_and_no_reads() {
    let bench = Bench::new(64);
    let device = bench.plain(1);
    bench.tracked.start(&bench.plan("provider=iommu", &[])).expect("started");
    let mut data = [0; 100];
    device.requester.read(Iova(5 * PAGE_SIZE), &mut data).expect("mapped");
    assert_eq!(bench.harvest(), [0u64; 0], "a read leaves it clear");
    device.requester.write(Iova(6 * PAGE_SIZE - 1), &[1, 2]).expect("mapped");
    assert_eq!(bench.harvest(), [5, 6], "both pages of a write over an edge");
    device.requester.fetch_add_u32(Iova(7 * PAGE_SIZE), 1).expect("mapped");
    assert_eq!(bench.harvest(), [7]);
    assert_eq!(bench.harvest(), [0u64; 0]);
}

#[test]
fn seed_34_tracking_and_a_devices_migration_do_not_know_each_other() {
    // A log and a page table record with no migration anywhere; a plugin sees neither table nor
    // policy: the interface has no word of them.
    let bench = Bench::new(64);
    let device = bench.logging(1);
    bench.tracked.start(&bench.plan("provider=device", &[])).expect("started");
    device.write_page(8);
    assert_eq!(bench.harvest(), [8]);
    assert!(!bench.space.domain.is_tracking(), "a device's log needs no page table's help");
    bench
        .space
        .domain
        .start_tracking_with(TrackConfig { mode: TrackMode::DBits, ..TrackConfig::default() })
        .expect("off before");
    device.write_page(9);
    assert_eq!(bench.harvest(), [9], "nor is it in the way");
    let header = include_str!("../../plugins/abi/include/drogher_plugin.h");
    for word in ["page table", "second stage", "drogher_tracking", "d bit"] {
        assert!(!header.to_lowercase().contains(word), "the plugin interface speaks of a {word}");
    }
}
