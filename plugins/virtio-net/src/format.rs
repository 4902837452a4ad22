//! The saved state, version 1. All numbers little endian.
//!
//! "vnetstat", u32 version, u32 0, u16 largest queue, 6 bytes of address; u64 features of the driver, u32
//! both selectors, u16 vector, u8 status, u8 generation, u16 queue selector, u8 interrupt status, u8 0;
//! for each queue u16 size, vector, enabled, next chain (twice: taken and given back), u64 addresses; the
//! window in configuration space: u32 offset, length, u8 BAR, 3 bytes of 0; u32 frames, each u32 length
//! and bytes.

use drogher_plugin_sdk::{FRAME_MAX, FRAME_MIN};
use thiserror::Error;

use crate::device::Window;
use crate::regs::{DRIVER_OK, FEATURES, FEATURES_OK, NEEDS_RESET, NO_VECTOR, Registers, VECTORS};
use crate::worker::{HELD_BYTES, HELD_FRAMES};

/// Version that is written and read.
pub const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"vnetstat";
/// Most bytes of a state.
pub const MAX_BYTES: usize = HELD_BYTES + FRAME_MAX + 4 * HELD_FRAMES + 4096;

/// A state that this device cannot have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoadError {
    /// It ends too early.
    #[error("The state ends in the middle, after {0} bytes")]
    Short(usize),
    /// It goes on behind its end.
    #[error("The state has {0} bytes behind its end")]
    Long(usize),
    /// A value that cannot be.
    #[error("The state has {what} {value:#x}, which cannot be")]
    Value {
        /// Which.
        what: &'static str,
        /// As found.
        value: u64,
    },
}

/// What is loaded.
pub struct Loaded {
    /// The registers.
    pub regs: Registers,
    /// Frames in hand.
    pub held: Vec<Vec<u8>>,
    /// The window in configuration space.
    pub window: Window,
}

/// Writes all of it.
#[must_use]
pub fn save<'a>(
    regs: &Registers,
    mac: [u8; 6],
    window: &Window,
    held: impl ExactSizeIterator<Item = &'a Vec<u8>>,
) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend([0; 4]);
    out.extend(regs.max().to_le_bytes());
    out.extend(mac);
    out.extend(regs.driver_features.to_le_bytes());
    out.extend(regs.feature_select.iter().flat_map(|select| select.to_le_bytes()));
    out.extend(regs.config_vector.to_le_bytes());
    out.extend([regs.status, regs.generation]);
    out.extend(regs.queue_select.to_le_bytes());
    out.extend([regs.isr, 0]);
    for queue in &regs.queues {
        let enabled = u16::from(queue.enabled);
        for half in [queue.size, queue.vector, enabled, queue.next_avail, queue.next_used] {
            out.extend(half.to_le_bytes());
        }
        for address in [queue.desc, queue.avail, queue.used] {
            out.extend(address.to_le_bytes());
        }
    }
    out.extend(window.offset.to_le_bytes());
    out.extend(window.length.to_le_bytes());
    out.extend([window.bar, 0, 0, 0]);
    // At most HELD_FRAMES.
    out.extend((held.len() as u32).to_le_bytes());
    for frame in held {
        out.extend((frame.len() as u32).to_le_bytes());
        out.extend_from_slice(frame);
    }
    out
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], LoadError> {
        let end = self.at.saturating_add(len);
        let bytes = self.bytes.get(self.at..end).ok_or(LoadError::Short(self.bytes.len()))?;
        self.at = end;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, LoadError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

fn value(good: bool, what: &'static str, value: impl Into<u64>) -> Result<(), LoadError> {
    if good { Ok(()) } else { Err(LoadError::Value { what, value: value.into() }) }
}

/// Reads all of it, for a device with these parameters; trusts nothing.
///
/// # Errors
/// What cannot be.
pub fn load(bytes: &[u8], max: u16, mac: [u8; 6]) -> Result<Loaded, LoadError> {
    let mut from = Reader { bytes, at: 0 };
    let magic = from.u64()?;
    value(magic == u64::from_le_bytes(MAGIC), "magic", magic)?;
    let version = from.u32()?;
    value(version == VERSION, "version", version)?;
    let zero = from.u32()?;
    value(zero == 0, "reserved field", zero)?;
    let theirs = from.u16()?;
    value(theirs == max, "queue size", theirs)?;
    let address = from.array::<6>()?;
    let number = address.iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
    value(address == mac, "Ethernet address", number)?;

    let vector = |vector: u16| {
        value(vector < VECTORS || vector == NO_VECTOR, "vector", vector).map(|()| vector)
    };
    let mut regs = Registers::new(max, mac);
    regs.driver_features = from.u64()?;
    regs.feature_select = [from.u32()?, from.u32()?];
    regs.config_vector = vector(from.u16()?)?;
    [regs.status, regs.generation] = from.array()?;
    regs.queue_select = from.u16()?;
    let [isr, zero] = from.array()?;
    value(isr & !3 == 0, "interrupt status", isr)?;
    value(zero == 0, "reserved field", zero)?;
    regs.isr = isr;
    let (agreed, driven) = (regs.status & FEATURES_OK != 0, regs.status & DRIVER_OK != 0);
    let known = regs.driver_features & !FEATURES == 0;
    value(!agreed || known, "features", regs.driver_features)?;
    let broken = regs.status & NEEDS_RESET != 0;
    value(!driven || agreed || broken, "status", regs.status)?;
    for queue in &mut regs.queues {
        queue.size = from.u16()?;
        queue.vector = vector(from.u16()?)?;
        let enabled = from.u16()?;
        value(enabled < 2, "enabled queue", enabled)?;
        queue.enabled = enabled == 1;
        (queue.next_avail, queue.next_used) = (from.u16()?, from.u16()?);
        // No chain stays in the device's hands.
        value(queue.next_avail == queue.next_used, "used index", queue.next_used)?;
        (queue.desc, queue.avail, queue.used) = (from.u64()?, from.u64()?, from.u64()?);
        value(!queue.enabled || queue.is_sound(max), "queue", queue.desc)?;
    }
    let (offset, length) = (from.u32()?, from.u32()?);
    let [bar, zeros @ ..] = from.array::<4>()?;
    value(zeros == [0; 3], "reserved field", bar)?;
    let frames = from.u32()?;
    value(frames as usize <= HELD_FRAMES, "frames", frames)?;
    let (mut held, mut total) = (Vec::new(), 0_usize);
    for _ in 0..frames {
        let len = from.u32()?;
        let size = len as usize;
        value((FRAME_MIN..=FRAME_MAX).contains(&size), "frame length", len)?;
        total = total.saturating_add(size);
        value(total <= HELD_BYTES + FRAME_MAX, "bytes of frames", total as u64)?;
        held.push(from.take(size)?.to_vec());
    }
    if from.at < bytes.len() {
        return Err(LoadError::Long(bytes.len() - from.at));
    }
    Ok(Loaded { regs, held, window: Window { bar, offset, length } })
}

#[cfg(test)]
#[path = "format_test.rs"]
mod tests;
