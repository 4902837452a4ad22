//! The shape of one base address register (PCI Local Bus 3.0 section 6.2.5.1).

use super::regs::{BAR_COUNT, BAR_FLAGS, BAR_PREFETCHABLE, BAR_TYPE_64};

/// Width of a memory BAR's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// One register, address below 4 GiB.
    Memory32,
    /// Two registers, any address.
    Memory64,
}

/// One memory BAR of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarSpec {
    /// Register index, 0..6; a 64-bit BAR takes this one and the next.
    pub index: u8,
    /// Bytes, a power of two of at least 16 (at least 4096 is wise: KVM slots and guests think in
    /// pages).
    pub size: u64,
    /// Width of the address.
    pub kind: BarKind,
    /// Reads have no side effect.
    pub prefetchable: bool,
}

impl BarSpec {
    /// A plain 32-bit BAR.
    #[must_use]
    pub const fn memory32(index: u8, size: u64) -> Self {
        Self { index, size, kind: BarKind::Memory32, prefetchable: false }
    }

    /// How many registers it takes.
    #[must_use]
    pub const fn registers(&self) -> usize {
        match self.kind {
            BarKind::Memory32 => 1,
            BarKind::Memory64 => 2,
        }
    }

    /// True if size and index are ones that a header can express.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let largest = match self.kind {
            BarKind::Memory32 => 1 << 31,
            BarKind::Memory64 => 1 << 62,
        };
        self.size.is_power_of_two()
            && (16..=largest).contains(&self.size)
            && usize::from(self.index) + self.registers() <= BAR_COUNT
    }

    /// The bits that the guest can write, over both registers of a 64-bit BAR.
    pub(super) const fn address_mask(&self) -> u64 {
        !(self.size - 1) & !BAR_FLAGS
    }

    /// The read-only low bits.
    pub(super) const fn flags(&self) -> u32 {
        let width = match self.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => BAR_TYPE_64,
        };
        if self.prefetchable { width | BAR_PREFETCHABLE } else { width }
    }
}
