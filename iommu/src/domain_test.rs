use std::ops::Range;
use std::sync::Arc;

use crate::{
    Domain, DomainConfig, DomainError, FaultReason, Gpa, HeapMemory, Iova, Oa, PAGE_SIZE,
    PageCount, Perm, RangeError, Rid,
};

const GIB: u64 = 1 << 30;
const WIDTH: u32 = 48;

fn pages(range: Range<u64>) -> Range<Gpa> {
    Gpa(range.start * PAGE_SIZE)..Gpa(range.end * PAGE_SIZE)
}

fn domain_of(pages: u64, config: DomainConfig) -> Domain {
    Domain::new(Arc::new(HeapMemory::new(pages * PAGE_SIZE)), config).expect("valid")
}

fn domain(pages: u64) -> Domain {
    domain_of(pages, DomainConfig::default())
}

#[test]
fn a_mapping_goes_where_it_was_told_to() {
    let domain = domain(10);
    domain.map(pages(700..703), Oa(4 * PAGE_SIZE), Perm::READ).expect("free");
    let at = |number: u64| domain.resolve(Gpa(number * PAGE_SIZE + 9));
    assert_eq!(at(701), Some((Oa(5 * PAGE_SIZE + 9), Perm::READ)));
    assert_eq!((at(699), at(703)), (None, None));
    assert_eq!(domain.resolve(Gpa(u64::MAX)), None);
    assert_eq!(domain.stats().mapped, PageCount(3));
}

#[test]
fn a_bad_range_is_refused_with_its_values() {
    let domain = domain_of(16, DomainConfig { address_bits: 20, ..DomainConfig::default() });
    let (start, end) = (Gpa(0x1000), Gpa(0x2800));
    let misaligned = DomainError::Range(RangeError::Misaligned { start, end });
    let backwards = DomainError::Range(RangeError::Backwards { start, end: Gpa(0) });
    let wide = Gpa(0x10_1000);
    let beyond = DomainError::Range(RangeError::BeyondWidth { start, end: wide, bits: 20 });
    let map = |range| domain.map(range, Oa(0), Perm::READ);
    assert_eq!(map(start..end), Err(misaligned.clone()));
    assert_eq!(map(start..Gpa(0)), Err(backwards));
    assert_eq!(map(start..wide), Err(beyond.clone()));
    assert_eq!(
        beyond.to_string(),
        "Range 0x1000..0x101000 ends beyond the address width of 20 bits"
    );
    assert_eq!(domain.unmap(start..end), Err(misaligned.clone()));
    assert_eq!(domain.mark_dirty(start..end), Err(misaligned));
    assert_eq!(map(Gpa(0xf_f000)..Gpa(0x10_0000)), Ok(()), "the last page of the width");
    assert_eq!(domain.stats().mapped, PageCount(1));
}

#[test]
fn a_bad_output_or_permission_is_refused() {
    let domain = domain(4);
    let (oa, size) = (Oa(2 * PAGE_SIZE), 4 * PAGE_SIZE);
    let len = 3 * PAGE_SIZE;
    let beyond = DomainError::OutputBeyondMemory { oa, len, size };
    assert_eq!(domain.map(pages(0..3), oa, Perm::READ), Err(beyond));
    let oa = Oa(u64::MAX - PAGE_SIZE + 1);
    let wraps = DomainError::OutputBeyondMemory { oa, len, size };
    assert_eq!(domain.map(pages(0..3), oa, Perm::READ), Err(wraps));
    let oa = Oa(12);
    let odd = DomainError::OutputMisaligned { oa };
    assert_eq!(domain.map(pages(0..1), oa, Perm::READ), Err(odd));
    let nothing = Perm { read: false, write: false };
    let gpa = Gpa(0);
    assert_eq!(domain.map(pages(0..1), Oa(0), nothing), Err(DomainError::NoPermission { gpa }));
    assert_eq!(domain.stats().mapped, PageCount(0));
    assert_eq!(domain.map(pages(3..3), Oa(0), Perm::READ), Ok(()), "nothing to map");
}

#[test]
fn an_overlap_changes_nothing() {
    let domain = domain(600);
    domain.map(pages(515..520), Oa(PAGE_SIZE), Perm::READ).expect("free");
    let overlap = |page: u64, oa: u64| DomainError::Overlap {
        gpa: Gpa(page * PAGE_SIZE),
        oa: Oa(oa * PAGE_SIZE),
    };
    assert_eq!(domain.map(pages(0..516), Oa(0), Perm::WRITE), Err(overlap(515, 1)));
    assert_eq!(domain.map(pages(519..521), Oa(0), Perm::WRITE), Err(overlap(519, 5)));
    assert_eq!(domain.stats().mapped, PageCount(5));
    assert_eq!(domain.resolve(Gpa(0)), None);
    domain.map(pages(0..515), Oa(0), Perm::WRITE).expect("right up to it");
    domain.map(pages(520..600), Oa(0), Perm::WRITE).expect("right after it");
}

