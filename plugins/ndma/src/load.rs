//! A session of writing: a saved state, taken apart and checked as if a guest had written it.
//! Nothing reaches the device before all of it is there and right.

use thiserror::Error;

use crate::format::{
    self, HEADER_BYTES, Kind, MAGIC, OLDEST_READ, REGISTERS_BYTES, SECTION_BYTES, VERSION,
};
use crate::regs::{Invalid, Registers};
use crate::scratch::PAGE;
use crate::window::Window;

/// Why a state was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LoadError {
    /// Another kind of data.
    #[error("Saved state begins with {0:02x?}, not with {MAGIC:02x?}")]
    Magic([u8; 8]),
    /// Written by another version.
    #[error("Saved state has version {0}, this device reads versions {OLDEST_READ} to {VERSION}")]
    Version(u32),
    /// A reserved field of the header is used.
    #[error("Saved state has {0:#x} in a reserved field of its header")]
    Reserved(u32),
    /// The parameters differ.
    #[error("Saved state has {theirs} bytes of scratch memory, this device {ours} (scratch_kib)")]
    ScratchBytes {
        /// Of the saved device.
        theirs: u64,
        /// Of this one.
        ours: u64,
    },
    /// A section of no known kind.
    #[error("Saved state has a section of unknown kind {0}")]
    Kind(u32),
    /// A section of the wrong length.
    #[error("Saved state has a {kind:?} section of {length} bytes, it must have {}", kind.length())]
    Length {
        /// Of the section.
        kind: Kind,
        /// As it says.
        length: u32,
    },
    /// A page that is not there.
    #[error("Saved state has a scratch page at offset {0:#x}, which is no page of this device")]
    Offset(u64),
    /// A section that may come only once came again.
    #[error("Saved state has two {0:?} sections")]
    Twice(Kind),
    /// A flag that is neither 0 nor 1.
    #[error("Register field {field} is a flag and cannot be {value}")]
    Flag {
        /// Which.
        field: &'static str,
        /// What it held.
        value: u32,
    },
    /// A register with an impossible value.
    #[error(transparent)]
    Register(#[from] Invalid),
    /// Bytes after the end.
    #[error("Saved state goes on for {0} bytes after its end")]
    Trailing(usize),
    /// The end is missing.
    #[error("Saved state ends early, in or before its {0}")]
    Truncated(&'static str),
    /// A page was never sent.
    #[error("Saved state lacks the scratch page at offset {0:#x}")]
    MissingPage(u64),
    /// The registers were never sent.
    #[error("Saved state lacks the Registers section")]
    MissingRegisters,
    /// The window was never sent.
    #[error("Saved state lacks the Window section")]
    MissingWindow,
}

/// A state that was checked as a whole.
#[derive(Debug)]
pub struct Loaded {
    /// The scratch memory.
    pub scratch: Vec<u8>,
    /// The registers.
    pub regs: Registers,
    /// The window; empty in a state that has none.
    pub window: Window,
}

/// What the next bytes are.
#[derive(Debug, Clone, Copy)]
enum Expect {
    Header,
    Section,
    Payload(Kind),
    Nothing,
}

/// Collects the stream, in pieces of any size.
#[derive(Debug)]
pub struct Load {
    expect: Expect,
    /// The bytes of it so far; never more than one section.
    part: Vec<u8>,
    scratch: Vec<u8>,
    seen: Vec<bool>,
    regs: Option<Registers>,
    /// The header says that there is one.
    has_window: bool,
    window: Option<Window>,
}

impl Load {
    /// A session for a device of `pages` scratch pages. Allocates all that it will need.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        Self {
            expect: Expect::Header,
            part: Vec::with_capacity(format::SCRATCH_BYTES),
            scratch: vec![0; pages.saturating_mul(PAGE)],
            seen: vec![false; pages],
            regs: None,
            has_window: true,
            window: None,
        }
    }

    /// Takes more of the stream.
    ///
    /// # Errors
    /// The first thing that is wrong. The session is of no use then.
    pub fn write(&mut self, mut data: &[u8]) -> Result<(), LoadError> {
        while !data.is_empty() {
            let need = match self.expect {
                Expect::Header => HEADER_BYTES,
                Expect::Section => SECTION_BYTES,
                Expect::Payload(kind) => kind.length(),
                Expect::Nothing => return Err(LoadError::Trailing(data.len())),
            };
            let size = need.saturating_sub(self.part.len()).min(data.len());
            let (front, rest) = data.split_at(size);
            self.part.extend_from_slice(front);
            data = rest;
            if self.part.len() == need {
                let part = std::mem::take(&mut self.part);
                self.expect = self.take(&part)?;
                self.part = part;
                self.part.clear();
            }
        }
        Ok(())
    }

    /// Takes one whole part; says what comes next.
    fn take(&mut self, part: &[u8]) -> Result<Expect, LoadError> {
        let mut fields = Fields(part);
        match self.expect {
            Expect::Header => {
                let magic = fields.bytes();
                if magic != MAGIC {
                    return Err(LoadError::Magic(magic));
                }
                let (version, reserved) = (fields.u32(), fields.u32());
                if !(OLDEST_READ..=VERSION).contains(&version) {
                    return Err(LoadError::Version(version));
                }
                if reserved != 0 {
                    return Err(LoadError::Reserved(reserved));
                }
                self.has_window = version >= 2;
                let (theirs, ours) = (fields.u64(), self.scratch.len() as u64);
                if theirs != ours {
                    return Err(LoadError::ScratchBytes { theirs, ours });
                }
                Ok(Expect::Section)
            }
            Expect::Section => {
                let (number, length) = (fields.u32(), fields.u32());
                let known = |kind: &Kind| *kind != Kind::Window || self.has_window;
                let kind = Kind::from_number(number).filter(known);
                let kind = kind.ok_or(LoadError::Kind(number))?;
                if usize::try_from(length) != Ok(kind.length()) {
                    return Err(LoadError::Length { kind, length });
                }
                match kind {
                    Kind::End => Ok(Expect::Nothing),
                    kind => Ok(Expect::Payload(kind)),
                }
            }
            Expect::Payload(Kind::Scratch) => {
                self.take_page(fields.u64(), fields.0)?;
                Ok(Expect::Section)
            }
            Expect::Payload(Kind::Registers) => {
                let regs = registers(&mut fields)?;
                regs.check()?;
                if self.regs.replace(regs).is_some() {
                    return Err(LoadError::Twice(Kind::Registers));
                }
                Ok(Expect::Section)
            }
            Expect::Payload(Kind::Window) => {
                let (writes, sum) = (fields.u64(), fields.u64());
                let window = Window { memory: Box::new(fields.bytes()), writes, sum };
                if self.window.replace(window).is_some() {
                    return Err(LoadError::Twice(Kind::Window));
                }
                Ok(Expect::Section)
            }
            Expect::Payload(Kind::End) | Expect::Nothing => Ok(Expect::Nothing),
        }
    }

    fn take_page(&mut self, offset: u64, bytes: &[u8]) -> Result<(), LoadError> {
        let wrong = LoadError::Offset(offset);
        let Ok(start) = usize::try_from(offset) else {
            return Err(wrong);
        };
        if !start.is_multiple_of(PAGE) {
            return Err(wrong);
        }
        let Some(seen) = self.seen.get_mut(start / PAGE) else {
            return Err(wrong);
        };
        let Some(page) = self.scratch.get_mut(start..start.saturating_add(bytes.len())) else {
            return Err(wrong);
        };
        page.copy_from_slice(bytes);
        *seen = true;
        Ok(())
    }

    /// Ends the session.
    ///
    /// # Errors
    /// What is missing.
    pub fn finish(self) -> Result<Loaded, LoadError> {
        match self.expect {
            Expect::Header => return Err(LoadError::Truncated("header")),
            Expect::Section => return Err(LoadError::Truncated("End section")),
            Expect::Payload(_) => return Err(LoadError::Truncated("last section's payload")),
            Expect::Nothing => {}
        }
        if let Some(page) = self.seen.iter().position(|seen| !seen) {
            return Err(LoadError::MissingPage((page as u64).saturating_mul(PAGE as u64)));
        }
        let regs = self.regs.ok_or(LoadError::MissingRegisters)?;
        let window = match self.window {
            None if self.has_window => return Err(LoadError::MissingWindow),
            window => window.unwrap_or_default(),
        };
        Ok(Loaded { scratch: self.scratch, regs, window })
    }
}

