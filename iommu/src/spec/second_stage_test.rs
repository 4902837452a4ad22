use crate::spec::Perm;
use crate::spec::second_stage::*;
use drogher_iommu_types::Oa;

#[test]
fn the_layout_is_that_of_the_specification() {
    assert_eq!((READ, WRITE, PAGE_SIZE_BIT, ACCESSED, DIRTY), (1, 2, 0x80, 0x100, 0x200));
    assert_eq!(ADDRESS, ((1u64 << 52) - 1) & !0xfff);
    assert_eq!(leaf(Oa(0x1234_5000), Perm::READ_WRITE), 0x1234_5003);
    assert_eq!(leaf(Oa(0x1000), Perm::WRITE), 0x1002);
    assert_eq!([span(1), span(2), span(3), span(4)], [1 << 12, 1 << 21, 1 << 30, 1 << 39]);
}

#[test]
fn indexes_come_from_nine_bits_each() {
    let gpa = 0x0123u64 << 39 | 0x0145 << 30 | 0x0167 << 21 | 0x0089 << 12 | 0xfff;
    assert_eq!([4, 3, 2, 1].map(|level| index(gpa, level)), [0x123, 0x145, 0x167, 0x89]);
}

#[test]
fn what_an_entry_was_made_of_comes_out_again() {
    let entry = leaf(Oa(0xf_ffff_ffff_f000), Perm::READ) | DIRTY;
    assert_eq!((output(entry), perm(entry)), (Oa(0xf_ffff_ffff_f000), Perm::READ));
    assert_eq!(table_of(table(77)), Some(77));
    assert_eq!(table_of(0), None);
    assert!(is_present(table(0)) && !is_present(DIRTY));
}
