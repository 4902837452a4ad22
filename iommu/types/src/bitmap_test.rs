use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{BitmapError, DirtyBitmap, Gpa, PAGE_SIZE, PageCount};

fn page(number: u64) -> Gpa {
    Gpa(number * PAGE_SIZE)
}

fn bitmap(pages: Range<u64>) -> DirtyBitmap {
    DirtyBitmap::new(page(pages.start)..page(pages.end)).expect("aligned")
}

fn set_pages(bitmap: &DirtyBitmap) -> Vec<u64> {
    bitmap.runs().flat_map(|run| run.start.page()..run.end.page()).collect()
}

#[test]
fn a_set_bit_is_seen_once_and_only_there() {
    let map = bitmap(3..200);
    assert_eq!(map.set(Gpa(67 * PAGE_SIZE + 5)), Ok(true));
    assert_eq!(map.set(page(67)), Ok(false));
    assert!(map.test(page(67)));
    assert!(!map.test(page(66)) && !map.test(page(68)) && !map.test(page(2)));
    assert_eq!(map.count(), PageCount(1));
}

#[test]
fn pages_outside_are_an_error_with_both_ranges() {
    let map = bitmap(3..8);
    let outside = |start, end| BitmapError::Outside {
        start: page(start),
        end: page(end),
        covered_start: page(3),
        covered_end: page(8),
    };
    assert_eq!(map.set(page(2)), Err(outside(2, 3)));
    assert_eq!(map.set(page(8)), Err(outside(8, 9)));
    assert_eq!(map.set_range(page(7)..page(9)), Err(outside(7, 9)));
    assert_eq!(map.clear_range(page(0)..page(4)), Err(outside(0, 4)));
    assert!(map.is_clean());
    assert!(map.set(Gpa(u64::MAX)).is_err());
}

#[test]
fn a_range_of_part_pages_is_refused_where_it_would_round_inwards() {
    let odd = Gpa(5)..page(2);
    assert!(matches!(DirtyBitmap::new(odd.clone()), Err(BitmapError::Misaligned { .. })));
    assert!(matches!(bitmap(0..8).clear_range(odd), Err(BitmapError::Misaligned { .. })));
    let map = bitmap(0..8);
    map.set_range(Gpa(PAGE_SIZE + 5)..Gpa(2 * PAGE_SIZE + 1)).expect("inside");
    assert_eq!(set_pages(&map), [1, 2]);
}

#[test]
fn every_start_and_end_in_three_words() {
    for base in [0, 5] {
        for start in 0..130 {
            for end in start..=130 {
                let map = bitmap(base..base + 130);
                let fresh = map.or_range(page(base + start)..page(base + end));
                assert_eq!(fresh, Ok(end - start));
                assert_eq!(map.or_range(page(base + start)..page(base + end)), Ok(0));
                let expected: Vec<u64> = (base + start..base + end).collect();
                assert_eq!(set_pages(&map), expected);
                map.clear_range(page(base + start)..page(base + end)).expect("inside");
                assert!(map.is_clean());
            }
        }
    }
}

#[test]
fn a_mask_lands_at_any_alignment_and_before_the_base() {
    for base in [0, 3, 64, 70] {
        for first in 0..200u64 {
            let map = bitmap(base..base + 300);
            let mask = 0x8000_0000_0000_0001u64 | 1 << 17;
            let pages = [first, first + 17, first + 63];
            let result = map.or_mask(page(first), mask);
            if pages.iter().all(|p| *p >= base && *p < base + 300) {
                assert_eq!(result, Ok(3));
                assert_eq!(set_pages(&map), pages);
            } else {
                assert!(matches!(result, Err(BitmapError::Outside { .. })));
                assert!(map.is_clean());
            }
        }
    }
    // Clear bits of the mask may lie outside.
    let map = bitmap(10..12);
    assert_eq!(map.or_mask(page(0), 0b11 << 10), Ok(2));
    assert_eq!(set_pages(&map), [10, 11]);
}

#[test]
fn or_keeps_bits_that_were_set_before() {
    let (map, other) = (bitmap(0..100), bitmap(10..90));
    map.set(page(50)).expect("inside");
    other.set_range(page(20)..page(23)).expect("inside");
    map.or_from(&other).expect("covered");
    assert_eq!(set_pages(&map), [20, 21, 22, 50]);
    assert_eq!(other.count(), PageCount(3));
}

