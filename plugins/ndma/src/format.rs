//! Layout of the saved state (`DESIGN.md`, "Saved state"). All numbers little endian.

use crate::regs::Registers;
use crate::scratch::PAGE;
use crate::window::{WINDOW_BYTES, Window};

/// Version that is written.
pub const VERSION: u32 = 2;
/// Oldest version that is read: it has no window.
pub const OLDEST_READ: u32 = 1;
/// First bytes of the stream.
pub const MAGIC: [u8; 8] = *b"ndmastat";
/// Bytes of the header: magic, u32 version, u32 reserved, u64 bytes of scratch memory.
pub const HEADER_BYTES: usize = 24;
/// Bytes in front of each section: u32 kind, u32 length of what follows.
pub const SECTION_BYTES: usize = 8;
/// Length of a section [`Kind::Scratch`].
pub const SCRATCH_BYTES: usize = 8 + PAGE;
/// Length of a section [`Kind::Registers`].
pub const REGISTERS_BYTES: usize = 56;
/// Length of a section [`Kind::Window`].
pub const WINDOW_SECTION_BYTES: usize = 8 + 8 + WINDOW_BYTES;
/// All bytes after the last scratch page: the registers, the window and the end.
pub const TAIL_BYTES: usize =
    SECTION_BYTES + REGISTERS_BYTES + SECTION_BYTES + WINDOW_SECTION_BYTES + SECTION_BYTES;

/// The kinds of sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// u64 byte offset, then the page that is there. A later one replaces an earlier one.
    Scratch = 1,
    /// The registers, once, after the worker was parked.
    Registers = 2,
    /// Nothing follows.
    End = 3,
    /// u64 writes, u64 sum, then the window's memory, once, after the worker was parked.
    Window = 4,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        let kinds = [Self::Scratch, Self::Registers, Self::End, Self::Window];
        kinds.into_iter().find(|kind| *kind as u32 == number)
    }

    /// The length that each section of this kind has.
    #[must_use]
    pub fn length(self) -> usize {
        match self {
            Self::Scratch => SCRATCH_BYTES,
            Self::Registers => REGISTERS_BYTES,
            Self::Window => WINDOW_SECTION_BYTES,
            Self::End => 0,
        }
    }
}

/// Appends the header of a stream.
pub fn put_header(out: &mut Vec<u8>, scratch: u64) {
    out.extend_from_slice(&MAGIC);
    put_u32(out, VERSION);
    put_u32(out, 0);
    put_u64(out, scratch);
}

/// Appends a scratch page.
pub fn put_scratch(out: &mut Vec<u8>, page: usize, bytes: &[u8]) {
    put_section(out, Kind::Scratch);
    put_u64(out, (page as u64).saturating_mul(PAGE as u64));
    out.extend_from_slice(bytes);
}

/// Appends the registers, the window and the end.
pub fn put_tail(out: &mut Vec<u8>, regs: &Registers, window: &Window) {
    put_section(out, Kind::Registers);
    put_u32(out, u32::from(regs.enabled));
    put_u32(out, u32::from(regs.irq_enabled));
    put_u32(out, u32::from(regs.halted));
    put_u32(out, u32::from(regs.doorbell));
    put_u32(out, regs.error);
    put_u32(out, regs.ring_entries);
    put_u64(out, regs.ring_base);
    // NEXT is below 4096 (12 bits); as a quadword it keeps what follows aligned.
    put_u64(out, u64::from(regs.next));
    put_u64(out, regs.completed);
    put_u64(out, regs.bytes);
    put_section(out, Kind::Window);
    put_u64(out, window.writes);
    put_u64(out, window.sum);
    out.extend_from_slice(window.memory.as_slice());
    put_section(out, Kind::End);
}

fn put_section(out: &mut Vec<u8>, kind: Kind) {
    put_u32(out, kind as u32);
    // At most SCRATCH_BYTES.
    put_u32(out, kind.length() as u32);
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}
