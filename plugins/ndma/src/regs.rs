//! The registers in BAR0: layout, values after reset, and what each write means (`DESIGN.md`,
//! "Registers"). No threads here: the worker's lock guards the one [`Registers`] value.

use thiserror::Error;

/// Bytes of region 0 (BAR0).
pub const REGION_BYTES: u64 = 4096;

/// RO: [`ID_VALUE`].
pub const ID: u64 = 0x000;
/// RO: [`VERSION_VALUE`].
pub const VERSION: u64 = 0x004;
/// RW: ENABLE, RESET, IRQ_ENABLE.
pub const CONTROL: u64 = 0x008;
/// RO: ENABLED, BUSY, HALTED.
pub const STATUS: u64 = 0x00C;
/// The last ring error; any write clears it.
pub const ERROR: u64 = 0x010;
/// RW while disabled: descriptors in the ring, a power of two.
pub const RING_ENTRIES: u64 = 0x014;
/// RW while disabled, 64 bits: IOVA of the ring.
pub const RING_BASE: u64 = 0x018;
/// RO: the next descriptor the device will take.
pub const NEXT: u64 = 0x020;
/// RO, 64 bits: descriptors handed back since reset.
pub const COMPLETED: u64 = 0x028;
/// RO, 64 bits: payload bytes moved since reset.
pub const BYTES: u64 = 0x030;
/// RO, 64 bits: size of the scratch memory.
pub const SCRATCH_BYTES: u64 = 0x038;
/// RO, 64 bits: writes to the window since reset.
pub const WINDOW_WRITES: u64 = 0x040;
/// RO, 64 bits: running sum over the values written to the window.
pub const WINDOW_SUM: u64 = 0x048;
/// RO, 64 bits: size of the window.
pub const WINDOW_BYTES: u64 = 0x050;
/// The window begins here.
pub const WINDOW: u64 = 0x400;
/// WO: any value makes the device look at the ring.
pub const DOORBELL: u64 = 0x800;

/// "NDMA" as little-endian bytes.
pub const ID_VALUE: u32 = 0x414D_444E;
/// Version of this register layout.
pub const VERSION_VALUE: u32 = 1;

/// CONTROL: take descriptors.
pub const CONTROL_ENABLE: u32 = 1 << 0;
/// CONTROL: reset the device; reads as zero.
pub const CONTROL_RESET: u32 = 1 << 1;
/// CONTROL: trigger vectors.
pub const CONTROL_IRQ_ENABLE: u32 = 1 << 2;

/// STATUS: as CONTROL.ENABLE.
pub const STATUS_ENABLED: u32 = 1 << 0;
/// STATUS: a descriptor is at hand, or the ring is still to be looked at.
pub const STATUS_BUSY: u32 = 1 << 1;
/// STATUS: stopped by a ring error.
pub const STATUS_HALTED: u32 = 1 << 2;

/// Vector of completions.
pub const VECTOR_DONE: u16 = 0;
/// Vector of ring errors.
pub const VECTOR_ERROR: u16 = 1;

/// Most descriptors in a ring; the fewest are 2.
pub const MAX_ENTRIES: u32 = 4096;
/// Alignment of the ring in bytes.
pub const RING_ALIGN: u64 = 64;

/// What the ERROR register can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RingError {
    /// A descriptor could not be read.
    Read = 1,
    /// A descriptor could not be handed back.
    Write = 2,
    /// ENABLE was refused: no ring, or one that passes the end of the address space.
    Setup = 3,
}

/// All state of the device except the scratch memory. [`check`](Self::check) says which values
/// can occur; every other module relies on that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Registers {
    /// CONTROL.ENABLE.
    pub enabled: bool,
    /// CONTROL.IRQ_ENABLE.
    pub irq_enabled: bool,
    /// STATUS.HALTED.
    pub halted: bool,
    /// A doorbell was rung, or the last look at the ring found a descriptor: look (again).
    pub doorbell: bool,
    /// ERROR.
    pub error: u32,
    /// RING_ENTRIES; 0 until the driver sets it.
    pub ring_entries: u32,
    /// RING_BASE.
    pub ring_base: u64,
    /// NEXT.
    pub next: u32,
    /// COMPLETED.
    pub completed: u64,
    /// BYTES.
    pub bytes: u64,
}