#[test]
fn a_bad_configuration_is_refused() {
    let with = |address_bits, table_limit| {
        let config = DomainConfig { address_bits, table_limit, ..DomainConfig::default() };
        Domain::new(Arc::new(HeapMemory::new(PAGE_SIZE)), config).err()
    };
    assert_eq!(with(12, 4), Some(DomainError::Width { bits: 12, max: 48 }));
    assert_eq!(with(49, 4), Some(DomainError::Width { bits: 49, max: 48 }));
    assert_eq!(with(48, 3), Some(DomainError::BadTableLimit { limit: 3 }));
    assert_eq!(with(48, u32::MAX), Some(DomainError::BadTableLimit { limit: u32::MAX }));
    assert_eq!(with(13, 4), None);
    let config = DomainConfig { largest_leaf: 2048, ..DomainConfig::default() };
    let error = Domain::new(Arc::new(HeapMemory::new(PAGE_SIZE)), config).err();
    assert_eq!(error, Some(DomainError::LargestLeaf { bytes: 2048 }));
}

#[test]
fn a_mapping_that_runs_out_of_tables_leaves_nothing_behind() {
    let config =
        DomainConfig { table_limit: 6, largest_leaf: PAGE_SIZE, ..DomainConfig::default() };
    let domain = domain_of(2000, config);
    let error = domain.map(pages(0..2000), Oa(0), Perm::READ_WRITE);
    let limit = DomainError::TableLimit { gpa: Gpa(3 * 512 * PAGE_SIZE), limit: 6 };
    assert_eq!(error, Err(limit));
    let stats = domain.stats();
    assert_eq!((stats.mapped, stats.tables), (PageCount(0), 1));
    domain.map(pages(0..3 * 512), Oa(0), Perm::READ_WRITE).expect("three leaf tables fit");
}

#[test]
fn tables_of_unmapped_ranges_are_used_again() {
    let domain = domain_of(1, DomainConfig { table_limit: 8, ..DomainConfig::default() });
    let device = domain.attach(Rid(8)).expect("first");
    for round in 0..100u64 {
        // Somewhere else in all four levels each time.
        let at = Gpa((round * 0x1_0203_0405 * PAGE_SIZE) % (1 << WIDTH));
        let range = at..Gpa(at.0 + PAGE_SIZE);
        domain.map(range.clone(), Oa(0), Perm::READ_WRITE).expect("tables were given back");
        device.write(Iova(at.0), &round.to_le_bytes()).expect("mapped");
        assert_eq!(domain.stats().tables, 4);
        assert_eq!(domain.unmap(range), Ok(PageCount(1)));
        assert_eq!(domain.stats().tables, 1);
        let fault = device.write(Iova(at.0), &[1]).expect_err("unmapped").fault;
        assert_eq!(fault.reason, FaultReason::NotMapped);
    }
}

#[test]
fn unmap_of_holes_and_over_every_level() {
    let domain = domain(6);
    // One page on each side of an edge of each level.
    let edges = [2 << 20, GIB, 512 * GIB];
    for (index, edge) in (0u64..).zip(edges) {
        let range = Gpa(edge - PAGE_SIZE)..Gpa(edge + PAGE_SIZE);
        domain.map(range, Oa(index * 2 * PAGE_SIZE), Perm::READ).expect("free");
    }
    let width = Gpa(1 << WIDTH);
    assert_eq!(domain.unmap(Gpa(0)..Gpa(2 << 20)), Ok(PageCount(1)));
    assert_eq!(domain.unmap(Gpa(0)..Gpa(2 << 20)), Ok(PageCount(0)));
    assert_eq!(domain.unmap(Gpa(0)..width), Ok(PageCount(5)));
    assert_eq!(domain.unmap(Gpa(0)..width), Ok(PageCount(0)));
    assert_eq!(domain.stats().tables, 1);
}

#[test]
fn an_id_is_attached_once_at_a_time() {
    let domain = domain(1);
    let device = domain.attach(Rid(8)).expect("first");
    let other = device.clone();
    assert_eq!(domain.attach(Rid(8)).err(), Some(DomainError::Attached { rid: Rid(8) }));
    drop(device);
    assert_eq!(domain.attached(), [Rid(8)]);
    drop(other);
    assert_eq!(domain.attached(), []);
    domain.attach(Rid(8)).expect("the last handle is gone");
}
