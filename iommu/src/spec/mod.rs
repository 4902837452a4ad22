//! Entry layouts, each with its section of the specification. Nothing else of the crate knows a
//! bit's place, the size of a page or the number of levels.

pub mod amd_v1;
pub mod mock;
pub mod second_stage;

use drogher_iommu_types::{Oa, PAGE_SHIFT};

pub use amd_v1::AmdV1;
pub use mock::Mock;
pub use second_stage::VtdSecondStage;

const MAX_LEVELS: usize = 6;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// DMA may read.
    pub read: bool,
    /// DMA may write.
    pub write: bool,
}

impl Perm {
    /// Read only.
    pub const READ: Self = Self { read: true, write: false };
    /// Write only.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Both.
    pub const READ_WRITE: Self = Self { read: true, write: true };

    /// What both allow.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { read: self.read && other.read, write: self.write && other.write }
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing is mapped here.
    Empty,
    /// It points to the table of this number, one level below.
    Table(u32),
    /// It translates all that it spans.
    Leaf,
    /// Not something that this crate makes: DMA through it faults.
    Reserved,
}

/// A page-table format. The algorithms are written once over this trait and compiled once for
/// each format; an entry is a `u64`, and 0 is an empty one.
///
/// Levels count from 1, the table of the smallest leaves, to [`Self::LEVELS`], the root. An entry
/// that points to a table allows everything: a leaf's permissions are those of the whole walk.
///
/// A leaf is *protected* if its mapping allows writing but the next write is to be caught: to the
/// IOMMU it is not writable, and a bit that the specification ignores tells that it was.
pub trait Format: Send + Sync + 'static {
    /// For messages.
    const NAME: &'static str;
    /// Log2 of the bytes of a level 1 leaf; at most 12, as dirty state is kept by 4 KiB.
    const LEAF_SHIFT: u32;
    /// Bits of GPA that choose the entry, at level 1 first; 3 to 9, 3 to 5 levels.
    const INDEX_BITS: &'static [u32];
    /// The highest level at which a leaf can be; at most 3.
    const LARGEST_LEVEL: u32;
    /// One past the last output address that an entry can hold.
    const OUTPUT_END: u64;

    /// What `entry` is, found at `level`.
    fn decode(entry: u64, level: u32) -> Entry;
    /// An entry of `level` that points to table `number`, which is of the level below.
    fn table(number: u32, level: u32) -> u64;
    /// A clean leaf of `level`; `oa` is a multiple of its size.
    fn leaf(oa: Oa, perm: Perm, level: u32) -> u64;
    /// Where a leaf of `level` points to.
    fn output(leaf: u64, level: u32) -> Oa;
    /// What a leaf's mapping allows, protected or not.
    fn perm(leaf: u64) -> Perm;
    /// The D bit.
    const DIRTY: u64;
    /// True if the next write is to be caught.
    fn is_protected(leaf: u64) -> bool;
    /// The leaf protected, if it allows writing.
    fn protect(leaf: u64) -> u64;
    /// The leaf as it was before [`Self::protect`].
    fn unprotect(leaf: u64) -> u64;

    /// Levels of the tree.
    const LEVELS: u32 = levels(Self::INDEX_BITS);
    /// Log2 of the bytes that one entry of a level stands for, by level; of the whole, by
    /// `LEVELS + 1`.
    const SHIFTS: [u32; MAX_LEVELS + 1] = shifts(Self::LEAF_SHIFT, Self::INDEX_BITS);
    /// Bits of GPA that the tree translates.
    const WIDTH: u32 = Self::SHIFTS[Self::LEVELS as usize + 1];

    /// Bytes of GPA that one entry at `level` stands for.
    #[must_use]
    #[inline]
    fn span(level: u32) -> u64 {
        1 << Self::SHIFTS[level as usize]
    }

    /// Entries of a table of `level`.
    #[must_use]
    #[inline]
    fn entries(level: u32) -> usize {
        1 << (Self::SHIFTS[level as usize + 1] - Self::SHIFTS[level as usize])
    }

    /// The number of the entry at `level` that translates `gpa`.
    #[must_use]
    #[inline]
    fn index(gpa: u64, level: u32) -> usize {
        // Nine bits at most.
        (gpa >> Self::SHIFTS[level as usize]) as usize & (Self::entries(level) - 1)
    }
}

const fn levels(index_bits: &[u32]) -> u32 {
    assert!(index_bits.len() >= 3 && index_bits.len() < MAX_LEVELS);
    index_bits.len() as u32
}

const fn shifts(leaf: u32, index_bits: &[u32]) -> [u32; MAX_LEVELS + 1] {
    assert!(leaf <= PAGE_SHIFT);
    let mut shifts = [0; MAX_LEVELS + 1];
    let (mut shift, mut level) = (leaf, 0);
    while level < index_bits.len() {
        assert!(index_bits[level] >= 3 && index_bits[level] <= 9);
        shifts[level + 1] = shift;
        shift += index_bits[level];
        level += 1;
    }
    shifts[level + 1] = shift;
    shifts
}

/// The format of a domain's tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TableFormat {
    /// [`VtdSecondStage`]: 48 bits; 4 KiB, 2 MiB, 1 GiB.
    #[default]
    VtdSecondStage,
    /// [`AmdV1`]: 48 bits; 4 KiB, 2 MiB, 1 GiB.
    AmdV1,
    /// [`Mock`]: 23 bits; 2 KiB, 16 KiB, 256 KiB. For tests: it shares no size with the others.
    Mock,
}

impl TableFormat {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::VtdSecondStage, Self::AmdV1, Self::Mock];

    /// Bits of GPA that it translates.
    #[must_use]
    pub const fn width(self) -> u32 {
        match self {
            Self::VtdSecondStage => VtdSecondStage::WIDTH,
            Self::AmdV1 => AmdV1::WIDTH,
            Self::Mock => Mock::WIDTH,
        }
    }

    /// Bytes of its leaves, the smallest first.
    #[must_use]
    pub fn leaf_sizes(self) -> [u64; 3] {
        fn sizes<F: Format>() -> [u64; 3] {
            [F::span(1), F::span(2), F::span(3)]
        }
        match self {
            Self::VtdSecondStage => sizes::<VtdSecondStage>(),
            Self::AmdV1 => sizes::<AmdV1>(),
            Self::Mock => sizes::<Mock>(),
        }
    }
}
