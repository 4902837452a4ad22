//! The hash of page contents and of state, on the stream and for `--verify`.
//!
//! xxh64 and not xxh3, which takes half of its time on hardware: there a move waits for copying and not for
//! either. Where vector instructions are emulated, as in a machine within a machine, it waits for xxh3, which
//! takes five times as long as xxh64.

use xxhash_rust::xxh64::{Xxh64, xxh64};

/// The hash of bytes that are all there.
#[must_use]
pub fn hash_of(bytes: &[u8]) -> u64 {
    xxh64(bytes, 0)
}

/// The same [`hash_of`] of bytes that come in pieces.
#[derive(Clone, Default)]
pub struct Hasher(Xxh64);

impl Hasher {
    /// The next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash of all pieces so far.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.0.digest()
    }
}
