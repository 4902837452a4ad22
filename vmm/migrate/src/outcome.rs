//! What became of the guest, seen from each side.

use crate::error::Error;
use crate::lease::{HeldLease, LeaseError};
use crate::report::Report;

/// What became of the guest, seen from the source.
#[derive(Debug)]
pub enum SourceOutcome {
    /// It runs at the destination. This process has nothing left to do: exit 0.
    Moved {
        /// The destination said so; else the epoch in the lease does, and the link has broken.
        confirmed: bool,
    },
    /// It runs here, or stands here paused by the user, as before. Dirty logs are off.
    Stays {
        /// Why the migration was given up.
        why: Error,
    },
    /// The destination had taken the lease and has gone: the guest is lost and must not be
    /// resumed from the state here.
    Lost,
    /// The destination had taken the lease, and the guest ended there in an orderly way.
    Ended,
    /// Nobody can say: the lease could not be had before the grace ended. This side halts for
    /// good; if the destination lives, it runs.
    Halted {
        /// What was wrong with the lease, if it was not merely held.
        why: Option<LeaseError>,
    },
    /// The migration was given up, but the machine could not go on: the guest is stopped here.
    Stuck {
        /// Why it was given up.
        why: Error,
        /// Why it could not go on.
        then: Error,
    },
}

/// What [`send`](crate::send) leaves behind.
#[derive(Debug)]
pub struct SourceEnd {
    /// What became of the guest.
    pub outcome: SourceOutcome,
    /// The lease, if this process still holds it: with [`SourceOutcome::Stays`] and
    /// [`SourceOutcome::Stuck`].
    pub lease: Option<HeldLease>,
    /// Figures.
    pub report: Report,
}

/// What became of the guest, seen from the destination.
#[derive(Debug)]
pub enum DestinationOutcome {
    /// It runs here, or stands here paused by the user.
    Runs {
        /// It was paused at the source.
        paused: bool,
        /// The source was told; else the link was broken and the lease has decided.
        told: bool,
    },
    /// It never came here: refused, cancelled, or an error before this side was ready. If the
    /// source lives, it runs there; if the source has died, the guest died with it.
    NotTaken {
        /// Why.
        why: Error,
    },
    /// Ready, but the source has taken the guest back, or holds the lease. This side halts.
    Halted {
        /// Why READY was not followed by COMMIT.
        why: Option<Error>,
        /// The epoch found in the lease was another than that of the state here.
        epoch_moved: bool,
    },
    /// The lease was taken, and then the guest could not be started: it is lost.
    Lost {
        /// Why.
        why: Error,
    },
}

/// What [`receive`](crate::receive) leaves behind.
#[derive(Debug)]
pub struct DestinationEnd {
    /// What became of the guest.
    pub outcome: DestinationOutcome,
    /// The lease, with [`DestinationOutcome::Runs`].
    pub lease: Option<HeldLease>,
    /// Figures.
    pub report: Report,
}
