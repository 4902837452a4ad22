//! The stream: a preamble in each direction, then records.
//!
//! All numbers are little endian. The source sends a [`Preamble`] and a configuration record; the
//! destination answers with its own preamble and either an accept or a refuse record. After that
//! each record is a [`RecordHeader`] of 32 bytes and its payload:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 4 | tag |
//! | 4 | 4 | flags; bit 0: optional, a reader that does not know the tag skips the record |
//! | 8 | 8 | length of the payload |
//! | 16 | 4 | how many of its first bytes the checksum covers: all, except in a pages record |
//! | 20 | 4 | CRC-32 of those |
//! | 24 | 4 | number of the record in this direction, from 0 |
//! | 28 | 4 | CRC-32 of the header before |
//!
//! A length is believed only after the header's checksum, and then only up to the limit of its
//! tag, which comes from constants and the accepted configuration block.

mod header;
mod limits;
pub(crate) mod message;
pub(crate) mod pages;
mod preamble;
mod reader;
mod writer;

use std::fmt;

pub use header::{FLAG_OPTIONAL, HEADER_BYTES, RecordHeader, Tag};
pub(crate) use limits::Limits;
pub use limits::{MAX_CHUNK, MAX_CONFIG};
pub use preamble::{
    FEATURE_PAGE_HASH, KNOWN_FEATURES, MAGIC, PREAMBLE_BYTES, Preamble, WIRE_VERSION,
};
pub(crate) use reader::{Look, ReadError, Reader, Record};
pub(crate) use writer::Writer;

/// Where in the stream something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Number of the record, from 0.
    pub record: u64,
    /// Offset of the record's first byte in the stream, the preamble included.
    pub offset: u64,
    /// Its tag, if it was read.
    pub tag: Option<u32>,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} at byte {}", self.record, self.offset)?;
        match self.tag.map(|t| (t, Tag::from_number(t))) {
            Some((_, Some(tag))) => write!(f, " ({})", tag.name()),
            Some((number, None)) => write!(f, " (tag {number:#x})"),
            None => Ok(()),
        }
    }
}

/// What is wrong with a stream, and where.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Something else speaks on the link.
    #[error("Not a drogher stream: it begins with {0:02x?}")]
    Magic([u8; 8]),
    /// Another version of the stream.
    #[error("Stream version {found} is unknown here; known is {}", WIRE_VERSION)]
    Version {
        /// The version found.
        found: u32,
    },
    /// The preamble's checksum.
    #[error("The preamble's checksum is wrong")]
    PreambleChecksum,
    /// The peer needs features that are unknown here.
    #[error("The stream needs unknown features {0:#x}")]
    Features(u64),
    /// It ends in the middle of something.
    #[error("{at}: the stream ends after {got} of {wanted} bytes of its {what}")]
    Truncated {
        /// Where.
        at: At,
        /// Of what.
        what: &'static str,
        /// Bytes there.
        got: usize,
        /// Bytes expected.
        wanted: usize,
    },
    /// The header's checksum.
    #[error("{at}: the header's checksum is wrong")]
    HeaderChecksum {
        /// Where.
        at: At,
    },
    /// A record is missing, or comes twice.
    #[error("{at}: the record calls itself number {found}")]
    Sequence {
        /// Where.
        at: At,
        /// Its number.
        found: u32,
    },
    /// A tag that must be understood, and is not.
    #[error("{at}: the tag is unknown and not optional")]
    UnknownTag {
        /// Where.
        at: At,
    },
    /// Longer than its tag may be.
    #[error("{at}: {length} bytes are more than the {limit} allowed")]
    TooLong {
        /// Where.
        at: At,
        /// Its length.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// The payload's checksum.
    #[error("{at}: the payload's checksum is wrong")]
    Checksum {
        /// Where.
        at: At,
    },
    /// The hash of page contents.
    #[error("{at}: the hash of its pages is wrong")]
    PageHash {
        /// Where.
        at: At,
    },
    /// The payload, or its contents, are too short or too long for what it says.
    #[error("{at}: {length} bytes do not fit its {what}")]
    Size {
        /// Where.
        at: At,
        /// Of what.
        what: &'static str,
        /// The length that there is.
        length: usize,
    },
    /// A value that cannot be.
    #[error("{at}: {what} {value:#x} is out of range")]
    Value {
        /// Where.
        at: At,
        /// Which.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// JSON that cannot be read.
    #[error("{at}: the text cannot be read")]
    Text {
        /// Where.
        at: At,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A record that does not belong here.
    #[error("{at}: the record does not belong here: {why}")]
    Unexpected {
        /// Where.
        at: At,
        /// Why not.
        why: &'static str,
    },
}
