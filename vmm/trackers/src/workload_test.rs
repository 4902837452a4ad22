use std::sync::Arc;

use drogher_iommu::{DomainConfig, HeapMemory, Iova, Oa, Perm, Rid};

use super::*;

fn written(runs: &[Range<u64>]) -> Workload {
    Workload { written: runs.to_vec(), ..Workload::default() }
}

#[test]
fn what_each_page_size_would_report() {
    let load = written(&[3..5, 6..7, 15..17, 40..41, 511..1025]);
    assert_eq!(load.pages(), PageCount(2 + 1 + 2 + 1 + 514));
    let count = |size: &str| load.tracking_pages(size.parse().unwrap());
    assert_eq!(count("4K"), 520);
    // Pairs 1, 2, 3, 7, 8, 20, and 255 to 512.
    assert_eq!(count("8K"), 6 + 258);
    // Sixteens 0, 1, 2, and 31 to 64.
    assert_eq!(count("64K"), 3 + 34);
    assert_eq!(count("2M"), 3);
    let reported = |size: &str, ram| load.reported(size.parse().unwrap(), PageCount(ram)).0;
    assert_eq!(reported("64K", 4096), 37 * 16);
    assert_eq!(reported("2M", 4096), 3 * 512);
    assert_eq!(reported("2M", 1030), 1030, "there is no more RAM");
    assert_eq!(written(&[]).tracking_pages(TrackingPageSize::M2), 0);
}

#[test]
fn a_sample_of_a_device_at_work() {
    let memory = Arc::new(HeapMemory::new(64 * PAGE_SIZE));
    let domain = Domain::new(memory, DomainConfig::default()).unwrap();
    let ram = Gpa(0)..Gpa(64 * PAGE_SIZE);
    domain.map(ram.clone(), Oa(0), Perm::READ_WRITE).unwrap();
    let device = domain.attach(Rid(8)).unwrap();
    device.write(Iova(0), &[1]).unwrap();
    let write = |page: u64, len: usize| device.write(Iova(page * PAGE_SIZE), &vec![1; len]);
    let devices = [device.clone()];
    let load = Workload::sample(&domain, &devices, ram.clone(), None, || {
        write(7, 100).unwrap();
        write(7, 100).unwrap();
        write(9, 3 * 4096).unwrap();
        Ok(())
    });
    let expected =
        Workload { accesses: 3, bytes: 200 + 3 * 4096, written: vec![7..8, 9..12], pinned: None };
    assert_eq!(load.unwrap(), expected);
    assert!(!domain.is_tracking());
    // A sample that fails leaves nothing on either.
    let failed = Workload::sample(&domain, &devices, ram, None, || Err(TrackersError::Interrupted));
    assert!(matches!(failed, Err(TrackersError::Interrupted)));
    assert!(!domain.is_tracking());
}
