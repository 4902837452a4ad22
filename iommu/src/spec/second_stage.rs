//! VT-d second-stage paging entries: Intel Virtualization Technology for Directed I/O,
//! architecture specification, section 3.7 (second-stage translation) and section 9.8
//! (second-stage paging entries). 4 levels, 48 bits of GPA, 512 entries a table.
//!
//! One departure: the address field of an entry that points to a table holds the table's number
//! in our arena, not an address, so that a wrong entry cannot become a wild pointer.

use drogher_iommu_types::{Oa, PAGE_SHIFT};

use super::{Entry, Format, Perm};

/// Section 9.8: reads are allowed.
pub const READ: u64 = 1 << 0;
/// Section 9.8: writes are allowed.
pub const WRITE: u64 = 1 << 1;
/// Section 9.8, levels 2 and 3: the entry is a leaf of 2 MiB or 1 GiB.
pub const PAGE_SIZE_BIT: u64 = 1 << 7;
/// Section 3.7.2: accessed. Never set: nothing here reads it.
pub const ACCESSED: u64 = 1 << 8;
/// Section 3.7.2: dirty; only in leaves, set by the first write after a clear.
pub const DIRTY: u64 = 1 << 9;
/// Section 9.8: bits 51:12, the output address or the next table.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Section 9.8: bits 61:52 are ignored. Ours: the mapping allows writing, WRITE was taken away.
pub const PROTECTED: u64 = 1 << 52;

/// VT-d second stage, 4 levels.
#[derive(Clone, Copy, Debug)]
pub struct VtdSecondStage;

impl Format for VtdSecondStage {
    const NAME: &'static str = "VT-d second stage";
    const LEAF_SHIFT: u32 = 12;
    const INDEX_BITS: &'static [u32] = &[9, 9, 9, 9];
    const LARGEST_LEVEL: u32 = 3;
    const OUTPUT_END: u64 = 1 << 52;
    const DIRTY: u64 = DIRTY;

    /// Section 3.7.1: an entry is present if it allows reading or writing. To hardware a protected
    /// leaf of a write-only mapping is not present: who handles the fault knows better.
    #[inline]
    fn decode(entry: u64, level: u32) -> Entry {
        if entry & (READ | WRITE | PROTECTED) == 0 {
            Entry::Empty
        } else if level == 1 || entry & PAGE_SIZE_BIT != 0 && level <= Self::LARGEST_LEVEL {
            Entry::Leaf
        } else if entry & PAGE_SIZE_BIT != 0 {
            Entry::Reserved
        } else {
            u32::try_from((entry & ADDRESS) >> PAGE_SHIFT).map_or(Entry::Reserved, Entry::Table)
        }
    }

    /// Section 3.7.1: permissions are the AND of all levels, so it allows everything.
    #[inline]
    fn table(number: u32, _level: u32) -> u64 {
        (u64::from(number) << PAGE_SHIFT) | READ | WRITE
    }

    #[inline]
    fn leaf(oa: Oa, perm: Perm, level: u32) -> u64 {
        let mut entry = oa.0 & ADDRESS;
        if perm.read {
            entry |= READ;
        }
        if perm.write {
            entry |= WRITE;
        }
        if level > 1 {
            entry |= PAGE_SIZE_BIT;
        }
        entry
    }

    #[inline]
    fn output(leaf: u64, level: u32) -> Oa {
        Oa(leaf & ADDRESS & !(Self::span(level) - 1))
    }

    #[inline]
    fn perm(leaf: u64) -> Perm {
        Perm { read: leaf & READ != 0, write: leaf & (WRITE | PROTECTED) != 0 }
    }

    #[inline]
    fn is_protected(leaf: u64) -> bool {
        leaf & PROTECTED != 0
    }

    #[inline]
    fn protect(leaf: u64) -> u64 {
        if leaf & WRITE == 0 { leaf } else { (leaf & !WRITE) | PROTECTED }
    }

    #[inline]
    fn unprotect(leaf: u64) -> u64 {
        if leaf & PROTECTED == 0 { leaf } else { (leaf & !PROTECTED) | WRITE }
    }
}
