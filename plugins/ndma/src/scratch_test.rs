use super::*;

#[test]
fn a_store_marks_each_page_it_touches() {
    let mut scratch = Scratch::new(4);
    assert!(scratch.store(PAGE as u64 - 1, &[1, 2]));
    assert_eq!(scratch.dirty_among_first(4), 2);
    assert_eq!(scratch.dirty_among_first(1), 1);
    assert_eq!(scratch.next_dirty(0), Some(0));
    assert_eq!(scratch.take(0).unwrap()[PAGE - 1], 1);
    assert_eq!(scratch.next_dirty(0), Some(1));
    assert_eq!(scratch.take(1).unwrap()[0], 2);
    assert_eq!(scratch.next_dirty(0), None);
}

#[test]
fn a_page_aligned_store_marks_no_neighbour() {
    let mut scratch = Scratch::new(3);
    assert!(scratch.store(PAGE as u64, &[9; PAGE]));
    assert_eq!(scratch.dirty_among_first(3), 1);
    assert_eq!(scratch.next_dirty(0), Some(1));
}

#[test]
fn the_search_wraps() {
    let mut scratch = Scratch::new(4);
    assert!(scratch.store(0, &[1]));
    assert_eq!(scratch.next_dirty(1), Some(0));
    assert_eq!(scratch.next_dirty(4), Some(0));
    assert_eq!(scratch.next_dirty(99), Some(0));
}

#[test]
fn ranges_outside_are_refused_whole() {
    let mut scratch = Scratch::new(1);
    let mut out = [7; 2];
    for offset in [PAGE as u64 - 1, PAGE as u64, u64::MAX - 1, u64::MAX] {
        assert!(!scratch.store(offset, &[1, 2]));
        assert!(!scratch.load(offset, &mut out));
    }
    assert_eq!(out, [7; 2]);
    assert_eq!(scratch.dirty_among_first(1), 0);
    assert!(scratch.take(1).is_none());
    assert!(!scratch.replace(vec![0; PAGE + 1]));
}

#[test]
fn a_wipe_is_a_write() {
    let mut scratch = Scratch::new(2);
    assert!(scratch.store(0, &[1; 2 * PAGE]));
    scratch.take(0);
    scratch.take(1);
    scratch.wipe();
    assert_eq!(scratch.dirty_among_first(2), 2);
    assert!(scratch.take(1).unwrap().iter().all(|byte| *byte == 0));
}
