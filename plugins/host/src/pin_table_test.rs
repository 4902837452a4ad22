use super::*;
use drogher_iommu::{Domain, DomainConfig, HeapMemory, Oa, Perm};
use drogher_iommu_types::{PAGE_SIZE, Rid};

#[test]
fn there_is_a_most_of_pins() {
    let domain = Domain::new(Arc::new(HeapMemory::new(PAGE_SIZE)), DomainConfig::default());
    let domain = domain.expect("valid");
    domain.map(Gpa(0)..Gpa(PAGE_SIZE), Oa(0), Perm::READ_WRITE).expect("free");
    let requester = domain.attach(Rid(8)).expect("first");
    let pins = PinTable::new(domain.span(), false);
    let mut handles = Vec::new();
    let refused = loop {
        match pins.pin(&requester, 0, 8, Access::Write) {
            Ok(given) => handles.push(given.handle),
            Err(refusal) => break refusal,
        }
    };
    assert!(matches!(refused, PinRefusal::TooMany), "{refused:?}");
    assert_eq!((handles.len(), pins.counts()), (MAX_PINS, (MAX_PINS, MAX_PINS)));
    assert_eq!(pins.pinned_in(&(Gpa(0)..Gpa(1))), [(0, 1)], "each part once");
    assert!(handles.drain(..).all(|handle| pins.unpin(handle)));
    assert_eq!((pins.counts(), pins.board.stats().pins), ((0, 0), 0));
}

#[test]
fn what_was_mapped_later_is_not_pinned() {
    let domain = Domain::new(Arc::new(HeapMemory::new(PAGE_SIZE)), DomainConfig::default());
    let domain = domain.expect("valid");
    let pins = PinTable::new(domain.span(), false);
    domain.map(Gpa(0)..Gpa(PAGE_SIZE), Oa(0), Perm::READ_WRITE).expect("free");
    let requester = domain.attach(Rid(8)).expect("first");
    // The board has no bit for it.
    let refused = pins.pin(&requester, 0, 8, Access::Write).err();
    assert!(matches!(refused, Some(PinRefusal::NoMemory)), "{refused:?}");
    assert_eq!(pins.counts(), (0, 0));
}
