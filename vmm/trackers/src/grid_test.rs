use drogher_tracking::ProviderKind as P;

use super::*;

const K4: TrackingPageSize = TrackingPageSize::K4;
const K64: TrackingPageSize = TrackingPageSize::K64;

fn moved() -> Moved {
    Moved {
        pages_by_round: vec![100, 9],
        final_pages: 1,
        resent_bytes: 40_960,
        blackout_us: 700,
        total_us: 9000,
    }
}

fn of(provider: P, page_size: TrackingPageSize, run: Run) -> Measurement {
    summary(Fixed { provider, page_size }, &[run; 3], 1000.0, moved())
}

fn sending(pages: f64) -> Run {
    Run { pages, ..Run::default() }
}

fn expecting(all: &[(P, TrackingPageSize, u64)]) -> Costs {
    let one = |(provider, page_size, ns): &(P, TrackingPageSize, u64)| Measured {
        provider: *provider,
        page_size: *page_size,
        harvest_ns: *ns,
        dma_ns: 0,
        resend_ns: 0,
    };
    Costs { measured: all.iter().map(one).collect() }
}

#[test]
fn the_median_of_the_runs_and_what_adds_up_to_it() {
    let run =
        |harvest, tracked| Run { switch: 10.0, harvest, tracked, untracked: 1000.0, pages: 2.0 };
    let runs = [run(100.0, 1500.0), run(900.0, 1100.0), run(200.0, 1300.0)];
    let fixed = Fixed { provider: P::Iommu, page_size: K4 };
    let found = summary(fixed, &runs, 50.0, moved());
    assert_eq!(found.totals_ns, [710.0, 1110.0, 610.0]);
    assert_eq!((found.total_ns, found.harvest_ns, found.dma_lost_ns), (710.0, 200.0, 300.0));
    assert_eq!((found.dma_slowdown, found.resent_bytes, found.resend_ns), (1.3, 8192.0, 100.0));
    assert_eq!(found.moved.rounds(), 1);
}

#[test]
fn a_choice_is_held_against_what_was_measured() {
    let measured = [
        of(P::Iommu, K4, sending(100.0)),
        of(P::Iommu, K64, sending(130.0)),
        of(P::Device, K4, sending(90.0)),
        of(P::All, K4, sending(900.0)),
    ];
    // It expects something else, and lands on the second.
    let costs = expecting(&[(P::Device, K4, 500), (P::Iommu, K64, 100), (P::All, K4, 700)]);
    let found = verdict(&measured, &costs, &P::EACH).expect("one is known");
    assert_eq!(found.auto, measured[1].fixed);
    assert_eq!((found.best, found.worst), (measured[2].fixed, measured[3].fixed));
    assert_eq!(found.expected_ns, 100);
    assert!((found.ratio - 130.0 / 90.0).abs() < 1e-9 && !found.is_near() && !found.is_worst());
    // Without a log the best is another, and then that is near enough or not.
    let plain = verdict(&measured, &costs, &PLAIN).expect("one is known");
    assert_eq!((plain.best, plain.ratio), (measured[0].fixed, 1.3));
    let wrong = expecting(&[(P::Iommu, K4, 500), (P::All, K4, 1)]);
    let worst = verdict(&measured, &wrong, &P::EACH).expect("one is known");
    assert!(worst.is_worst() && !worst.is_near());
    // One alone is best and worst.
    let only = verdict(&measured, &wrong, &[P::All]).expect("one is known");
    assert!(only.is_near() && !only.is_worst());
    assert!(verdict(&measured, &expecting(&[]), &P::EACH).is_none());
}
