#![allow(clippy::single_range_in_vec_init, reason = "a list of one range is meant")]

use super::*;

fn start(ranges: &[Range<u64>]) -> LogStart {
    LogStart { ranges: ranges.to_vec(), page_size: 4096, bitmap: None }
}

fn taken(bits: &OwnBits, gpa: u64, pages: u64) -> Vec<u64> {
    let mut words = vec![0; pages.div_ceil(64) as usize];
    bits.take(gpa, &mut LogReport::new(&mut words, pages));
    (0..pages).filter(|page| words[(page / 64) as usize] >> (page % 64) & 1 != 0).collect()
}

#[test]
fn every_run_marks_the_pages_that_it_touches() {
    for from in [0x10000, 0x10001, 0x10FFF, 0x4F000, 0x50000, 0x51234] {
        for len in [1, 2, 4096, 4097, 0x40000, 0x45678] {
            let bits = OwnBits::new(&start(&[0x10000..0x20000, 0x30000..0x100000]), 4096);
            bits.mark(&(from..from + len));
            let (first, last) = ((from - 0x10000) >> 12, (from + len - 1 - 0x10000) >> 12);
            assert_eq!(taken(&bits, 0x10000, 256), (first..=last).collect::<Vec<_>>());
            assert_eq!(taken(&bits, 0x10000, 256), [0; 0], "taken is taken");
        }
    }
}

#[test]
fn what_is_outside_has_no_bit_and_breaks_nothing() {
    let bits = OwnBits::new(&start(&[0x10000..0x20000]), 0x10000);
    for run in [0..0x10000, 0..0, 0x5_0000..0x5_0000, 0xFF_0000..u64::MAX, u64::MAX - 1..u64::MAX] {
        bits.mark(&run);
    }
    assert_eq!(taken(&bits, 0x10000, 64), [0; 0]);
    bits.mark(&(0..0x10001));
    assert_eq!(taken(&bits, 0x10000, 1), [0]);
}

#[test]
fn a_report_takes_no_more_than_was_asked_for() {
    let mut words = [0; 1];
    let mut report = LogReport::new(&mut words, 1000);
    assert_eq!(report.pages(), 64);
    (0..200).for_each(|page| report.set(page));
    let mut report = LogReport::new(&mut words, 3);
    report.set(3);
    assert_eq!(words, [u64::MAX]);
    let mut words = [0; 1];
    LogReport::new(&mut words, 3).set(3);
    assert_eq!(words, [0]);
}
