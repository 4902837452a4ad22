use std::sync::Arc;

use drogher_iommu::HeapMemory;
use drogher_tracking::{ProviderKind, TrackingPageSize};

use super::*;
use crate::settings::Fixed;

const MEMORY: u64 = 4 << 20;

fn rig(provider: ProviderKind, size: &str) -> Rig {
    let page_size: TrackingPageSize = size.parse().unwrap();
    let memory = Arc::new(HeapMemory::new(MEMORY));
    Rig::new(memory, MEMORY, Fixed { provider, page_size }).unwrap()
}

#[test]
fn what_each_tracker_reports_of_the_same_writes() {
    // 1 MiB in the middle; 500 writes a round, on 256 pages.
    let load = Load::new(MEMORY, 1 << 20, 50_000);
    assert_eq!((load.first, load.pages, load.writes()), (384, 256, 500));
    let pages = |provider, size| {
        let rig = rig(provider, size);
        let run = run(&rig, &load, 7, size == "4K").unwrap();
        assert!(run.harvest > 0.0 && run.switch > 0.0 && run.tracked > 0.0 && run.untracked > 0.0);
        run.pages
    };
    use ProviderKind as P;
    for exact in [P::Iommu, P::Fault, P::Device] {
        let found = pages(exact, "4K");
        // Each round writes to 220 pages or so; a harvest beside the next round may find all.
        assert!((150.0..=256.0).contains(&found), "{exact}: {found}");
        let coarse = pages(exact, "2M");
        assert!((found..=1024.0).contains(&coarse) && coarse > 256.0, "{exact}: {coarse}");
    }
    assert_eq!(pages(P::Pinned, "4K"), 256.0);
    assert_eq!(pages(P::All, "4K"), 1024.0);
}

#[test]
fn a_device_that_fails_ends_the_run() {
    let rig = rig(ProviderKind::Iommu, "4K");
    let beyond = Load { first: MEMORY / PAGE_SIZE, pages: 4, rate: 1000 };
    assert!(matches!(run(&rig, &beyond, 1, true), Err(TrackersError::Dma(_))));
    // And leaves tracking off.
    rig.start().unwrap();
}
