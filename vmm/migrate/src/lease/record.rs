//! What a lease file holds: 64 bytes, little endian, with a checksum.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic `DRGHLEAS` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | state: 1 running, 2 ended |
//! | 16 | 16 | id of the VM |
//! | 32 | 8 | epoch |
//! | 40 | 4 | process id of the last who entered running, for messages |
//! | 44 | 4 | 1 if nobody has named the file, else 0 |
//! | 48 | 12 | zero |
//! | 60 | 4 | CRC-32 of all before |

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes in a record.
pub(super) const RECORD_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"DRGHLEAS";
const VERSION: u32 = 1;

/// A VM's name for life: 128 random bits, written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct VmId(pub [u8; 16]);

impl VmId {
    /// A new one, from the kernel's random numbers.
    ///
    /// # Errors
    /// If the kernel has none.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 16];
        let flags = rustix::rand::GetRandomFlags::empty();
        // The kernel gives 16 bytes whole, or fails.
        rustix::rand::getrandom(&mut bytes, flags)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for VmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VmId({self})")
    }
}

/// Text that is no VM id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a VM id of 32 hexadecimal digits")]
pub struct VmIdError {
    text: String,
}

impl FromStr for VmId {
    type Err = VmIdError;

    fn from_str(text: &str) -> Result<Self, VmIdError> {
        let error = || VmIdError { text: text.chars().take(64).collect() };
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(error());
        }
        let bits = u128::from_str_radix(text, 16).map_err(|_| error())?;
        Ok(Self(bits.to_be_bytes()))
    }
}

impl From<VmId> for String {
    fn from(id: VmId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for VmId {
    type Error = VmIdError;

    fn try_from(text: String) -> Result<Self, VmIdError> {
        text.parse()
    }
}

/// Whether the guest of a lease is still there to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseState {
    /// It runs, or ran when its process died.
    Running,
    /// It has ended in an orderly way.
    Ended,
}

/// What a lease file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The VM.
    pub vm_id: VmId,
    /// How often it has entered running after a stop, plus one.
    pub epoch: u64,
    /// Whether it has ended.
    pub state: LeaseState,
    /// Nobody has named the file: whoever ends the guest removes it.
    pub made: bool,
    /// The process that entered running last. For messages: process ids are used again.
    pub pid: u32,
}

impl LeaseRecord {
    pub(super) fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        let state: u32 = match self.state {
            LeaseState::Running => 1,
            LeaseState::Ended => 2,
        };
        let fields: [(usize, &[u8]); 7] = [
            (0, &MAGIC),
            (8, &VERSION.to_le_bytes()),
            (12, &state.to_le_bytes()),
            (16, &self.vm_id.0),
            (32, &self.epoch.to_le_bytes()),
            (40, &self.pid.to_le_bytes()),
            (44, &u32::from(self.made).to_le_bytes()),
        ];
        for (at, field) in fields {
            if let Some(place) = bytes.get_mut(at..at + field.len()) {
                place.copy_from_slice(field);
            }
        }
        let (head, tail) = bytes.split_at_mut(RECORD_BYTES - 4);
        tail.copy_from_slice(&crc32fast::hash(head).to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let bytes: &[u8; RECORD_BYTES] =
            bytes.try_into().map_err(|_| "its size is not 64 bytes")?;
        let u32_at = |at| u32::from_le_bytes(field(bytes, at));
        if field::<8>(bytes, 0) != MAGIC {
            return Err("the magic is missing");
        }
        if crc32fast::hash(&field::<60>(bytes, 0)) != u32_at(60) {
            return Err("the checksum is wrong");
        }
        if u32_at(8) != VERSION {
            return Err("its version is unknown");
        }
        let state = match u32_at(12) {
            1 => LeaseState::Running,
            2 => LeaseState::Ended,
            _ => return Err("its state is unknown"),
        };
        let made = match u32_at(44) {
            0 => false,
            1 => true,
            _ => return Err("its flags are unknown"),
        };
        Ok(Self {
            made,
            vm_id: VmId(field(bytes, 16)),
            epoch: u64::from_le_bytes(field(bytes, 32)),
            state,
            pid: u32_at(40),
        })
    }
}

/// `N` bytes from `at` on; zeroes where there are none.
fn field<const N: usize>(bytes: &[u8; RECORD_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    if let Some(from) = bytes.get(at..at + N) {
        out.copy_from_slice(from);
    }
    out
}
