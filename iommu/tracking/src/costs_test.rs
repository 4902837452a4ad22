use super::*;
use crate::provider::ProviderKind as P;

const K4: TrackingPageSize = TrackingPageSize::K4;
const K64: TrackingPageSize = TrackingPageSize::K64;

fn costs(all: &[(P, TrackingPageSize, u64)]) -> Costs {
    let one = |(provider, page_size, ns): &(P, TrackingPageSize, u64)| Measured {
        provider: *provider,
        page_size: *page_size,
        harvest_ns: 0,
        dma_ns: 0,
        resend_ns: *ns,
    };
    Costs { measured: all.iter().map(one).collect() }
}

fn best(all: &[(P, TrackingPageSize, u64)]) -> (P, TrackingPageSize) {
    let costs = costs(all);
    let best = costs.best(|cost| Some(cost.total_ns())).expect("not empty");
    (best.provider, best.page_size)
}

#[test]
fn the_cheapest_of_all_classes() {
    let exact = [(P::Iommu, K4, 500), (P::Device, K64, 400), (P::Fault, K4, 900)];
    assert_eq!(best(&exact), (P::Device, K64));
    assert_eq!(best(&[exact[0], (P::Pinned, K4, 300), (P::All, K4, 9000)]), (P::Pinned, K4));
    assert_eq!(best(&[exact[0], (P::All, K4, 1)]), (P::All, K4));
}

#[test]
fn of_what_costs_about_the_same_the_narrowest() {
    assert_eq!(
        best(&[(P::All, K4, 100), (P::Iommu, K4, 110), (P::Fault, K4, 111)]),
        (P::Iommu, K4)
    );
    assert_eq!(best(&[(P::All, K4, 100), (P::Iommu, K4, 111)]), (P::All, K4));
    assert_eq!(best(&[(P::All, K4, 100), (P::Pinned, K4, 101), (P::Iommu, K4, 105)]).0, P::Iommu);
    // Within a class the cheaper, however near.
    assert_eq!(best(&[(P::Iommu, K4, 101), (P::Device, K4, 100)]).0, P::Device);
}

#[test]
fn what_is_not_to_be_had_does_not_count() {
    let costs = costs(&[(P::Device, K4, 1), (P::Iommu, K4, 500)]);
    let only = |kind| move |cost: &Measured| (cost.provider == kind).then_some(cost.total_ns());
    assert_eq!(costs.best(only(P::Iommu)).expect("one").provider, P::Iommu);
    assert_eq!(costs.best(only(P::Fault)), None);
    assert_eq!(Costs::default().best(only(P::Iommu)), None);
}
