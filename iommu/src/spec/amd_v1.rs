//! AMD host page table, version 1: AMD I/O Virtualization Technology (IOMMU) specification,
//! section 2.2.3 (I/O page tables for host translations). 4 levels, 48 bits, 512 entries a table.
//!
//! Leaves are made with next level 0, the entry's own size. Next level 7 tells the size by the
//! ones at the low end of the address; of these only an entry's own 2 MiB or 1 GiB is accepted.
//! All other sizes that 7 can tell (8 KiB to 1 MiB at level 1, 4 MiB to 512 MiB at level 2, and so
//! on: one leaf in several entries) are reserved to us, as is a table that skips a level.
//!
//! As in the VT-d format a table's address is its number in our arena.

use drogher_iommu_types::{Oa, PAGE_SHIFT};

use super::{Entry, Format, Perm};

/// Bit 0: present.
pub const PRESENT: u64 = 1 << 0;
/// Bits 4:1 are ignored. Ours: the mapping allows writing, IW was taken away.
pub const PROTECTED: u64 = 1 << 1;
/// Bit 5: accessed. Never set.
pub const ACCESSED: u64 = 1 << 5;
/// Bit 6: dirty; only in leaves.
pub const DIRTY: u64 = 1 << 6;
/// Bits 11:9: the level of the table pointed to; 0 or 7 in a leaf.
pub const NEXT_LEVEL: u64 = 7 << NEXT_LEVEL_SHIFT;
/// Bits 51:12: the output address or the next table.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// Bit 60: force coherent, set in all leaves: our memory is.
pub const FORCE_COHERENT: u64 = 1 << 60;
/// Bit 61: reads are allowed.
pub const READ: u64 = 1 << 61;
/// Bit 62: writes are allowed.
pub const WRITE: u64 = 1 << 62;

const NEXT_LEVEL_SHIFT: u32 = 9;
/// Next level of a leaf of the entry's own size.
const OWN_SIZE: u64 = 0;
/// Next level of a leaf whose address tells the size.
const SIZE_IN_ADDRESS: u64 = 7;

/// AMD host page table version 1, 4 levels.
#[derive(Clone, Copy, Debug)]
pub struct AmdV1;

impl Format for AmdV1 {
    const NAME: &'static str = "AMD v1";
    const LEAF_SHIFT: u32 = 12;
    const INDEX_BITS: &'static [u32] = &[9, 9, 9, 9];
    const LARGEST_LEVEL: u32 = 3;
    const OUTPUT_END: u64 = 1 << 52;
    const DIRTY: u64 = DIRTY;

    #[inline]
    fn decode(entry: u64, level: u32) -> Entry {
        if entry & PRESENT == 0 {
            return Entry::Empty;
        }
        match (entry & NEXT_LEVEL) >> NEXT_LEVEL_SHIFT {
            OWN_SIZE if level <= Self::LARGEST_LEVEL => Entry::Leaf,
            SIZE_IN_ADDRESS
                if level <= Self::LARGEST_LEVEL && told_size(entry) == Self::span(level) =>
            {
                Entry::Leaf
            }
            next if level > 1 && next == u64::from(level - 1) => {
                u32::try_from((entry & ADDRESS) >> PAGE_SHIFT).map_or(Entry::Reserved, Entry::Table)
            }
            _ => Entry::Reserved,
        }
    }

    /// IR and IW are the AND of all levels, so it allows everything.
    #[inline]
    fn table(number: u32, level: u32) -> u64 {
        let next = u64::from(level - 1) << NEXT_LEVEL_SHIFT;
        (u64::from(number) << PAGE_SHIFT) | PRESENT | next | READ | WRITE
    }

    #[inline]
    fn leaf(oa: Oa, perm: Perm, _level: u32) -> u64 {
        let mut entry = oa.0 & ADDRESS | PRESENT | FORCE_COHERENT;
        if perm.read {
            entry |= READ;
        }
        if perm.write {
            entry |= WRITE;
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

/// The bytes that the address of a leaf with next level 7 tells.
fn told_size(entry: u64) -> u64 {
    let ones = ((entry & ADDRESS) >> PAGE_SHIFT).trailing_ones();
    2 << (PAGE_SHIFT + ones)
}
