use crate::{Gpa, PAGE_SIZE, PageCount, Rid};

#[test]
fn a_rid_reads_as_lspci_prints_it() {
    let rid = Rid::new(0x3a, 0x1f, 7).expect("in range");
    assert_eq!(rid.to_string(), "3a:1f.7");
    assert_eq!((rid.bus(), rid.device(), rid.function()), (0x3a, 0x1f, 7));
    assert_eq!(Rid(0x0008).to_string(), "00:01.0");
}

#[test]
fn a_rid_out_of_range_is_refused() {
    assert_eq!(Rid::new(0, 32, 0), None);
    assert_eq!(Rid::new(0, 0, 8), None);
}

#[test]
fn pages_of_addresses() {
    assert_eq!(Gpa(0x1fff).page(), 1);
    assert_eq!(Gpa(0x1fff).page_offset(), 0xfff);
    assert_eq!(Gpa(0x1fff).page_start(), Gpa(0x1000));
    assert!(Gpa(0x2000).is_page_aligned() && !Gpa(0x2001).is_page_aligned());
    assert_eq!(Gpa::from_page(3), Some(Gpa(3 * PAGE_SIZE)));
    assert_eq!(Gpa::from_page(u64::MAX), None);
    assert_eq!(Gpa(u64::MAX).checked_add(1), None);
}

#[test]
fn page_counts_round_up_and_saturate() {
    assert_eq!(PageCount::covering(1), PageCount(1));
    assert_eq!(PageCount::covering(2 * PAGE_SIZE), PageCount(2));
    assert_eq!(PageCount(u64::MAX).bytes(), u64::MAX);
}
