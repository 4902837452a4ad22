use drogher_iommu::{DomainConfig, Gpa, HeapMemory, Oa, Perm};

use super::*;

#[test]
fn dma_passes_only_while_the_bit_is_set() {
    let memory = Arc::new(HeapMemory::new(0x4000));
    let domain = Domain::new(memory, DomainConfig::default()).expect("a small domain");
    domain.map(Gpa(0)..Gpa(0x4000), Oa(0), Perm::READ_WRITE).expect("nothing is mapped yet");
    let (bus_master, requester) = BusMaster::attach(&domain, Rid(8)).expect("a free RID");
    assert!(requester.write(Iova(0x1000), b"before").is_err());
    bus_master.set(true);
    requester.write(Iova(0x1000), b"during").expect("the gate is open");
    bus_master.set(false);
    assert!(requester.write(Iova(0x1000), b"behind").is_err(), "not from the IOTLB either");
    requester.revoke().expect("nothing in flight");
    bus_master.set(true);
    assert!(requester.write(Iova(0x1000), b"behind").is_err(), "revoked by another");
    requester.restore();
    let mut data = [0; 6];
    requester.read(Iova(0x1000), &mut data).expect("both allow it");
    assert_eq!(&data, b"during");
}
