//! A format of no hardware, to catch what the algorithms take for granted: pages smaller than the
//! 4 KiB that dirty state is kept by, 3 levels of 8, 16 and 32 entries, the address not where it is
//! an address, and permissions that are denied rather than given. Small enough to be gone through
//! exhaustively, and for the models.

use drogher_iommu_types::Oa;

use super::{Entry, Format, Perm};
use crate::sync::MOCK_INDEX_BITS;

/// The entry is a leaf.
pub const LEAF: u64 = 1 << 63;
/// The entry points to a table.
pub const TABLE: u64 = 1 << 62;
/// Dirty.
pub const DIRTY: u64 = 1 << 1;
/// Reads are denied.
pub const NO_READ: u64 = 1 << 2;
/// Writes are denied.
pub const NO_WRITE: u64 = 1 << 3;
/// Writes are denied for now.
pub const PROTECTED: u64 = 1 << 0;

const NUMBER_SHIFT: u32 = 8;
const NUMBER: u64 = (1 << 40) - 1;

/// 3 levels; leaves of 2 KiB, 16 KiB and 256 KiB; 8 MiB in all.
#[derive(Clone, Copy, Debug)]
pub struct Mock;

impl Format for Mock {
    const NAME: &'static str = "mock";
    const LEAF_SHIFT: u32 = 11;
    const INDEX_BITS: &'static [u32] = MOCK_INDEX_BITS;
    const LARGEST_LEVEL: u32 = 3;
    const OUTPUT_END: u64 = 1 << 51;
    const DIRTY: u64 = DIRTY;

    #[inline]
    fn decode(entry: u64, level: u32) -> Entry {
        if entry & LEAF != 0 {
            return Entry::Leaf;
        }
        match entry & TABLE {
            0 => Entry::Empty,
            _ if level == 1 => Entry::Reserved,
            _ => {
                u32::try_from(entry >> NUMBER_SHIFT & NUMBER).map_or(Entry::Reserved, Entry::Table)
            }
        }
    }

    #[inline]
    fn table(number: u32, _level: u32) -> u64 {
        TABLE | u64::from(number) << NUMBER_SHIFT
    }

    #[inline]
    fn leaf(oa: Oa, perm: Perm, _level: u32) -> u64 {
        let mut entry = LEAF | (oa.0 >> Self::LEAF_SHIFT & NUMBER) << NUMBER_SHIFT;
        if !perm.read {
            entry |= NO_READ;
        }
        if !perm.write {
            entry |= NO_WRITE;
        }
        entry
    }

    #[inline]
    fn output(leaf: u64, level: u32) -> Oa {
        Oa((leaf >> NUMBER_SHIFT & NUMBER) << Self::LEAF_SHIFT & !(Self::span(level) - 1))
    }

    #[inline]
    fn perm(leaf: u64) -> Perm {
        Perm { read: leaf & NO_READ == 0, write: leaf & NO_WRITE == 0 || leaf & PROTECTED != 0 }
    }

    #[inline]
    fn is_protected(leaf: u64) -> bool {
        leaf & PROTECTED != 0
    }

    #[inline]
    fn protect(leaf: u64) -> u64 {
        if leaf & NO_WRITE != 0 { leaf } else { leaf | NO_WRITE | PROTECTED }
    }

    #[inline]
    fn unprotect(leaf: u64) -> u64 {
        if leaf & PROTECTED == 0 { leaf } else { leaf & !(NO_WRITE | PROTECTED) }
    }
}