/// A write that means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// To CONTROL.
    Control(u32),
    /// To ERROR.
    ClearError,
    /// To RING_ENTRIES.
    RingEntries(u32),
    /// To RING_BASE: the bits of `mask` become those of `value`.
    RingBase {
        /// New bits.
        value: u64,
        /// Which bits.
        mask: u64,
    },
    /// To DOORBELL.
    Doorbell,
}

/// A value that no device of this version can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("Register field {field} cannot be {value:#x}")]
pub struct Invalid {
    /// Which field.
    pub field: &'static str,
    /// What it held.
    pub value: u64,
}

/// Decodes a write of `data` at `offset`. `None`: nothing the device knows, to be ignored.
#[must_use]
pub fn decode_write(offset: u64, data: &[u8]) -> Option<Write> {
    if let Ok(data) = <[u8; 8]>::try_from(data) {
        let value = u64::from_le_bytes(data);
        return (offset == RING_BASE).then_some(Write::RingBase { value, mask: u64::MAX });
    }
    let value = u32::from_le_bytes(data.try_into().ok()?);
    let wide = u64::from(value);
    Some(match offset {
        CONTROL => Write::Control(value),
        ERROR => Write::ClearError,
        RING_ENTRIES => Write::RingEntries(value),
        RING_BASE => Write::RingBase { value: wide, mask: 0xFFFF_FFFF },
        0x01C => Write::RingBase { value: wide << 32, mask: 0xFFFF_FFFF << 32 },
        DOORBELL => Write::Doorbell,
        _ => return None,
    })
}

impl Registers {
    /// Answers a read of `data.len()` bytes at `offset`: all-ones unless it is an aligned access
    /// of 4 bytes, or of 8 bytes to a 64-bit register. `busy`: the worker has a descriptor at
    /// hand. `scratch`: bytes of scratch memory.
    pub fn read(&self, offset: u64, data: &mut [u8], busy: bool, scratch: u64) {
        data.fill(0xFF);
        let wide = matches!(offset, RING_BASE | COMPLETED | BYTES | SCRATCH_BYTES | WINDOW_BYTES);
        if offset < REGION_BYTES && (data.len() != 8 || wide) {
            part(self.quad(offset & !7, busy, scratch), offset, data);
        }
    }

    /// The eight bytes at an 8-byte aligned `offset`. Reserved offsets read as zero.
    fn quad(&self, offset: u64, busy: bool, scratch: u64) -> u64 {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        match offset {
            ID => pair(ID_VALUE, VERSION_VALUE),
            CONTROL => pair(self.control(), self.status(busy)),
            ERROR => pair(self.error, self.ring_entries),
            RING_BASE => self.ring_base,
            NEXT => pair(self.next, 0),
            COMPLETED => self.completed,
            BYTES => self.bytes,
            SCRATCH_BYTES => scratch,
            WINDOW_BYTES => crate::window::WINDOW_BYTES as u64,
            _ => 0,
        }
    }

    /// The CONTROL register.
    #[must_use]
    pub fn control(&self) -> u32 {
        u32::from(self.enabled) * CONTROL_ENABLE + u32::from(self.irq_enabled) * CONTROL_IRQ_ENABLE
    }

    fn status(&self, busy: bool) -> u32 {
        let busy = busy || self.wants_work();
        u32::from(self.enabled) * STATUS_ENABLED
            + u32::from(busy) * STATUS_BUSY
            + u32::from(self.halted) * STATUS_HALTED
    }

    /// True if this write may only be applied while the worker holds no descriptor: afterwards
    /// the driver may rely on there being no DMA and no interrupt.
    #[must_use]
    pub fn needs_idle(write: Write) -> bool {
        matches!(write, Write::Control(value)
            if value & CONTROL_RESET != 0 || value & CONTROL_ENABLE == 0)
    }

