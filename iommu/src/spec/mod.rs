//! Entry layouts, each with its section of the specification. Nothing else of the crate knows a
//! bit's place.

pub mod second_stage;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Perm {
    /// DMA may read.
    pub read: bool,
    /// DMA may write.
    pub write: bool,
}

impl Perm {
    /// Read only.
    pub const READ: Self = Self { read: true, write: false };
    /// Write only.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Both.
    pub const READ_WRITE: Self = Self { read: true, write: true };

    /// What both allow.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self { read: self.read && other.read, write: self.write && other.write }
    }
}
