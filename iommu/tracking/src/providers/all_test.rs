use std::sync::Arc;

use drogher_iommu::{Domain, DomainConfig, HeapMemory, Oa, Perm};
use drogher_iommu_types::{DirtyBitmap, Gpa, PAGE_SIZE};

use crate::Sink;
use crate::provider::{Class, Provider};
use crate::providers::AllProvider;

fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

#[test]
fn mapped_and_writable_pages_each_time_and_no_others() {
    let memory = Arc::new(HeapMemory::new(300 * PAGE_SIZE));
    let domain = Domain::new(memory, DomainConfig::default()).expect("valid");
    domain.map(page(3)..page(70), Oa(0), Perm::READ_WRITE).expect("free");
    domain.map(page(100)..page(110), Oa(0), Perm::READ).expect("free");
    domain.map(page(128)..page(131), Oa(0), Perm::READ_WRITE).expect("free");
    let mut provider = AllProvider::new(Arc::new(domain));
    let ram = [page(0)..page(300)];
    let bitmap = || DirtyBitmap::new(page(0)..page(300)).expect("aligned");
    let (rest, scratch) = (bitmap(), bitmap());
    assert_eq!(provider.class(), Class::AllMapped);
    provider.start().expect("off");
    for (range, expected) in [
        (page(0)..page(300), (3..70).chain(128..131).collect::<Vec<u64>>()),
        (page(0)..page(300), (3..70).chain(128..131).collect()),
        (page(5)..page(129), (5..70).chain(128..129).collect()),
        (page(69)..page(71), vec![69]),
    ] {
        let into = bitmap();
        let sink = Sink::new(range, &ram, &into, &rest, &scratch);
        let stats = provider.harvest(&sink).expect("covered");
        let found: Vec<u64> =
            into.runs().flat_map(|run| run.start.page()..run.end.page()).collect();
        assert_eq!(found, expected);
        assert_eq!(stats.pages.0, expected.len() as u64);
    }
    provider.stop().expect("it runs");
    let into = bitmap();
    assert!(provider.harvest(&Sink::new(page(0)..page(9), &ram, &into, &rest, &scratch)).is_err());
    assert!(provider.stop().is_err());
}