#[test]
fn taking_moves_every_bit() {
    let (map, other) = (bitmap(0..300), bitmap(0..400));
    map.set_range(page(60)..page(70)).expect("inside");
    map.take_into(&other).expect("covered");
    assert!(map.is_clean());
    let taken = other.take();
    assert!(other.is_clean());
    assert_eq!(set_pages(&taken), (60..70).collect::<Vec<_>>());
    let mut words = Vec::new();
    taken.take_words(|first, bits| words.push((first.page(), bits.count_ones())));
    assert_eq!(words, [(0, 4), (64, 6)]);
    assert!(bitmap(0..2).take_into(&bitmap(1..3)).is_err());
}

#[test]
fn an_empty_bitmap_is_fine() {
    let map = bitmap(7..7);
    assert_eq!(map.pages(), PageCount(0));
    assert_eq!(map.runs().next(), None);
    assert!(map.set(page(7)).is_err());
}

#[test]
fn regions_of_any_size_do_not_disturb_their_neighbours() {
    for size in 1..=130 {
        let map = bitmap(0..size * 3);
        map.set_range(page(size)..page(2 * size)).expect("inside");
        map.set_range(page(0)..page(size)).expect("inside");
        map.clear_range(page(size)..page(2 * size)).expect("inside");
        assert_eq!(map.count(), PageCount(size));
        assert!(!map.test(page(size)) && map.test(page(size - 1)));
    }
}

#[test]
fn concurrent_writers_lose_no_bit_to_the_harvester() {
    let map = bitmap(0..64);
    let taken = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u64)
            .map(|writer| {
                let map = &map;
                scope.spawn(move || {
                    // A bit is set again only once it was taken: each set is seen by one take.
                    let mut fresh = 0u64;
                    for step in 0..200_000u64 {
                        let number = (step * 7 + writer * 13) % 64;
                        fresh += u64::from(map.set(page(number)).expect("inside"));
                    }
                    fresh
                })
            })
            .collect();
        let mut taken = 0u64;
        while writers.iter().any(|writer| !writer.is_finished()) {
            map.take_words(|_, bits| taken += u64::from(bits.count_ones()));
        }
        let fresh: u64 = writers.into_iter().map(|w| w.join().expect("no panic")).sum();
        map.take_words(|_, bits| taken += u64::from(bits.count_ones()));
        (fresh, taken)
    });
    assert_eq!(taken.0, taken.1);
}

#[test]
fn words_are_laid_out_as_documented() {
    let map = bitmap(5..200);
    map.set(page(5 + 64 + 3)).expect("inside");
    let words: Vec<u64> = map.words().iter().map(|w| w.load(Ordering::Acquire)).collect();
    assert_eq!(words, [0, 8, 0, 0]);
}

/// Whole words are stored and single bits ORed. A page is written before its bit is set, so a taker
/// who reads the pages that it has taken must in the end have read the last of every page. Many short
/// races: a loss that a later write makes good would not be seen.
#[test]
fn whole_words_and_single_bits_lose_nothing_of_each_other() {
    const PAGES: u64 = 64;
    let map = bitmap(0..PAGES);
    for race in 1..=3000u64 {
        // What each of two threads has written, by page.
        let written: [Vec<AtomicU64>; 2] =
            [0, 1].map(|_| (0..PAGES).map(|_| AtomicU64::new(0)).collect());
        let now =
            |number: usize| [0, 1].map(|of: usize| written[of][number].load(Ordering::Relaxed));
        let mut read = vec![[0; 2]; PAGES as usize];
        let mut take = || {
            map.take_words(|_, bits| {
                for number in (0..64).filter(|bit| bits >> bit & 1 == 1) {
                    read[number] = now(number);
                }
            });
        };
        let write = |of: usize, whole: bool| {
            for step in 0..PAGES {
                let number = (step * 5 + race) % PAGES;
                written[of][number as usize].store(race, Ordering::Relaxed);
                let pages = if whole { 0..PAGES } else { number..number + 1 };
                map.set_range(page(pages.start)..page(pages.end)).expect("inside");
            }
        };
        std::thread::scope(|scope| {
            let threads = [scope.spawn(|| write(0, true)), scope.spawn(|| write(1, false))];
            while threads.iter().any(|thread| !thread.is_finished()) {
                take();
            }
        });
        take();
        let last: Vec<_> = (0..PAGES as usize).map(now).collect();
        assert_eq!(read, last, "race {race}: a page was written, and nobody was told");
    }
}
