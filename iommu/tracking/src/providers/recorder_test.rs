use std::sync::Arc;

use drogher_iommu::{Domain, DomainConfig, HeapMemory, Oa, Perm, Requester};
use drogher_iommu_types::{DirtyBitmap, Gpa, Iova, PAGE_SIZE, Rid};

use crate::provider::{Class, Coverage, Provider, ProviderError, ProviderKind};
use crate::providers::{FaultProvider, IommuProvider};
use crate::{AddressSpace, AddressSpaceError, Sink, TrackMode, TrackingPageSize};

fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

fn domain() -> (Domain, Requester) {
    let memory = Arc::new(HeapMemory::new(64 * PAGE_SIZE));
    let domain = Domain::new(memory, DomainConfig::default()).expect("valid");
    domain.map(page(0)..page(64), Oa(0), Perm::READ_WRITE).expect("free");
    let device = domain.attach(Rid(8)).expect("new");
    (domain, device)
}

fn harvest(provider: &mut dyn Provider) -> Vec<u64> {
    let ram = [page(0)..page(64)];
    let bitmap = || DirtyBitmap::new(page(0)..page(64)).expect("aligned");
    let (into, rest, scratch) = (bitmap(), bitmap(), bitmap());
    into.set(page(63)).expect("inside");
    let sink = Sink::new(page(0)..page(64), &ram, &into, &rest, &scratch);
    provider.harvest(&sink).expect("drained");
    assert!(into.test(page(63)), "bits of the caller's stay");
    into.runs().flat_map(|run| run.start.page()..run.end.page()).filter(|p| *p != 63).collect()
}

#[test]
fn d_bits_are_reported_once_in_the_page_size_asked_for() {
    let (domain, device) = domain();
    let mut provider = IommuProvider::new(Arc::new(domain), TrackingPageSize::K4);
    assert_eq!((provider.class(), provider.covers()), (Class::Exact, Coverage::Space));
    provider.start().expect("nothing is in flight");
    device.write(Iova(5 * PAGE_SIZE), &[1]).expect("mapped");
    device.read(Iova(9 * PAGE_SIZE), &mut [0]).expect("mapped");
    assert_eq!(harvest(&mut provider), [5], "reading makes nothing dirty");
    assert_eq!(harvest(&mut provider), [0u64; 0]);
    assert!(provider.set_page_size(TrackingPageSize::K64));
    device.write(Iova(5 * PAGE_SIZE), &[1]).expect("mapped");
    assert_eq!(harvest(&mut provider), (0..16).collect::<Vec<_>>());
    provider.stop().expect("it runs");
}

#[test]
fn twice_or_while_off_is_an_error() {
    let (domain, _device) = domain();
    let mut provider = IommuProvider::new(Arc::new(domain.clone()), TrackingPageSize::K4);
    let off =
        |result| matches!(result, Err(ProviderError::NotStarted { provider: ProviderKind::Iommu }));
    assert!(off(provider.stop()));
    provider.start().expect("nothing is in flight");
    let again = provider.start();
    assert!(matches!(again, Err(ProviderError::AlreadyStarted { .. })));
    assert!(domain.is_tracking());
    provider.stop().expect("it runs");
    assert!(off(provider.stop()) && !domain.is_tracking());
    // Somebody else's tracking is not taken over.
    domain.start_tracking().expect("off");
    assert!(matches!(provider.start(), Err(ProviderError::AddressSpace(_))));
    drop(provider);
    assert!(domain.is_tracking(), "and not stopped");
}

#[test]
fn a_provider_that_is_dropped_leaves_no_recording_behind() {
    let (domain, _device) = domain();
    let mut provider = IommuProvider::new(Arc::new(domain.clone()), TrackingPageSize::K4);
    provider.start().expect("off");
    drop(provider);
    assert!(!domain.is_tracking());
}

#[test]
fn a_mode_that_the_domain_has_not_is_refused() {
    let (domain, _device) = domain();
    let space: Arc<dyn AddressSpace> = Arc::new(domain);
    let can = space.supports(TrackMode::WriteFault);
    let mut provider = FaultProvider::new(space, TrackingPageSize::K4);
    match provider.start() {
        Ok(()) => assert!(can),
        Err(ProviderError::AddressSpace(AddressSpaceError::Mode { mode })) => {
            assert!(!can);
            assert_eq!(mode, TrackMode::WriteFault);
        }
        Err(other) => panic!("{other}"),
    }
}
