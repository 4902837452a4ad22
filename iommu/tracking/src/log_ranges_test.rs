use std::ops::Range;

use drogher_iommu_types::{Gpa, PAGE_SIZE};

use crate::TrackingPageSize;
use crate::log_ranges::{LogRangesError, MAX_LOG_RANGES, check, cover};

fn pages(start: u64, end: u64) -> Range<Gpa> {
    Gpa(start * PAGE_SIZE)..Gpa(end * PAGE_SIZE)
}

#[test]
fn each_rule_has_its_own_error() {
    let size = TrackingPageSize::K16;
    assert_eq!(check(&[pages(0, 4), pages(4, 8), pages(12, 16)], size), Ok(()));
    assert_eq!(check(&[], size), Err(LogRangesError::None));
    let many: Vec<_> = (0..257).map(|n| pages(n * 8, n * 8 + 4)).collect();
    let error = check(&many, size);
    assert_eq!(error, Err(LogRangesError::TooMany { count: 257, max: MAX_LOG_RANGES }));
    assert_eq!(check(&many[..256], size), Ok(()));
    let at = |number| Gpa(number * PAGE_SIZE);
    assert_eq!(check(&[pages(4, 4)], size), Err(LogRangesError::Empty { start: at(4) }));
    assert_eq!(
        check(&[pages(8, 4)], size),
        Err(LogRangesError::Wraps { start: at(8), end: at(4) })
    );
    assert_eq!(
        check(&[pages(0, 6)], size),
        Err(LogRangesError::Misaligned { start: at(0), end: at(6), page_size: size })
    );
    assert_eq!(
        check(&[pages(8, 12), pages(0, 4)], size),
        Err(LogRangesError::Unsorted { before: at(8), start: at(0) })
    );
    assert_eq!(
        check(&[pages(0, 8), pages(4, 12)], size),
        Err(LogRangesError::Overlap { start: at(4), end: at(8) })
    );
}

#[test]
fn covers_are_good_ranges_and_hold_all_ram() {
    // A hole below 4 GiB, ends not aligned to 2M, and two pieces that meet when grown.
    let ram = [pages(0, 100), pages(130, 700), pages(5000, 5001), pages(1 << 20, (1 << 20) + 9)];
    for size in [TrackingPageSize::K4, TrackingPageSize::K64, TrackingPageSize::M2] {
        for max in [0, 1, 2, 3, 256] {
            let ranges = cover(&ram, size, max);
            assert_eq!(check(&ranges, size), Ok(()), "{size} {max}");
            assert!(ranges.len() <= max.max(1));
            for piece in &ram {
                let inside = ranges.iter().any(|r| r.start <= piece.start && piece.end <= r.end);
                assert!(inside, "{piece:?} is not in {ranges:?}");
            }
        }
    }
    let two = cover(&ram, TrackingPageSize::K4, 2);
    assert_eq!(two, [pages(0, 5001), pages(1 << 20, (1 << 20) + 9)], "the small gaps go first");
    assert_eq!(cover(&[], TrackingPageSize::K4, 9), []);
}
