//! Where BARs are placed before the guest starts, as firmware would.

use std::ops::Range;

use thiserror::Error;

/// GPAs in which BARs are decoded: below the IOAPIC (0xFEC0_0000), above the 3 GiB of low RAM.
pub const MMIO_WINDOW: Range<u64> = 0xe000_0000..0xfeb0_0000;

/// The window has no room for a BAR.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("No room for a BAR of {size:#x} bytes: {used:#x} of {len:#x} bytes are taken")]
pub struct WindowFull {
    /// Size of the BAR.
    pub size: u64,
    /// Bytes below the next free address.
    pub used: u64,
    /// Size of the window.
    pub len: u64,
}

/// Hands out naturally aligned pieces of a window, upwards.
#[derive(Debug)]
pub struct BarWindow {
    range: Range<u64>,
    next: u64,
}

impl BarWindow {
    /// All of `range` is free.
    #[must_use]
    pub const fn new(range: Range<u64>) -> Self {
        let next = range.start;
        Self { range, next }
    }

    /// Takes `size` bytes (a power of two), aligned to their size and to a page.
    ///
    /// # Errors
    /// [`WindowFull`].
    pub fn allocate(&mut self, size: u64) -> Result<u64, WindowFull> {
        let full = || WindowFull {
            size,
            used: self.next.saturating_sub(self.range.start),
            len: self.range.end.saturating_sub(self.range.start),
        };
        let address = self.next.checked_next_multiple_of(size.max(4096)).ok_or_else(full)?;
        let end =
            address.checked_add(size).filter(|&end| end <= self.range.end).ok_or_else(full)?;
        self.next = end;
        Ok(address)
    }
}

#[cfg(test)]
#[path = "window_test.rs"]
mod tests;
