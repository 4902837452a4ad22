//! A split ring over DMA calls: chains of buffers in, used ones out. Nothing in it is trusted; what
//! breaks the rules of the specification breaks the device, until the driver resets it.

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

use crate::bus::{Bus, Fault};

/// Bytes of a descriptor.
pub const DESC_BYTES: u64 = 16;

/// What a driver did that no driver may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Broken {
    /// The ring or a buffer cannot be reached.
    #[error("a ring or buffer that cannot be reached")]
    Fault,
    /// More chains than the ring has entries.
    #[error("{0} new chains in a ring of {1}")]
    Index(u16, u16),
    /// A descriptor that is not there.
    #[error("descriptor {0} of {1}")]
    Descriptor(u16, u16),
    /// A chain of more descriptors than there are.
    #[error("a chain without an end")]
    Loop,
    /// A table of descriptors, which was not offered.
    #[error("an indirect descriptor")]
    Indirect,
    /// A buffer of no bytes, or beyond the last address.
    #[error("a buffer of {1} bytes at {0:#x}")]
    Buffer(u64, u32),
    /// A buffer that goes the wrong way.
    #[error("a buffer of the wrong direction")]
    Direction,
}

impl From<Fault> for Broken {
    fn from(_: Fault) -> Self {
        Self::Fault
    }
}

/// Part of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// IOVA.
    pub iova: u64,
    /// Bytes, at least 1.
    pub len: u32,
}

/// A chain of buffers, all of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its first descriptor.
    pub head: u16,
    /// Its buffers.
    pub segments: Vec<Segment>,
}

impl Chain {
    /// Bytes of all buffers.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.segments.iter().map(|segment| u64::from(segment.len)).sum()
    }

    /// True if it has no buffer; none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }
}

/// A queue: what the driver has set, and how far the device has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Queue {
    /// Descriptors, a power of two.
    pub size: u16,
    /// MSI-X vector, or 0xffff.
    pub vector: u16,
    /// In use.
    pub enabled: bool,
    /// IOVA of the descriptors.
    pub desc: u64,
    /// IOVA of the driver's ring.
    pub avail: u64,
    /// IOVA of the device's ring.
    pub used: u64,
    /// The next chain to take, counted for ever.
    pub next_avail: u16,
    /// The next used entry to fill in, counted for ever.
    pub next_used: u16,
}

fn read_u16(bus: &impl Bus, iova: u64) -> Result<u16, Broken> {
    let mut data = [0; 2];
    bus.read(iova, &mut data)?;
    Ok(u16::from_le_bytes(data))
}

impl Queue {
    /// True if the driver may enable it so: aligned, and inside the address space.
    #[must_use]
    pub fn is_sound(&self, max: u16) -> bool {
        let size = u64::from(self.size);
        let fits = |start: u64, bytes: u64| start.checked_add(bytes).is_some();
        self.size.is_power_of_two()
            && self.size <= max
            && self.desc.is_multiple_of(16)
            && self.avail.is_multiple_of(2)
            && self.used.is_multiple_of(4)
            && fits(self.desc, DESC_BYTES * size)
            && fits(self.avail, 6 + 2 * size)
            && fits(self.used, 6 + 8 * size)
    }

    fn slot(&self, index: u16) -> u64 {
        // The size is a power of two once the queue is enabled.
        u64::from(index & self.size.wrapping_sub(1))
    }

    /// Chains that the driver has made available and the device has not taken.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn waiting(&self, bus: &impl Bus) -> Result<u16, Broken> {
        let new = read_u16(bus, self.avail + 2)?.wrapping_sub(self.next_avail);
        if new > self.size { Err(Broken::Index(new, self.size)) } else { Ok(new) }
    }

    /// Chain number `ahead` of those that wait, one of [`waiting`](Self::waiting), without taking it.
    /// All of its buffers have to be for the device to write, or none.
    ///
    /// # Errors
    /// The ring or the chain is broken.
    pub fn look(&self, bus: &impl Bus, ahead: u16, write: bool) -> Result<Chain, Broken> {
        let slot = self.slot(self.next_avail.wrapping_add(ahead));
        let head = read_u16(bus, self.avail + 4 + 2 * slot)?;
        let (mut index, mut segments) = (head, Vec::new());
        loop {
            if index >= self.size {
                return Err(Broken::Descriptor(index, self.size));
            }
            if segments.len() >= usize::from(self.size) {
                return Err(Broken::Loop);
            }
            let mut raw = [0; DESC_BYTES as usize];
            bus.read(self.desc + DESC_BYTES * u64::from(index), &mut raw)?;
            let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = raw;
            let iova = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
            let len = u32::from_le_bytes([l0, l1, l2, l3]);
            let flags = u32::from(u16::from_le_bytes([f0, f1]));
            if flags & VRING_DESC_F_INDIRECT != 0 {
                return Err(Broken::Indirect);
            }
            if (flags & VRING_DESC_F_WRITE != 0) != write {
                return Err(Broken::Direction);
            }
            if len == 0 || iova.checked_add(u64::from(len)).is_none() {
                return Err(Broken::Buffer(iova, len));
            }
            segments.push(Segment { iova, len });
            if flags & VRING_DESC_F_NEXT == 0 {
                return Ok(Chain { head, segments });
            }
            index = u16::from_le_bytes([n0, n1]);
        }
    }

    /// Gives chains back, in which so many bytes were written: all of them at once, in the eyes of the
    /// driver. They are the first of those that wait. Says whether the driver wants an interrupt.
    ///
    /// # Errors
    /// The ring cannot be reached; nothing was given back then.
    pub fn give_back(
        &mut self,
        bus: &impl Bus,
        used: &[(u16, u32)],
        event_idx: bool,
    ) -> Result<bool, Broken> {
        let (old, mut new) = (self.next_used, self.next_used);
        for (head, len) in used {
            let mut entry = [0; 8];
            let (id, written) = entry.split_at_mut(4);
            id.copy_from_slice(&u32::from(*head).to_le_bytes());
            written.copy_from_slice(&len.to_le_bytes());
            bus.write(self.used + 4 + 8 * self.slot(new), &entry)?;
            new = new.wrapping_add(1);
        }
        bus.write(self.used + 2, &new.to_le_bytes())?;
        self.next_used = new;
        self.next_avail = self.next_avail.wrapping_add(new.wrapping_sub(old));
        // The driver stores what it wants, then looks at the index; we the other way round.
        fence(Ordering::SeqCst);
        if !event_idx {
            let flags = u32::from(read_u16(bus, self.avail)?);
            return Ok(flags & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let event = read_u16(bus, self.avail + 4 + 2 * u64::from(self.size))?;
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// Asks the driver to ring for the next chain beyond `seen` of those that wait, and says whether
    /// there is one already.
    ///
    /// # Errors
    /// The ring is broken.
    pub fn ask(&self, bus: &impl Bus, seen: u16, event_idx: bool) -> Result<bool, Broken> {
        if event_idx {
            let event = self.next_avail.wrapping_add(seen);
            bus.write(self.used + 4 + 8 * u64::from(self.size), &event.to_le_bytes())?;
            fence(Ordering::SeqCst);
        }
        Ok(self.waiting(bus)? > seen)
    }
}

#[cfg(test)]
#[path = "ring_test.rs"]
mod tests;
