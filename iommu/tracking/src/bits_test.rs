use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, PAGE_SIZE, PageCount};

use crate::bits::{meet, move_bits, set_pages};

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
fn only_the_range_moves_whatever_the_bases() {
    for (base, other) in [(0, 0), (3, 0), (64, 1), (70, 5)] {
        for start in [0u64, 1, 63, 64, 65, 100] {
            for end in [start, start + 1, 128, 129, 190] {
                let (from, into) = (bitmap(base, base + 190), bitmap(other, 400));
                from.set_range(from.range()).expect("its own");
                let range = page(base + start)..page(base + end.max(start));
                let moved = move_bits(&from, &range, &into).expect("covered");
                let expected: Vec<u64> = (range.start.page()..range.end.page()).collect();
                assert_eq!(pages(&into), expected, "base {base} {start}..{end}");
                assert_eq!(moved, PageCount(expected.len() as u64));
                assert_eq!(from.count().0 + moved.0, 190);
            }
        }
    }
}

#[test]
fn bits_that_were_there_stay() {
    let (from, into) = (bitmap(0, 10), bitmap(0, 10));
    from.set_range(page(2)..page(5)).expect("inside");
    into.set_range(page(4)..page(6)).expect("inside");
    let moved = move_bits(&from, &(page(0)..page(10)), &into).expect("covered");
    assert_eq!(moved, PageCount(3));
    assert_eq!(pages(&into), [2, 3, 4, 5]);
}

#[test]
fn a_bit_that_has_no_place_stays_where_it_was() {
    let (from, into) = (bitmap(0, 10), bitmap(0, 5));
    from.set(page(7)).expect("inside");
    let refused = move_bits(&from, &(page(0)..page(10)), &into);
    assert!(matches!(refused, Err(BitmapError::Outside { .. })));
    assert_eq!(pages(&from), [7]);
}

#[test]
fn set_pages_counts_what_it_sets() {
    let map = bitmap(5, 300);
    map.set(page(200)).expect("inside");
    let stats = set_pages(&(page(100)..page(231)), &map).expect("inside");
    assert_eq!(stats, PageCount(131));
    assert_eq!(pages(&map), (100..231).collect::<Vec<_>>());
    assert!(set_pages(&(page(299)..page(301)), &map).is_err());
}

#[test]
fn ranges_that_do_not_meet_are_empty() {
    assert!(meet(&(page(0)..page(2)), &(page(5)..page(9))).is_empty());
    assert_eq!(meet(&(page(0)..page(6)), &(page(5)..page(9))), page(5)..page(6));
}
