use drogher_tracking::{ProviderKind, TrackingPageSize};

use super::*;
use crate::settings::Fixed;

const MEMORY: u64 = 4 << 20;

fn rig(provider: ProviderKind) -> Arc<Rig> {
    let memory = Arc::new(HeapMemory::new(MEMORY));
    memory.fill(Oa(0), 3, MEMORY).unwrap();
    let fixed = Fixed { provider, page_size: TrackingPageSize::K4 };
    Arc::new(Rig::new(memory, MEMORY, fixed).unwrap())
}

#[test]
fn one_rig_moves_again_and_again() {
    let load = Load::new(MEMORY, 256 << 10, 5000);
    let folder = tempfile::tempdir().unwrap();
    for provider in ProviderKind::EACH {
        let rig = rig(provider);
        let destination = HeapMemory::new(MEMORY);
        for _ in 0..2 {
            let moved = migrate(&rig, load, &destination, folder.path()).unwrap();
            assert_eq!(moved.pages_by_round[0], MEMORY / PAGE_SIZE, "{provider}");
            assert!(moved.rounds() >= 1, "{provider}");
        }
        // It is off, and can be used for something else.
        rig.start().unwrap();
        rig.stop().unwrap();
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "no lease is left");
}

#[test]
fn a_page_that_differs_is_an_error_that_names_it() {
    let rig = rig(ProviderKind::Iommu);
    let other = HeapMemory::new(MEMORY);
    other.fill(Oa(0), 3, MEMORY).unwrap();
    compare(&rig, &other, "x".into()).unwrap();
    for page in [9, 700] {
        other.write(Oa(page * PAGE_SIZE + 4095), &[4]).unwrap();
    }
    let error = compare(&rig, &other, "iommu 4K".into()).unwrap_err();
    let text = "After a migration with iommu 4K 2 pages differ, the first at page 9";
    assert_eq!(error.to_string(), text);
}

#[test]
fn a_device_that_fails_is_an_error_not_a_figure() {
    let rig = rig(ProviderKind::Iommu);
    let folder = tempfile::tempdir().unwrap();
    let beyond = Load { first: MEMORY / PAGE_SIZE, pages: 4, rate: 100_000 };
    let destination = HeapMemory::new(MEMORY);
    let failed = migrate(&rig, beyond, &destination, folder.path());
    assert!(failed.is_err(), "{failed:?}");
    rig.start().unwrap();
}
