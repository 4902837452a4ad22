//! What can go wrong in an operation on a domain.

use drogher_iommu_types::{BitmapError, Gpa, Oa, PAGE_SIZE, Rid};

use crate::drain::DrainError;
use crate::range::RangeError;

/// Why a domain refused an operation. Unless a variant says otherwise, nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// The range itself cannot be used.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A page of a new mapping is mapped already.
    #[error("Page {gpa} is already mapped to {oa}; unmap it first")]
    Overlap {
        /// The first such page.
        gpa: Gpa,
        /// Where it goes.
        oa: Oa,
    },
    /// The output address is inside a page.
    #[error("Output address {oa} is not page aligned")]
    OutputMisaligned {
        /// As given.
        oa: Oa,
    },
    /// The mapping's output does not end inside memory.
    #[error("Output of {len} bytes at {oa} ends outside the memory's {size} bytes")]
    OutputBeyondMemory {
        /// First byte.
        oa: Oa,
        /// Bytes to map.
        len: u64,
        /// Bytes that there are.
        size: u64,
    },
    /// A mapping that allows nothing cannot be told from none.
    #[error("Mapping at {gpa} allows neither reading nor writing")]
    NoPermission {
        /// First page asked for.
        gpa: Gpa,
    },
    /// The range would need more tables than the domain may have.
    #[error("Mapping at {gpa} needs more than the domain's {limit} tables; raise `table_limit`")]
    TableLimit {
        /// The page whose table could not be made.
        gpa: Gpa,
        /// The limit in the domain's configuration.
        limit: u32,
    },
    /// A large leaf lies in the range only in part, and is not to be split.
    #[error(
        "Range cuts the leaf of {leaf_bytes} bytes at {leaf}; \
         take all of it, or allow splitting (`UnmapMode::Split`)"
    )]
    PartialLeaf {
        /// The leaf's first byte.
        leaf: Gpa,
        /// Its size.
        leaf_bytes: u64,
    },
    /// A large leaf could not be split: its table would be more than the domain may have.
    #[error(
        "Splitting the leaf at {leaf} needs more than the domain's {limit} tables; \
         raise `table_limit`, or track without splitting (`SplitPolicy::Never`)"
    )]
    SplitLimit {
        /// The leaf's first byte.
        leaf: Gpa,
        /// The limit in the domain's configuration.
        limit: u32,
    },
    /// A live requester of this domain has the same id.
    #[error("Requester {rid} is attached already")]
    Attached {
        /// The id.
        rid: Rid,
    },
    /// Dirty state was asked for while nothing records it.
    #[error("Dirty tracking is off; start it first")]
    NotTracking,
    /// Tracking was started twice: the second start would drop what the first has recorded.
    #[error("Dirty tracking is on already; stop it first")]
    AlreadyTracking,
    /// The caller's bitmap does not cover the range.
    #[error(transparent)]
    Bitmap(#[from] BitmapError),
    /// An access in flight did not end in time. What was asked for was done as far as it could be
    /// (entries are gone, bits are in the bitmap), but the old translation may still be in use:
    /// copy no page and free no memory before a later call has succeeded.
    #[error(transparent)]
    Drain(#[from] DrainError),
    /// The configuration's address width is not usable.
    #[error("Address width {bits} is not within 13..={max} bits, those of the table format")]
    Width {
        /// As configured.
        bits: u32,
        /// What the table format translates.
        max: u32,
    },
    /// The configuration's largest leaf is smaller than a page, so nothing could be mapped.
    #[error("Largest leaf of {bytes} bytes is smaller than a page of {PAGE_SIZE} bytes")]
    LargestLeaf {
        /// As configured.
        bytes: u64,
    },
    /// The configuration allows too few tables for one mapping, or too many for an entry.
    #[error("Table limit {limit} is not within 4..={max}", max = 1u32 << 28)]
    BadTableLimit {
        /// As configured.
        limit: u32,
    },
}
