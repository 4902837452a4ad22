//! Versions of a plugin's state format.

/// What a device's migration can do, and the versions of its state format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateFormat {
    /// Version that it writes.
    pub version: u32,
    /// Lowest version of a reader that understands what it writes.
    pub min_reader: u32,
    /// Oldest version that it reads.
    pub oldest_read: u32,
    /// Has the P2P states.
    pub p2p: bool,
    /// Has the pre-copy states.
    pub pre_copy: bool,
}

impl StateFormat {
    /// Can a plugin with this format read what one of version `version`, whose lowest reader is
    /// `min_reader`, wrote?
    pub fn reads(&self, version: u32, min_reader: u32) -> bool {
        self.version >= min_reader && version >= self.oldest_read
    }
}
