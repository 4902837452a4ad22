#![allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]

use drogher_tracking::TrackingPageSize;

use super::*;

const K4: TrackingPageSize = TrackingPageSize::K4;
const K64: TrackingPageSize = TrackingPageSize::K64;
const RAM: PageCount = PageCount(10_000);

fn tracker(provider: ProviderKind, page_size: TrackingPageSize) -> TrackerCosts {
    TrackerCosts {
        provider,
        page_size,
        switch_ns: 0.0,
        switch_ram_page_ns: 0.0,
        harvest_ns: 0.0,
        harvest_ram_page_ns: 0.0,
        harvest_page_ns: 0.0,
        harvest_tracking_page_ns: 0.0,
        first_write_ns: 0.0,
        write_ns: 0.0,
    }
}

/// About what a machine has.
fn machine() -> UnitCosts {
    let recorder = |provider, page_size, first_write_ns| TrackerCosts {
        switch_ram_page_ns: 5.0,
        harvest_ns: 500.0,
        harvest_page_ns: 10.0,
        first_write_ns,
        ..tracker(provider, page_size)
    };
    let log = |page_size| TrackerCosts {
        harvest_ns: 300.0,
        harvest_ram_page_ns: 0.1,
        harvest_page_ns: 5.0,
        write_ns: 15.0,
        ..tracker(ProviderKind::Device, page_size)
    };
    UnitCosts {
        trackers: vec![
            recorder(ProviderKind::Iommu, K4, 100.0),
            recorder(ProviderKind::Iommu, K64, 100.0),
            recorder(ProviderKind::Fault, K4, 150.0),
            log(K4),
            log(K64),
            tracker(ProviderKind::Pinned, K4),
            TrackerCosts { harvest_ram_page_ns: 1.0, ..tracker(ProviderKind::All, K4) },
        ],
        pin_ns: 200.0,
        page_ns: 2000.0,
        took_us: 0,
    }
}

fn load(written: &[std::ops::Range<u64>], writes: u64, pinned: Option<u64>) -> Workload {
    Workload {
        accesses: writes,
        bytes: writes * 100,
        written: written.to_vec(),
        pinned: pinned.map(|pages| Pinned { pages: PageCount(pages), ranges: 1 }),
    }
}

fn best(sample: &Workload, providers: &[ProviderKind]) -> (ProviderKind, TrackingPageSize) {
    best_on(&machine(), sample, providers)
}

fn best_on(
    unit: &UnitCosts,
    sample: &Workload,
    providers: &[ProviderKind],
) -> (ProviderKind, TrackingPageSize) {
    let costs = predict(unit, sample, RAM);
    let total = |cost: &Measured| providers.contains(&cost.provider).then(|| cost.total_ns());
    let best = costs.best(total).expect("one");
    (best.provider, best.page_size)
}

#[test]
fn each_part_of_the_costs_is_counted_once() {
    let costs = TrackerCosts {
        switch_ns: 1000.0,
        switch_ram_page_ns: 0.5,
        harvest_ns: 300.0,
        harvest_ram_page_ns: 0.25,
        harvest_page_ns: 10.0,
        harvest_tracking_page_ns: 40.0,
        first_write_ns: 100.0,
        write_ns: 7.0,
        ..tracker(ProviderKind::Iommu, K64)
    };
    let unit = UnitCosts { trackers: vec![costs], ..machine() };
    // 24 pages in 3 tracking pages of 64K.
    let sample = load(&[0..8, 40..48, 100..108], 50, None);
    let found = predict(&unit, &sample, RAM).measured;
    let expected = Measured {
        provider: ProviderKind::Iommu,
        page_size: K64,
        harvest_ns: 300 + 2500 + (1000 + 5000) / u64::from(ROUNDS) + 10 * 24 + 40 * 3,
        dma_ns: 100 * 24 + 7 * 50,
        resend_ns: 3 * 16 * 2000,
    };
    assert_eq!(found, [expected]);
}

#[test]
fn long_writes_count_for_each_page() {
    let unit = UnitCosts {
        trackers: vec![TrackerCosts { write_ns: 7.0, ..tracker(ProviderKind::Device, K4) }],
        ..machine()
    };
    let sample = Workload { accesses: 2, bytes: 10 * 4096, ..Workload::default() };
    assert_eq!(predict(&unit, &sample, RAM).measured[0].dma_ns, 70);
}

#[test]
fn pins_and_everything_mapped_report_what_they_hold_whatever_is_written() {
    let unit = machine();
    let get = |sample: &Workload, provider| predict(&unit, sample, RAM).get(provider, K4).copied();
    let pinned = load(&[0..2], 9, Some(700));
    let found = get(&pinned, ProviderKind::Pinned).expect("pins are known");
    assert_eq!((found.resend_ns, found.dma_ns), (700 * 2000, 0));
    assert_eq!(found.harvest_ns, 200 / u64::from(ROUNDS));
    assert_eq!(get(&load(&[0..2], 9, None), ProviderKind::Pinned), None);
    let all = get(&pinned, ProviderKind::All).expect("always there");
    assert_eq!(all.resend_ns, RAM.0 * 2000);
}

#[test]
fn the_load_decides() {
    use ProviderKind as P;
    let plain = [P::Iommu, P::Fault, P::All];
    // A page here and there: small pages, and what costs least to switch on.
    let sparse: Vec<_> = (0..50).map(|n| n * 200..n * 200 + 1).collect();
    let sparse = load(&sparse, 60, Some(4000));
    assert_eq!(best(&sparse, &P::EACH), (P::Device, K4));
    assert_eq!(best(&sparse, &plain), (P::Iommu, K4));
    assert_eq!(best(&sparse, &[P::Fault, P::All]), (P::Fault, K4));
    assert_eq!(best(&sparse, &[P::Pinned, P::All]).0, P::Pinned);
    // A buffer that is written all over: its pins cost nothing more. On a slow link the difference
    // is not worth a wider class.
    let dense = load(&[0..1000], 200_000, Some(1000));
    let fast = UnitCosts { page_ns: 500.0, ..machine() };
    assert_eq!(best_on(&fast, &dense, &P::EACH).0, P::Pinned);
    assert_eq!(best(&dense, &P::EACH).0, P::Iommu);
    let once = load(&[0..1000], 1000, Some(1000));
    assert_eq!(best_on(&fast, &once, &P::EACH).0, P::Device);
    // All of RAM again and again, and a log that every write pays for.
    let all = load(&[0..RAM.0], 3_000_000, None);
    assert_eq!(best(&all, &[P::Device, P::All]).0, P::All);
}