fn registers(fields: &mut Fields<'_>) -> Result<Registers, LoadError> {
    let mut flag = |field| match fields.u32() {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(LoadError::Flag { field, value }),
    };
    let (enabled, irq_enabled) = (flag("enabled")?, flag("irq_enabled")?);
    let (halted, doorbell) = (flag("halted")?, flag("doorbell")?);
    let (error, ring_entries, ring_base) = (fields.u32(), fields.u32(), fields.u64());
    let next = fields.u64();
    let next = u32::try_from(next).map_err(|_| Invalid { field: "next", value: next })?;
    let (completed, bytes) = (fields.u64(), fields.u64());
    Ok(Registers {
        enabled,
        irq_enabled,
        halted,
        doorbell,
        error,
        ring_entries,
        ring_base,
        next,
        completed,
        bytes,
    })
}

/// Takes little-endian numbers from the front. Parts have their full length before they are taken
/// apart, so the zeros for what is not there never show; they are the alternative to a panic.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((front, rest)) => {
                self.0 = rest;
                *front
            }
            None => [0; N],
        }
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.bytes())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.bytes())
    }
}

// The layout that `registers` reads.
const _: () = assert!(REGISTERS_BYTES == 6 * 4 + 4 * 8);

#[cfg(test)]
#[path = "load_test.rs"]
mod tests;
