use crate::spec::{AmdV1, Entry, Format, Mock, Perm, VtdSecondStage, amd_v1, mock, second_stage};
use drogher_iommu_types::Oa;

#[test]
fn the_vtd_layout_is_that_of_the_specification() {
    use second_stage::{ACCESSED, ADDRESS, DIRTY, PAGE_SIZE_BIT, READ, WRITE};
    type F = VtdSecondStage;
    assert_eq!((READ, WRITE, PAGE_SIZE_BIT, ACCESSED, DIRTY), (1, 2, 0x80, 0x100, 0x200));
    assert_eq!((ADDRESS, F::DIRTY), (((1u64 << 52) - 1) & !0xfff, 1 << 9));
    assert_eq!(F::leaf(Oa(0x1234_5000), Perm::READ_WRITE, 1), 0x1234_5003);
    assert_eq!(F::leaf(Oa(0x1000), Perm::WRITE, 1), 0x1002);
    assert_eq!(F::leaf(Oa(0x4000_0000), Perm::READ, 3), 0x4000_0081);
    assert_eq!([1, 2, 3, 4].map(F::span), [1 << 12, 1 << 21, 1 << 30, 1 << 39]);
    assert_eq!((F::LEVELS, F::WIDTH, F::entries(1), F::entries(4)), (4, 48, 512, 512));
    assert_eq!(F::decode(DIRTY, 1), Entry::Empty, "neither read nor write");
    assert_eq!(F::decode(READ | PAGE_SIZE_BIT, 4), Entry::Reserved, "no leaf of 512 GiB");
}

#[test]
fn the_amd_layout_is_that_of_the_specification() {
    use amd_v1::{ADDRESS, DIRTY, FORCE_COHERENT, NEXT_LEVEL, PRESENT, READ, WRITE};
    type F = AmdV1;
    assert_eq!((PRESENT, DIRTY, NEXT_LEVEL), (1, 0x40, 0xe00));
    assert_eq!((FORCE_COHERENT, READ, WRITE), (1 << 60, 1 << 61, 1 << 62));
    assert_eq!((ADDRESS, F::DIRTY), (((1u64 << 52) - 1) & !0xfff, 1 << 6));
    assert_eq!(F::leaf(Oa(0x20_0000), Perm::READ_WRITE, 2), 7 << 60 | 0x20_0001);
    assert_eq!(F::table(5, 2), 3 << 61 | 0x5201, "next level 1");
    assert_eq!(F::table(5, 4), 3 << 61 | 0x5601, "next level 3");
    assert_eq!(F::decode(READ | WRITE, 1), Entry::Empty, "not present");
}

#[test]
fn of_the_amd_sizes_told_by_the_address_only_the_entrys_own_is_accepted() {
    let told = |shift: u32, oa: u64| {
        // Ones from bit 12 up to below the highest bit inside the page.
        let ones = ((1u64 << (shift - 1)) - 1) & !0xfff;
        oa | ones | amd_v1::PRESENT | 7 << 9 | amd_v1::READ
    };
    for (level, own) in [(1, 12), (2, 21), (3, 30)] {
        for shift in 13..=38 {
            let wanted = if shift == own { Entry::Leaf } else { Entry::Reserved };
            assert_eq!(AmdV1::decode(told(shift, 0), level), wanted, "{shift} at {level}");
        }
    }
    assert_eq!(AmdV1::output(told(21, 0x60_0000), 2), Oa(0x60_0000));
    for (level, next) in [(4, 0), (4, 7), (3, 1), (3, 3), (2, 2), (1, 1)] {
        let entry = amd_v1::PRESENT | next << 9;
        assert_eq!(AmdV1::decode(entry, level), Entry::Reserved, "next {next} at level {level}");
    }
}

#[test]
fn indexes_come_from_the_bits_of_each_level() {
    let gpa = 0x0123u64 << 39 | 0x0145 << 30 | 0x0167 << 21 | 0x0089 << 12 | 0xfff;
    assert_eq!([4, 3, 2, 1].map(|l| VtdSecondStage::index(gpa, l)), [0x123, 0x145, 0x167, 0x89]);
    let gpa = 0x15u64 << 18 | 0xa << 14 | 0x6 << 11 | 0x7ff;
    assert_eq!([3, 2, 1].map(|l| Mock::index(gpa, l)), [0x15, 0xa, 0x6]);
    assert_eq!((Mock::WIDTH, [1, 2, 3].map(Mock::entries)), (23, [8, 16, 32]));
    assert_eq!(mock::DIRTY, Mock::DIRTY);
}

fn what_an_entry_was_made_of_comes_out_again<F: Format>() {
    assert_eq!(F::decode(0, 1), Entry::Empty);
    for level in 1..=F::LARGEST_LEVEL {
        let last = Oa(F::OUTPUT_END - F::span(level));
        for oa in [Oa(0), Oa(F::span(level)), last] {
            for perm in [Perm::READ, Perm::WRITE, Perm::READ_WRITE] {
                let leaf = F::leaf(oa, perm, level);
                let protected = F::protect(leaf);
                assert_eq!(F::is_protected(protected), perm.write, "{}", F::NAME);
                assert!(!F::is_protected(leaf) && leaf & F::DIRTY == 0);
                assert_eq!(F::unprotect(protected), leaf);
                for leaf in [leaf, leaf | F::DIRTY, protected] {
                    assert_eq!(F::decode(leaf, level), Entry::Leaf, "{} {leaf:#x}", F::NAME);
                    assert_eq!((F::output(leaf, level), F::perm(leaf)), (oa, perm));
                }
            }
        }
    }
    for level in 2..=F::LEVELS {
        for number in [0, 77, (1 << 28) - 1] {
            assert_eq!(F::decode(F::table(number, level), level), Entry::Table(number));
        }
    }
}

#[test]
fn entries_keep_what_they_are_made_of() {
    what_an_entry_was_made_of_comes_out_again::<VtdSecondStage>();
    what_an_entry_was_made_of_comes_out_again::<AmdV1>();
    what_an_entry_was_made_of_comes_out_again::<Mock>();
}
