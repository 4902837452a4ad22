//! The header of a record; its layout is in the module above.

use super::{At, WireError};

/// Bytes in a header.
pub const HEADER_BYTES: usize = 32;
/// A reader that does not know the tag skips the record.
pub const FLAG_OPTIONAL: u32 = 1;

macro_rules! tags {
    ($($(#[$doc:meta])* $variant:ident = $number:literal, $name:literal;)*) => {
        /// What a record is. Numbers from 64 on go from the destination to the source.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Tag {
            $($(#[$doc])* $variant = $number,)*
        }

        impl Tag {
            /// The tag of this number.
            #[must_use]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Its name in messages.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

tags! {
    /// The configuration block, as JSON.
    Config = 1, "config";
    /// The source has reached a phase. Optional.
    Phase = 2, "phase";
    /// Pages of RAM.
    Pages = 3, "pages";
    /// A piece of a device's state.
    DeviceData = 4, "device-data";
    /// A device's state is complete.
    DeviceEnd = 5, "device-end";
    /// A piece of the machine's state.
    MachineState = 6, "machine-state";
    /// A round has been sent; to be answered.
    Sync = 7, "sync";
    /// All has been sent: load it.
    Handover = 8, "handover";
    /// Hashes of pages, for verification.
    Digests = 9, "digests";
    /// Hash of a part of the state, for verification.
    StateDigest = 10, "state-digest";
    /// All hashes have been sent.
    VerifyEnd = 11, "verify-end";
    /// The lease has been given up: take it and run.
    Commit = 12, "commit";
    /// The source has given up; the payload says why.
    Cancel = 13, "cancel";
    /// The configuration is accepted.
    Accept = 64, "accept";
    /// The configuration is refused; blockers as JSON.
    Refuse = 65, "refuse";
    /// The answer to a sync.
    Synced = 66, "synced";
    /// All is loaded; verification may begin. Only if that was asked for.
    Loaded = 67, "loaded";
    /// What verification found, as JSON.
    Verified = 68, "verified";
    /// All is loaded, checked and set: give up the lease.
    Ready = 69, "ready";
    /// The guest runs here.
    Running = 70, "running";
    /// The destination has given up; the payload says why.
    Failed = 71, "failed";
}

/// A record's header, decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHeader {
    /// The tag as a number; it may be unknown.
    pub tag: u32,
    /// The flags.
    pub flags: u32,
    /// Bytes of payload.
    pub length: u64,
    /// How many of them the checksum covers.
    pub checked: u32,
    /// The checksum of those.
    pub crc: u32,
    /// The record's number.
    pub sequence: u32,
}

impl RecordHeader {
    /// The bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&self.tag.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.checked.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.crc.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.sequence.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads it back and compares its checksum; what it says is for the caller to judge.
    ///
    /// # Errors
    /// Wrong checksum.
    pub fn decode(bytes: &[u8; HEADER_BYTES], at: At) -> Result<Self, WireError> {
        use super::message::array;
        if crc32fast::hash(&bytes[..28]) != u32::from_le_bytes(array(bytes, 28)) {
            return Err(WireError::HeaderChecksum { at });
        }
        Ok(Self {
            tag: u32::from_le_bytes(array(bytes, 0)),
            flags: u32::from_le_bytes(array(bytes, 4)),
            length: u64::from_le_bytes(array(bytes, 8)),
            checked: u32::from_le_bytes(array(bytes, 16)),
            crc: u32::from_le_bytes(array(bytes, 20)),
            sequence: u32::from_le_bytes(array(bytes, 24)),
        })
    }
}
