use drogher_iommu_types::{DirtyBitmap, Gpa, PAGE_SIZE, PageCount};

use crate::TrackingPageSize;
use crate::provider::{ProviderError, ProviderKind};
use crate::sink::Sink;

fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

fn bitmap(start: u64, end: u64) -> DirtyBitmap {
    DirtyBitmap::new(page(start)..page(end)).expect("aligned")
}

fn pages(bitmap: &DirtyBitmap) -> Vec<u64> {
    bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect()
}

#[test]
fn a_tracking_page_cut_by_the_range_is_reported_in_two_harvests() {
    let ram = [page(0)..page(64)];
    let (into, rest, scratch) = (bitmap(0, 64), bitmap(0, 64), bitmap(0, 64));
    let sink = Sink::new(page(0)..page(24), &ram, &into, &rest, &scratch);
    let stats = sink
        .widened(TrackingPageSize::K64, |range, out| {
            assert_eq!(*range, page(0)..page(32), "whole tracking pages");
            // Written at page 30; the log's one bit for it is cleared now.
            Ok(out.set(page(30)).map(drop)?)
        })
        .expect("covered");
    assert_eq!(stats.pages, PageCount(8));
    assert_eq!(pages(&into), (16..24).collect::<Vec<_>>());
    assert_eq!(pages(&rest), (24..32).collect::<Vec<_>>(), "or page 30 would be lost");
    assert!(scratch.is_clean());
}

#[test]
fn what_is_no_ram_is_not_reported() {
    let ram = [page(0)..page(10), page(20)..page(40)];
    let (into, rest, scratch) = (bitmap(0, 40), bitmap(0, 40), bitmap(0, 40));
    let sink = Sink::new(page(0)..page(40), &ram, &into, &rest, &scratch);
    sink.widened(TrackingPageSize::M2, |_, out| Ok(out.set(page(3)).map(drop)?)).expect("covered");
    assert_eq!(pages(&into), (0..10).chain(20..40).collect::<Vec<_>>());
    assert!(rest.is_clean() && scratch.is_clean());
}

#[test]
fn what_was_read_before_a_failure_is_not_lost() {
    let ram = [page(0)..page(32)];
    let (into, rest, scratch) = (bitmap(0, 32), bitmap(0, 32), bitmap(0, 32));
    let sink = Sink::new(page(0)..page(32), &ram, &into, &rest, &scratch);
    let result = sink.widened(TrackingPageSize::K4, |_, out| {
        out.set(page(3))?;
        Err(ProviderError::NotStarted { provider: ProviderKind::Device })
    });
    assert!(matches!(result, Err(ProviderError::NotStarted { .. })));
    assert_eq!(pages(&into), [3]);
    assert!(scratch.is_clean());
}
