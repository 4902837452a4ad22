//! Bounded little-endian reader and writer of saved state.
//!
//! The bytes come from a peer: every read names the field it wanted, nothing allocates by a number
//! found in the stream, and what is left over at the end is an error.

use thiserror::Error;

/// Why a saved state was refused. Nothing of it was taken.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StateError {
    /// The bytes end inside a field.
    #[error("State ends inside {field}: {wanted} bytes wanted, {left} left")]
    Truncated {
        /// What was being read.
        field: &'static str,
        /// Bytes that the field needs.
        wanted: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// Bytes follow the last field.
    #[error("{left} bytes follow the end of the state")]
    Trailing {
        /// How many.
        left: usize,
    },
    /// A field's value is one that this build cannot have written.
    #[error("{field} is {found:#x}, expected {expected}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// Its value in the stream.
        found: u64,
        /// What would have been right.
        expected: &'static str,
    },
    /// A field differs from this machine's.
    #[error("{field} is {found:#x}, here it is {here:#x}")]
    Mismatch {
        /// Which field.
        field: &'static str,
        /// Its value in the stream.
        found: u64,
        /// Its value on this side.
        here: u64,
    },
    /// A read-only byte of configuration space differs: another device, or another layout.
    #[error("Configuration byte {offset:#x} is {found:#x}, here it is {here:#x} and read-only")]
    ReadOnly {
        /// Offset in configuration space.
        offset: usize,
        /// Its value in the stream.
        found: u8,
        /// Its value on this side.
        here: u8,
    },
}

/// Appends fields to a byte vector.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty state.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Appends 16 bits.
    pub fn u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends 32 bits.
    pub fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends 64 bits.
    pub fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    /// Appends bytes as they are.
    pub fn bytes(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// The state.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Takes fields from the front of a byte slice.
#[derive(Debug)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// Takes `len` bytes.
    ///
    /// # Errors
    /// [`StateError::Truncated`] if fewer are left.
    pub fn bytes(&mut self, field: &'static str, len: usize) -> Result<&'a [u8], StateError> {
        let Some((head, tail)) = self.left.split_at_checked(len) else {
            return Err(StateError::Truncated { field, wanted: len, left: self.left.len() });
        };
        self.left = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], StateError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(field, N)?);
        Ok(array)
    }

    /// Takes one byte.
    ///
    /// # Errors
    /// [`StateError::Truncated`].
    pub fn u8(&mut self, field: &'static str) -> Result<u8, StateError> {
        self.array::<1>(field).map(u8::from_le_bytes)
    }

    /// Takes 16 bits.
    ///
    /// # Errors
    /// [`StateError::Truncated`].
    pub fn u16(&mut self, field: &'static str) -> Result<u16, StateError> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// Takes 32 bits.
    ///
    /// # Errors
    /// [`StateError::Truncated`].
    pub fn u32(&mut self, field: &'static str) -> Result<u32, StateError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// Takes 64 bits.
    ///
    /// # Errors
    /// [`StateError::Truncated`].
    pub fn u64(&mut self, field: &'static str) -> Result<u64, StateError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// Takes 128 bits.
    ///
    /// # Errors
    /// [`StateError::Truncated`].
    pub fn u128(&mut self, field: &'static str) -> Result<u128, StateError> {
        self.array(field).map(u128::from_le_bytes)
    }

    /// Takes a 16-bit value that must be `here`.
    ///
    /// # Errors
    /// [`StateError::Truncated`]; [`StateError::Mismatch`] if it is another.
    pub fn same_u16(&mut self, field: &'static str, here: u16) -> Result<(), StateError> {
        let found = self.u16(field)?;
        if found == here {
            return Ok(());
        }
        Err(StateError::Mismatch { field, found: found.into(), here: here.into() })
    }

    /// Takes a 32-bit value that must be `here`.
    ///
    /// # Errors
    /// [`StateError::Truncated`]; [`StateError::Mismatch`] if it is another.
    pub fn same_u32(&mut self, field: &'static str, here: u32) -> Result<(), StateError> {
        let found = self.u32(field)?;
        if found == here {
            return Ok(());
        }
        Err(StateError::Mismatch { field, found: found.into(), here: here.into() })
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`StateError::Trailing`] if bytes are left.
    pub const fn finish(self) -> Result<(), StateError> {
        match self.left.len() {
            0 => Ok(()),
            left => Err(StateError::Trailing { left }),
        }
    }
}
