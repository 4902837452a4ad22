//! VT-d second-stage paging entries: Intel Virtualization Technology for Directed I/O,
//! architecture specification, section 3.7 (second-stage translation) and section 9.8
//! (second-stage paging entries). 4 levels, 48 bits of GPA, 512 entries a table.
//!
//! One departure: the address field of an entry that points to a table holds the table's number
//! in our arena, not an address, so that a wrong entry cannot become a wild pointer.

use drogher_iommu_types::{Oa, PAGE_SHIFT};

use super::Perm;

/// Section 9.8: reads are allowed.
pub const READ: u64 = 1 << 0;
/// Section 9.8: writes are allowed.
pub const WRITE: u64 = 1 << 1;
/// Section 9.8, levels 2 and 3: the entry is a leaf of 2 MiB or 1 GiB. Reserved: no such leaf is
/// made yet.
pub const PAGE_SIZE_BIT: u64 = 1 << 7;
/// Section 3.7.2: accessed. Never set: nothing here reads it.
pub const ACCESSED: u64 = 1 << 8;
/// Section 3.7.2: dirty; only in leaves, set by the first write after a clear.
pub const DIRTY: u64 = 1 << 9;
/// Section 9.8: bits 51:12, the output address or the next table.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// One past the last output address that an entry can hold.
pub const OUTPUT_END: u64 = 1 << 52;

/// Levels of the table; the root is level 4, the leaf table level 1.
pub const LEVELS: u32 = 4;
/// Entries in a table.
pub const ENTRIES: usize = 512;
/// Bits of GPA that 4 levels translate.
pub const WIDTH: u32 = 48;

const INDEX_BITS: u32 = 9;

/// Bytes of GPA that one entry at `level` stands for.
#[must_use]
pub const fn span(level: u32) -> u64 {
    1 << (PAGE_SHIFT + INDEX_BITS * (level - 1))
}

/// The number of the entry at `level` that translates `gpa`.
#[must_use]
pub const fn index(gpa: u64, level: u32) -> usize {
    // Nine bits fit any usize.
    ((gpa / span(level)) % ENTRIES as u64) as usize
}

/// A leaf of 4 KiB.
#[must_use]
pub const fn leaf(oa: Oa, perm: Perm) -> u64 {
    let mut entry = oa.0 & ADDRESS;
    if perm.read {
        entry |= READ;
    }
    if perm.write {
        entry |= WRITE;
    }
    entry
}

/// An entry that points to table number `table`. Section 3.7.1: permissions are the AND of all
/// levels, so it allows everything.
#[must_use]
pub const fn table(table: u32) -> u64 {
    ((table as u64) << PAGE_SHIFT) | READ | WRITE
}

/// Section 3.7.1: an entry is present if it allows reading or writing.
#[must_use]
pub const fn is_present(entry: u64) -> bool {
    entry & (READ | WRITE) != 0
}

/// The table that an entry above level 1 points to; `None` if it is not present.
#[must_use]
pub fn table_of(entry: u64) -> Option<u32> {
    if is_present(entry) { u32::try_from((entry & ADDRESS) >> PAGE_SHIFT).ok() } else { None }
}

/// Where a leaf points to.
#[must_use]
pub const fn output(entry: u64) -> Oa {
    Oa(entry & ADDRESS)
}

/// What a leaf allows.
#[must_use]
pub const fn perm(entry: u64) -> Perm {
    Perm { read: entry & READ != 0, write: entry & WRITE != 0 }
}