    /// Applies a write. A reset of the scratch memory is the caller's part.
    pub fn apply(&mut self, write: Write) {
        match write {
            Write::Control(value) if value & CONTROL_RESET != 0 => *self = Self::default(),
            Write::Control(value) => {
                self.irq_enabled = value & CONTROL_IRQ_ENABLE != 0;
                match (self.enabled, value & CONTROL_ENABLE != 0) {
                    (false, true) => self.enable(),
                    (true, false) => (self.enabled, self.halted) = (false, false),
                    _ => {}
                }
            }
            Write::ClearError => self.error = 0,
            Write::RingEntries(value) if !self.enabled && is_ring_size(value) => {
                self.ring_entries = value;
            }
            Write::RingBase { value, mask } if !self.enabled => {
                self.ring_base = (self.ring_base & !mask | value & mask) & !(RING_ALIGN - 1);
            }
            Write::RingEntries(_) | Write::RingBase { .. } => {}
            Write::Doorbell => self.doorbell = true,
        }
    }

    fn enable(&mut self) {
        if self.ring_fits() {
            self.enabled = true;
            self.next = 0;
        } else {
            self.error = RingError::Setup as u32;
        }
    }

    /// True if there is a ring and its last byte is inside the 64-bit address space.
    fn ring_fits(&self) -> bool {
        let bytes = u64::from(self.ring_entries) * RING_ALIGN;
        bytes != 0 && self.ring_base.checked_add(bytes - 1).is_some()
    }

    /// True if the device would take a look at the ring now, were it allowed to.
    #[must_use]
    pub fn wants_work(&self) -> bool {
        self.enabled && !self.halted && self.doorbell
    }

    /// IOVA of the descriptor that NEXT names.
    #[must_use]
    pub fn next_descriptor(&self) -> u64 {
        // Cannot wrap: `ring_fits` held when ENABLE was set, and NEXT is inside the ring.
        self.ring_base.wrapping_add(u64::from(self.next) * crate::descriptor::SIZE)
    }

    /// One more descriptor was handed back, with this many payload bytes.
    pub fn complete(&mut self, moved: u64) {
        self.next = self.next.wrapping_add(1) & self.ring_entries.wrapping_sub(1);
        self.completed = self.completed.wrapping_add(1);
        self.bytes = self.bytes.wrapping_add(moved);
        self.doorbell = true;
    }

    /// The ring faulted.
    pub fn halt(&mut self, error: RingError) {
        self.halted = true;
        self.error = error as u32;
    }

    /// Checks values that came from outside, as strictly as the writes of a driver are checked.
    ///
    /// # Errors
    /// Names the first field that no device of this version can have.
    pub fn check(&self) -> Result<(), Invalid> {
        let field = |ok: bool, field: &'static str, value: u64| {
            ok.then_some(()).ok_or(Invalid { field, value })
        };
        let entries = self.ring_entries;
        field(entries == 0 || is_ring_size(entries), "ring_entries", entries.into())?;
        field(self.ring_base.is_multiple_of(RING_ALIGN), "ring_base", self.ring_base)?;
        field(!self.enabled || entries != 0, "enabled", 1)?;
        field(!self.enabled || self.ring_fits(), "ring_base", self.ring_base)?;
        field(!self.halted || self.enabled, "halted", 1)?;
        field(self.error <= RingError::Setup as u32, "error", self.error.into())?;
        let limit = if self.enabled { entries } else { MAX_ENTRIES };
        field(self.next < limit, "next", self.next.into())
    }
}

/// The part of a 64-bit register that an access at `offset` reads: all of it, or an aligned half. Leaves
/// `data` as it is if the access is none of these.
pub fn part(quad: u64, offset: u64, data: &mut [u8]) {
    let [a, b, c, d, e, f, g, h] = quad.to_le_bytes();
    match (data.len(), offset % 8) {
        (8, 0) => data.copy_from_slice(&[a, b, c, d, e, f, g, h]),
        (4, 0) => data.copy_from_slice(&[a, b, c, d]),
        (4, 4) => data.copy_from_slice(&[e, f, g, h]),
        _ => {}
    }
}

/// True for what RING_ENTRIES accepts.
fn is_ring_size(entries: u32) -> bool {
    entries.is_power_of_two() && (2..=MAX_ENTRIES).contains(&entries)
}

#[cfg(test)]
#[path = "regs_test.rs"]
mod tests;
