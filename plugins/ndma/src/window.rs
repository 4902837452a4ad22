//! Memory in BAR0 that others write to, drivers and devices alike, and the account of what they wrote
//! (`DESIGN.md`, "Window").

use crate::regs::{self, WINDOW, WINDOW_SUM, WINDOW_WRITES};

/// Bytes of the window.
pub const WINDOW_BYTES: usize = 1024;

/// The window's memory, and what tells that every write arrived once and in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// What was written last.
    pub memory: Box<[u8; WINDOW_BYTES]>,
    /// Writes taken since reset.
    pub writes: u64,
    /// `s = rotate_left(s, 1) + w` over the values written, from 0.
    pub sum: u64,
}

impl Default for Window {
    fn default() -> Self {
        Self { memory: Box::new([0; WINDOW_BYTES]), writes: 0, sum: 0 }
    }
}

impl Window {
    /// Takes a write of a register access; false if it is none to the window.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        let Some(range) = range(offset, data.len()) else { return false };
        let Some(to) = self.memory.get_mut(range) else { return false };
        to.copy_from_slice(data);
        self.writes = self.writes.wrapping_add(1);
        self.sum = self.sum.rotate_left(1).wrapping_add(value(data));
        true
    }

    /// Answers a read of the window or of its account; false if it is neither.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> bool {
        let account = match offset & !7 {
            WINDOW_WRITES => Some(self.writes),
            WINDOW_SUM => Some(self.sum),
            _ => None,
        };
        if let Some(quad) = account {
            data.fill(0xFF);
            regs::part(quad, offset, data);
            return true;
        }
        let from = range(offset, data.len()).and_then(|range| self.memory.get(range));
        from.map(|from| data.copy_from_slice(from)).is_some()
    }
}

/// Where an aligned access of 1, 2, 4 or 8 bytes lies in the window.
fn range(offset: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(offset.checked_sub(WINDOW)?).ok()?;
    let end = start.checked_add(len)?;
    let aligned = matches!(len, 1 | 2 | 4 | 8) && start.is_multiple_of(len);
    (aligned && end <= WINDOW_BYTES).then_some(start..end)
}

/// The value of an access.
fn value(data: &[u8]) -> u64 {
    data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[cfg(test)]
#[path = "window_test.rs"]
mod tests;
