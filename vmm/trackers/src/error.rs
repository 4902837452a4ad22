//! What can go wrong in measuring.

use drogher_iommu::{DmaError, DomainError, MemoryError};
use drogher_iommu_types::BitmapError;
use drogher_migrate::LeaseError;
use drogher_tracking::{PinError, SpaceError};

/// Why there is no measurement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackersError {
    /// The domain.
    #[error("The domain to measure with cannot be used")]
    Domain(#[from] DomainError),
    /// Tracking.
    #[error("Tracking could not be measured")]
    Space(#[from] SpaceError),
    /// A device's write.
    #[error("A write of the device that is measured with failed")]
    Dma(#[from] DmaError),
    /// The same, past the second stage.
    #[error("A write to pinned memory failed")]
    Memory(#[from] MemoryError),
    /// A pin.
    #[error("Memory cannot be pinned")]
    Pin(#[from] PinError),
    /// A bitmap.
    #[error("A dirty bitmap cannot be used")]
    Bitmap(#[from] BitmapError),
    /// The planner refuses what is measured.
    #[error("No plan for what is measured: {0}")]
    Plan(String),
    /// A socket, a thread or a temporary file.
    #[error("Cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The lease of a migration that is measured.
    #[error("A migration to measure cannot be begun")]
    Lease(#[from] LeaseError),
    /// Such a migration has failed.
    #[error("A migration of {what} failed: {why}")]
    Migration {
        /// Provider and page size.
        what: String,
        /// The outcomes of both sides.
        why: String,
    },
    /// It has lost writes: a fault of tracking or of the engine.
    #[error("After a migration with {what} {pages} pages differ, the first at page {first}")]
    Differs {
        /// Provider and page size.
        what: String,
        /// How many.
        pages: u64,
        /// The first.
        first: u64,
    },
    /// One thread of a measurement did not do its part in time.
    #[error("The {who} did not go on within {seconds} s")]
    Stalled {
        /// Which.
        who: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// One of them has panicked.
    #[error("The {who} has panicked")]
    Panicked {
        /// Which.
        who: &'static str,
    },
    /// Whoever watches has asked for the end.
    #[error("The measurement was ended before it was complete")]
    Interrupted,
}

/// For `map_err`.
pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> TrackersError {
    move |source| TrackersError::System { what, source }
}
