//! A smallest grid from end to end: what is consistent in it, whatever the speed of the machine.

use drogher_trackers::grid::measure;
use drogher_trackers::{Settings, TrackersError, report};
use drogher_tracking::{ProviderKind, TrackingPageSize};

const MEMORY: u64 = 8 << 20;
const PAGES: u64 = MEMORY / 4096;
const WORKING_SET: u64 = 1 << 20;

fn settings() -> Settings {
    Settings {
        memory: MEMORY,
        working_sets: vec![WORKING_SET],
        rates: vec![20_000],
        page_sizes: vec![TrackingPageSize::K4, TrackingPageSize::M2],
        runs: 3,
        ..Settings::default()
    }
}

#[test]
fn a_smallest_grid() {
    let mut steps = Vec::new();
    // A page that differed after a migration would be an error.
    let grid = measure(&settings(), &mut |step| {
        steps.push(step.to_owned());
        true
    })
    .unwrap();
    assert!(
        steps.iter().any(|step| step.contains("cell 1 of 1: 1M at 20000 writes/s, paired run 3"))
    );
    assert_eq!(grid.cells.len(), 1);
    let cell = &grid.cells[0];
    assert_eq!(cell.measured.len(), settings().choices().len());
    for one in &cell.measured {
        let (kind, pages) = (one.fixed.provider, one.resent_bytes / 4096.0);
        assert_eq!(one.totals_ns.len(), 3, "{}", one.fixed);
        assert!(one.harvest_ns > 0.0 && one.switch_ns > 0.0 && one.dma_slowdown > 0.0);
        let resend = one.resend_ns / grid.page_ns;
        assert!((resend - pages).abs() < 1e-6, "{}: sent at the rate of the link", one.fixed);
        let moved = &one.moved;
        assert!(moved.rounds() >= 1 && moved.blackout_us > 0, "{}", one.fixed);
        assert!(moved.blackout_us <= moved.total_us);
        assert_eq!(moved.pages_by_round[0], PAGES, "the bulk pass is everything");
        let rounds = &moved.pages_by_round[1..];
        assert!(moved.resent_bytes >= (rounds.iter().sum::<u64>() + moved.final_pages) * 4096);
        match kind {
            ProviderKind::All => {
                assert_eq!(pages, PAGES as f64);
                assert!(rounds.iter().all(|pages| *pages == PAGES), "{rounds:?}");
                assert_eq!(moved.final_pages, PAGES, "once, though there are two harvests");
            }
            ProviderKind::Pinned => {
                assert_eq!(pages, 256.0);
                assert!(rounds.iter().all(|pages| *pages == 256), "{rounds:?}");
                assert_eq!(moved.final_pages, 256);
            }
            _ => {
                let set = if one.fixed.page_size == TrackingPageSize::M2 { 1024u32 } else { 256 };
                assert!(pages > 0.0 && pages <= f64::from(set), "{}: {pages}", one.fixed);
                assert!(rounds.iter().all(|pages| *pages <= set.into()), "{}", one.fixed);
                assert!(moved.final_pages <= set.into());
            }
        }
    }
    let auto = cell.auto.as_ref().unwrap();
    assert!(cell.measured.iter().any(|one| one.fixed == auto.auto) && auto.ratio >= 1.0);
    let plain = cell.auto_plain.as_ref().unwrap();
    assert!(!matches!(plain.auto.provider, ProviderKind::Device | ProviderKind::Pinned));
    let page = report::html(&grid);
    assert!(page.contains("working set 1M, 20000 writes/s"));
    assert!(report::text(&grid).contains("of 1 cells"));
    assert!(report::json(&grid).unwrap().contains("\"pages-by-round\""));
}

#[test]
fn whoever_watches_can_end_it() {
    let mut steps = 0;
    let ended = measure(&settings(), &mut |_| {
        steps += 1;
        steps < 3
    });
    assert!(matches!(ended, Err(TrackersError::Interrupted)));
    assert_eq!(steps, 3);
}
