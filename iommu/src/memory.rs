//! Guest memory as the IOMMU sees it: bytes at an output address.

use std::ptr::NonNull;

use drogher_iommu_types::Oa;

/// Why an access to guest memory was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The access does not end inside the memory.
    #[error("Access of {len} bytes at {oa} ends outside the memory's {size} bytes")]
    OutOfBounds {
        /// First byte.
        oa: Oa,
        /// Bytes asked for.
        len: u64,
        /// Bytes that there are.
        size: u64,
    },
    /// An atomic access is not aligned to its own size.
    #[error("Atomic access at {oa} is not aligned to its {size} bytes")]
    Misaligned {
        /// First byte.
        oa: Oa,
        /// Size of the access: 4 or 8.
        size: u64,
    },
}

/// The one RAM mapping. All methods may be called from any thread, at the same time as others and
/// as the guest's own accesses.
///
/// Aligned accesses of 1, 2, 4 and 8 bytes are single-copy atomic; the order inside a longer one
/// is undefined. Values of the atomics are in the host's byte order (little endian on x86).
/// No method blocks: each is called with a guard held that a harvest may be waiting for.
pub trait Memory: Send + Sync {
    /// Size in bytes. Constant.
    fn len(&self) -> u64;

    /// True if there is no memory at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies from memory to `data`.
    ///
    /// # Errors
    /// `OutOfBounds`; then `data` is unchanged.
    fn read(&self, oa: Oa, data: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies `data` to memory.
    ///
    /// # Errors
    /// `OutOfBounds`; then nothing was written.
    fn write(&self, oa: Oa, data: &[u8]) -> Result<(), MemoryError>;

    /// Writes `len` times `byte`.
    ///
    /// # Errors
    /// `OutOfBounds`; then nothing was written.
    fn fill(&self, oa: Oa, byte: u8, len: u64) -> Result<(), MemoryError>;

    /// Adds, wrapping; returns the value before. Sequentially consistent.
    ///
    /// # Errors
    /// `OutOfBounds`, `Misaligned`.
    fn fetch_add_u32(&self, oa: Oa, value: u32) -> Result<u32, MemoryError>;

    /// Adds, wrapping; returns the value before. Sequentially consistent.
    ///
    /// # Errors
    /// `OutOfBounds`, `Misaligned`.
    fn fetch_add_u64(&self, oa: Oa, value: u64) -> Result<u64, MemoryError>;

    /// Stores `new` if the value is `expected`; returns the value before. Sequentially consistent.
    ///
    /// # Errors
    /// `OutOfBounds`, `Misaligned`.
    fn compare_swap_u32(&self, oa: Oa, expected: u32, new: u32) -> Result<u32, MemoryError>;

    /// Stores `new` if the value is `expected`; returns the value before. Sequentially consistent.
    ///
    /// # Errors
    /// `OutOfBounds`, `Misaligned`.
    fn compare_swap_u64(&self, oa: Oa, expected: u64, new: u64) -> Result<u64, MemoryError>;

    /// The address in this process of `len` bytes at `oa`, if they have one: valid for as long as
    /// the memory lives, and to be used by volatile or atomic accesses only. `None` also if they do
    /// not lie in the memory. Whoever writes there has to see to it that the pages count as dirty.
    fn host_ptr(&self, oa: Oa, len: u64) -> Option<NonNull<u8>> {
        let _ = (oa, len);
        None
    }
}
