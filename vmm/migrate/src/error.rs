//! Why a migration was given up.

use std::time::Duration;

use crate::blocker::{Blocker, BlockerCode, BlockerList};
use crate::host::GuestEnd;
use crate::lease::LeaseError;
use crate::link::LinkError;
use crate::phase::Phase;
use crate::wire::WireError;

/// A machine's error, whatever its type.
pub type HostError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Why a migration was given up, on either side.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The destination cannot take this guest; every reason, one a line.
    #[error("The destination refuses this guest:\n{0}")]
    Refused(BlockerList),
    /// The machine on this side failed.
    #[error("The machine failed at {call} in phase {phase}")]
    Host {
        /// The phase.
        phase: Phase,
        /// The method of the host trait.
        call: &'static str,
        /// What it said.
        #[source]
        source: HostError,
    },
    /// The machine on this side broke a rule of the host trait.
    #[error("The machine breaks a rule at {call} in phase {phase}: {what}")]
    HostRule {
        /// The phase.
        phase: Phase,
        /// The method of the host trait.
        call: &'static str,
        /// Which rule.
        what: String,
    },
    /// The link failed, or the peer has gone.
    #[error("The link to the other side broke in phase {phase}")]
    Link {
        /// The phase.
        phase: Phase,
        /// How.
        #[source]
        source: LinkError,
    },
    /// The stream cannot be understood.
    #[error("The stream of the other side is wrong in phase {phase}")]
    Stream {
        /// The phase.
        phase: Phase,
        /// What and where.
        #[source]
        source: WireError,
    },
    /// The lease failed.
    #[error("The lease failed in phase {phase}")]
    Lease {
        /// The phase.
        phase: Phase,
        /// How.
        #[source]
        source: LeaseError,
    },
    /// The other side has given up, and said why.
    #[error("The other side gave up: {reason}")]
    Peer {
        /// Its words.
        reason: String,
    },
    /// The other side did not do in time what it had to.
    #[error("The other side did not {what} within {waited:?} (phase {phase})")]
    Deadline {
        /// The phase.
        phase: Phase,
        /// What was waited for.
        what: &'static str,
        /// For how long.
        waited: Duration,
    },
    /// The stop took longer than it may.
    #[error(
        "The switchover took longer than the {limit:?} that it may: in phase {phase} the other \
         side did not {what}. The guest had stood still for that time, and goes on"
    )]
    Switchover {
        /// The phase.
        phase: Phase,
        /// What was waited for.
        what: &'static str,
        /// The limit: a constant, and twice the forecast downtime.
        limit: Duration,
    },
    /// The user has aborted it.
    #[error("The migration was aborted")]
    Aborted,
    /// The user ends the VM.
    #[error("The migration was given up because the VM is being shut down")]
    Shutdown,
    /// The guest has ended by itself.
    #[error("The migration was given up because the guest {0}")]
    GuestEnded(GuestEnd),
    /// The time limit.
    #[error(
        "The migration took longer than {limit:?}; the forecast downtime was still {forecast:.1?} \
         with a limit of {downtime:.1?}"
    )]
    Timeout {
        /// The limit.
        limit: Duration,
        /// The last forecast.
        forecast: Duration,
        /// The downtime limit.
        downtime: Duration,
    },
    /// More is dirtied than can be sent.
    #[error(
        "The migration does not converge: {:.1} MiB/s are dirtied and {:.1} MiB/s sent, and the forecast \
         downtime stays at {forecast:.1?}, of which {fixed:.1?} depend on no memory, with a limit of \
         {downtime:.1?}; allow more (--downtime-ms, downtime_ms), or have it switch over all the same \
         (--timeout-strategy ignore)",
        mib(*.dirty),
        mib(*.sent)
    )]
    NotConverging {
        /// Dirtied, bytes per second.
        dirty: u64,
        /// Sent, bytes per second.
        sent: u64,
        /// The best forecast of the last rounds.
        forecast: Duration,
        /// What of it stays whatever is dirty.
        fixed: Duration,
        /// The downtime limit.
        downtime: Duration,
    },
    /// Verification found differences.
    #[error(
        "{pages} pages differ (the first at GPA {first:#x}), {states} device or vCPU states differ"
    )]
    Differs {
        /// Pages.
        pages: u64,
        /// GPA of the first.
        first: u64,
        /// Parts of the state.
        states: u64,
    },
    /// A migration is going on already.
    #[error(transparent)]
    Busy(#[from] crate::control::Refusal),
    /// The machine describes itself in a way that no destination could accept.
    #[error("This machine cannot be described to a destination:\n{0}")]
    Config(BlockerList),
}

impl Error {
    /// Wraps a machine's error.
    pub(crate) fn host<E>(phase: Phase, call: &'static str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Host { phase, call, source: Box::new(source) }
    }

    /// Wraps a lease's error.
    pub(crate) fn lease(phase: Phase) -> impl FnOnce(LeaseError) -> Self {
        move |source| Self::Lease { phase, source }
    }

    /// RAM that no bitmap can cover.
    pub(crate) fn bitmap(error: drogher_iommu_types::BitmapError) -> Self {
        Self::Config(BlockerList(vec![Blocker::new(
            BlockerCode::Memory,
            error.to_string(),
            "use less RAM",
        )]))
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// The whole chain of an error, in one line, for the peer and the status.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
