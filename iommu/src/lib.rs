//! The VMM's IOMMU: a second stage keyed by GPA whose leaves carry D bits, and the DMA that
//! passes through it.
//!
//! A [`Domain`] is one address space. Devices get a [`Requester`] from [`Domain::attach`] and do
//! all their DMA through it; each write sets the D bit of the pages it lands on while tracking is
//! on. [`Domain::read_and_clear_dirty`] takes the D bits, and returns only once every access that
//! might still have used an old translation has finished its copy: after it, and only after it,
//! the pages may be read.
//!
//! No KVM, no I/O, no threads of its own, no unsafe: guest memory is behind the [`Memory`] trait.
#![forbid(unsafe_code)]

mod access;
mod arena;
mod collect;
mod dirty;
mod domain;
mod drain;
mod error;
mod fault;
mod heap;
mod iotlb;
mod locate;
mod log;
mod memory;
mod range;
mod range_lock;
mod requester;
mod reshape;
mod retire;
mod slot;
mod space;
pub mod spec;
mod split;
mod stage1;
mod state;
mod sync;
mod table;
mod tally;
mod tracking;
mod tree;
mod unmap;
mod walk;

pub use access::{DmaError, Landed};
pub use collect::HarvestStats;
pub use domain::{Domain, DomainConfig, DomainStats, UnmapMode};
pub use drain::DrainError;
pub use error::DomainError;
pub use fault::{Access, Fault, FaultReason, FaultSummary};
pub use heap::HeapMemory;
pub use locate::{LOCATE_MAX, Located};
pub use memory::{Memory, MemoryError};
pub use range::RangeError;
pub use requester::{Requester, RequesterStats};
pub use spec::{Perm, TableFormat};
pub use stage1::{Bypass, Stage1, Stage1Page};
pub use tracking::{SplitPolicy, TrackConfig, TrackMode, TrackStats};

pub use drogher_iommu_types as types;
pub use drogher_iommu_types::{BitmapError, DirtyBitmap, Gpa, Iova, Oa, PAGE_SIZE, PageCount, Rid};

// Declared here and not beside their subjects: the models compile those files again, without them.
#[cfg(test)]
mod access_test;
#[cfg(test)]
mod dirty_test;
#[cfg(test)]
mod domain_test;
#[cfg(test)]
mod heap_test;
#[cfg(test)]
mod log_test;
#[cfg(test)]
mod logged_test;
#[cfg(test)]
#[path = "spec/spec_test.rs"]
mod spec_test;
