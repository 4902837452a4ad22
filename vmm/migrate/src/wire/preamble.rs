//! The first 40 bytes in each direction.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | version |
//! | 12 | 4 | zero |
//! | 16 | 8 | mandatory features: what a reader must know |
//! | 24 | 8 | optional features: offered by the source, chosen by the destination |
//! | 32 | 4 | zero |
//! | 36 | 4 | CRC-32 of all before |

use super::WireError;

/// Bytes in a preamble.
pub const PREAMBLE_BYTES: usize = 40;
/// How every stream begins: not text, so that a text protocol is told apart at once.
pub const MAGIC: [u8; 8] = *b"\x89DROGHER";
/// The version of the stream that this crate speaks.
pub const WIRE_VERSION: u32 = 2;
/// Page contents carry a [hash](crate::hash).
pub const FEATURE_PAGE_HASH: u64 = 1;
/// All features that this crate knows.
pub const KNOWN_FEATURES: u64 = FEATURE_PAGE_HASH;

/// Version and features of one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// Version of the stream.
    pub version: u32,
    /// Features that the reader must know.
    pub mandatory: u64,
    /// Features that the reader may choose from (source), or has chosen (destination).
    pub optional: u64,
}

impl Preamble {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; PREAMBLE_BYTES] {
        let mut bytes = [0; PREAMBLE_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.mandatory.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.optional.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..36]);
        bytes[36..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads it back. Version and features are for the caller to judge.
    ///
    /// # Errors
    /// Wrong magic or checksum.
    pub fn decode(bytes: &[u8; PREAMBLE_BYTES]) -> Result<Self, WireError> {
        let magic: [u8; 8] = super::message::array(bytes, 0);
        if magic != MAGIC {
            return Err(WireError::Magic(magic));
        }
        let crc = u32::from_le_bytes(super::message::array(bytes, 36));
        if crc32fast::hash(&bytes[..36]) != crc {
            return Err(WireError::PreambleChecksum);
        }
        Ok(Self {
            version: u32::from_le_bytes(super::message::array(bytes, 8)),
            mandatory: u64::from_le_bytes(super::message::array(bytes, 16)),
            optional: u64::from_le_bytes(super::message::array(bytes, 24)),
        })
    }
}
