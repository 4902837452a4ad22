use std::sync::Arc;

use drogher_iommu_types::{DirtyBitmap, Gpa, PAGE_SIZE, Rid};

use crate::provider::{Class, Coverage, Provider, ProviderError};
use crate::providers::PinnedProvider;
use crate::{PinAccess, PinBoard, Sink, TrackingPageSize};

fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

fn harvest(provider: &mut PinnedProvider) -> Result<Vec<u64>, ProviderError> {
    let ram = [page(0)..page(64)];
    let bitmap = || DirtyBitmap::new(page(0)..page(64)).expect("aligned");
    let (into, rest, scratch) = (bitmap(), bitmap(), bitmap());
    provider.harvest(&Sink::new(page(0)..page(64), &ram, &into, &rest, &scratch))?;
    Ok(into.runs().flat_map(|run| run.start.page()..run.end.page()).collect())
}

#[test]
fn pins_are_reported_in_the_page_size_asked_for() {
    let board = Arc::new(PinBoard::new(page(0)..page(64)));
    let mut provider = PinnedProvider::new(Rid(8), board.clone(), TrackingPageSize::K4);
    assert_eq!((provider.class(), provider.covers()), (Class::Pinned, Coverage::Device(Rid(8))));
    assert!(matches!(harvest(&mut provider), Err(ProviderError::NotStarted { .. })));
    provider.start().expect("off");
    assert!(matches!(provider.start(), Err(ProviderError::AlreadyStarted { .. })));
    assert_eq!(harvest(&mut provider).expect("on"), [0u64; 0], "nothing is pinned");
    board.pin(page(5)..page(6), PinAccess::Write).expect("inside");
    assert_eq!(harvest(&mut provider).expect("on"), [5]);
    assert!(provider.set_page_size(TrackingPageSize::K16));
    assert_eq!(harvest(&mut provider).expect("on"), [4, 5, 6, 7]);
    board.unpin(page(5)..page(6), PinAccess::Write).expect("pinned");
    assert_eq!(harvest(&mut provider).expect("on"), [4, 5, 6, 7]);
    assert_eq!(harvest(&mut provider).expect("on"), [0u64; 0]);
    provider.stop().expect("on");
    assert!(provider.stop().is_err());
}
