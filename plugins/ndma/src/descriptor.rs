//! The descriptor: its layout in guest memory, and what makes one valid (`DESIGN.md`, "Descriptor").

/// Bytes of a descriptor.
pub const SIZE: u64 = 64;
/// Byte offset of the result in a descriptor.
pub const RESULT: u64 = 0x28;
/// Largest `len`.
pub const MAX_LEN: u64 = 1 << 20;
/// Most entries of a scatter list.
pub const MAX_LIST: u64 = 256;
/// Bytes of an entry of a scatter list: u64 iova, u32 len, u32 reserved.
pub const LIST_ENTRY: u64 = 16;

/// Flag: the descriptor is the device's.
pub const FLAG_OWN: u16 = 1 << 0;
/// Flag: vector 0 when the descriptor has been handed back.
pub const FLAG_IRQ: u16 = 1 << 1;

/// Outcome of a descriptor, as written to its status field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 1,
    /// The opcode is none of the six.
    BadOpcode = 2,
    /// `len` is not in 1..=1 MiB, or the range leaves the scratch memory.
    BadLength = 3,
    /// A reserved flag or field is not zero, or a checksum is not 8-byte aligned.
    BadAlignment = 4,
    /// A DMA read of the payload faulted.
    SourceFault = 5,
    /// A DMA write of the payload, or the read of a scatter list, faulted.
    DestinationFault = 6,
    /// A scatter list has a bad count, a reserved field set, or another sum than `len`.
    BadList = 7,
}

/// The first quadword: opcode, flags, status. The one that changes hands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head(pub u64);

impl Head {
    /// The raw opcode.
    #[must_use]
    pub fn opcode(self) -> u16 {
        let [a, b, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// The raw flags.
    #[must_use]
    pub fn flags(self) -> u16 {
        let [_, _, a, b, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([a, b])
    }

    /// True while the descriptor is the device's.
    #[must_use]
    pub fn is_owned(self) -> bool {
        self.flags() & FLAG_OWN != 0
    }

    /// True if the driver wants an interrupt for it.
    #[must_use]
    pub fn wants_irq(self) -> bool {
        self.flags() & FLAG_IRQ != 0
    }

    /// The quadword that hands the descriptor back: OWN cleared, the status filled in.
    #[must_use]
    pub fn handed_back(self, status: Status) -> Self {
        let kept = self.0 & 0xFFFF_FFFF & !(u64::from(FLAG_OWN) << 16);
        Self(kept | u64::from(status as u32) << 32)
    }
}

/// A descriptor as the driver wrote it, nothing checked yet.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    head: Head,
    src: u64,
    dst: u64,
    len: u64,
    arg: u64,
    reserved: u64,
}

/// What a valid descriptor asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// Bytes of payload, 1..=[`MAX_LEN`].
    pub len: u64,
    /// What to do with them.
    pub op: Op,
}

/// The six operations, with the operands that each uses. Addresses are IOVAs unless they say
/// otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Guest to guest.
    Copy {
        /// From here.
        src: u64,
        /// To here.
        dst: u64,
    },
    /// A pattern to guest.
    Fill {
        /// The bytes to repeat.
        pattern: [u8; 8],
        /// To here.
        dst: u64,
    },
    /// Guest to a sum; `len` is a multiple of 8.
    Checksum {
        /// From here.
        src: u64,
    },
    /// Guest to the pieces of a list.
    Scatter {
        /// From here.
        src: u64,
        /// Where the list is.
        list: u64,
        /// Entries of the list, 1..=[`MAX_LIST`].
        count: u64,
    },
    /// Guest to scratch.
    Store {
        /// From here.
        src: u64,
        /// Byte offset in the scratch memory; the range is inside it.
        scratch: u64,
    },
    /// Scratch to guest.
    Load {
        /// Byte offset in the scratch memory; the range is inside it.
        scratch: u64,
        /// To here.
        dst: u64,
    },
}

impl Descriptor {
    /// Puts together the first quadword and the other seven, in the order of memory.
    #[must_use]
    pub fn new(head: Head, rest: [u64; 7]) -> Self {
        let [src, dst, len, arg, _result, _cookie, reserved] = rest;
        Self { head, src, dst, len, arg, reserved }
    }

    /// Checks the descriptor in the order that the datasheet gives: opcode, reserved bits, length,
    /// alignment, list. `scratch` is the size of the scratch memory in bytes.
    ///
    /// # Errors
    /// The status to hand the descriptor back with.
    pub fn check(&self, scratch: u64) -> Result<Work, Status> {
        let Self { src, dst, len, arg, .. } = *self;
        let op = match self.head.opcode() {
            1 => Op::Copy { src, dst },
            2 => Op::Fill { pattern: arg.to_le_bytes(), dst },
            3 => Op::Checksum { src },
            4 => Op::Scatter { src, list: dst, count: arg },
            5 => Op::Store { src, scratch: dst },
            6 => Op::Load { scratch: src, dst },
            _ => return Err(Status::BadOpcode),
        };
        if self.head.flags() & !(FLAG_OWN | FLAG_IRQ) != 0 || self.reserved != 0 {
            return Err(Status::BadAlignment);
        }
        if len == 0 || len > MAX_LEN {
            return Err(Status::BadLength);
        }
        match op {
            Op::Store { scratch: at, .. } | Op::Load { scratch: at, .. }
                if at.checked_add(len).is_none_or(|end| end > scratch) =>
            {
                Err(Status::BadLength)
            }
            Op::Checksum { src } if !(src | len).is_multiple_of(8) => Err(Status::BadAlignment),
            Op::Scatter { count, .. } if count == 0 || count > MAX_LIST => Err(Status::BadList),
            op => Ok(Work { len, op }),
        }
    }
}

#[cfg(test)]
#[path = "descriptor_test.rs"]
mod tests;
