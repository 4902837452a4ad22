//! The state word: the generation, and how writes are recorded.

/// Value of a domain's state word. Any change of it makes every cached translation stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State(pub(crate) u64);

/// D bits are recorded.
pub(crate) const TRACKING: u64 = 1 << 0;
/// A write does not dirty a large leaf, it splits it.
pub(crate) const SPLITS: u64 = 1 << 1;
/// New mappings have no large leaves.
pub(crate) const SMALL: u64 = 1 << 2;
/// Clean leaves are protected.
pub(crate) const PROTECTS: u64 = 1 << 3;
/// All of these.
pub(crate) const MODE: u64 = TRACKING | SPLITS | SMALL | PROTECTS;
/// One generation.
pub(crate) const GENERATION: u64 = 1 << 4;

impl State {
    /// D bits are recorded.
    #[inline]
    pub(crate) fn tracks(self) -> bool {
        self.0 & TRACKING != 0
    }

    /// A first write splits the large leaf that it meets.
    #[inline]
    pub(crate) fn splits(self) -> bool {
        self.0 & SPLITS != 0
    }

    /// New leaves are of the smallest size.
    pub(crate) fn maps_small(self) -> bool {
        self.0 & SMALL != 0
    }

    /// Clean leaves are protected.
    pub(crate) fn protects(self) -> bool {
        self.0 & PROTECTS != 0
    }

    /// How often the word has changed.
    pub(crate) fn generation(self) -> u64 {
        self.0 / GENERATION
    }
}
