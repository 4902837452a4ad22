use crate::Gpa;
use crate::log::{DirtyLog, mask};

fn page(number: u64) -> Gpa {
    Gpa(number * crate::PAGE_SIZE)
}

fn taken(log: &mut DirtyLog, first: u64, end: u64) -> Vec<u64> {
    let mut pages = Vec::new();
    log.take(&(page(first)..page(end)), |start, bits| {
        pages.extend((0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| start.page() + bit));
    });
    pages
}

#[test]
fn every_cut_of_three_words() {
    for first in 0..=192 {
        for end in first..=192 {
            let mut log = DirtyLog::default();
            for number in 0..192 {
                log.set_mask(page(number), 1);
            }
            assert_eq!(taken(&mut log, first, end), (first..end).collect::<Vec<_>>());
            let rest: Vec<u64> = (0..first).chain(end..192).collect();
            assert_eq!(taken(&mut log, 0, 192), rest);
            assert_eq!(taken(&mut log, 0, 192), []);
        }
    }
}

#[test]
fn what_is_appended_joins_what_was_there() {
    let (mut log, mut other) = (DirtyLog::default(), DirtyLog::default());
    log.set_mask(page(3), 1);
    other.set_mask(page(0), 0b101);
    other.set_mask(page(1 << 36), 1);
    log.append(other);
    assert_eq!(taken(&mut log, 0, 1 << 36), [0, 2, 3]);
    log.clear();
    assert_eq!(taken(&mut log, 0, 1 << 37), []);
}

#[test]
fn masks_at_the_edges() {
    assert_eq!(mask(0, 64), u64::MAX);
    assert_eq!(mask(63, 64), 1 << 63);
    assert_eq!(mask(0, 1), 1);
    assert_eq!(mask(3, 6), 0b111000);
}
