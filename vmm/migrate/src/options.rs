//! What a migration may take, and its deadlines.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What happens when a migration takes too long or does not converge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeoutStrategy {
    /// It is given up and the guest goes on at the source.
    #[default]
    Cancel,
    /// The guest is stopped and moved all the same, with the downtime that it then takes.
    Ignore,
}

/// Deadlines of the handover. The defaults keep "exactly one side runs within 5 s of a cut".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Longest time without a byte moving, while the guest runs.
    pub idle: Duration,
    /// Longest time for the destination to build its machine.
    pub prepare: Duration,
    /// Longest time from the stop until READY, besides twice the forecast downtime and the time for
    /// `--verify`; then the source rolls back.
    pub switchover: Duration,
    /// Time for verifying, for each GiB of RAM, and once more as much.
    pub verify_per_gib: Duration,
    /// Longest time for the permits to come back after the stop.
    pub permits: Duration,
    /// How long the destination waits for COMMIT after READY, and the source for RUNNING after
    /// COMMIT, before they try the lease on their own.
    pub answer: Duration,
    /// How long a side tries the lease before it halts for good.
    pub grace: Duration,
    /// How long a source that finds the lease taken over watches whether it stays so: a process
    /// that is being killed holds its lock until its memory has gone.
    pub confirm: Duration,
    /// The same, for each GiB of RAM, on top.
    pub confirm_per_gib: Duration,
    /// Pause between two tries of the lease.
    pub lease_poll: Duration,
    /// How often requests of the user are looked at while the link is waited for.
    pub poll: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(5),
            prepare: Duration::from_secs(30),
            switchover: Duration::from_secs(3),
            verify_per_gib: Duration::from_secs(10),
            permits: Duration::from_secs(1),
            answer: Duration::from_millis(1500),
            grace: Duration::from_secs(3),
            confirm: Duration::from_millis(300),
            confirm_per_gib: Duration::from_millis(200),
            lease_poll: Duration::from_micros(200),
            poll: Duration::from_millis(20),
        }
    }
}

/// What the source is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SourceOptions {
    /// Downtime that the stop is timed for.
    pub downtime: Duration,
    /// Time after which `timeout_strategy` decides.
    pub timeout: Duration,
    /// What happens when that time is over, or the rounds do not converge.
    pub timeout_strategy: TimeoutStrategy,
    /// Both sides hash RAM and state before the handover and compare.
    pub verify: bool,
    /// Page contents carry a hash.
    pub hash_pages: bool,
    /// The deadlines.
    pub deadlines: Deadlines,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self {
            downtime: Duration::from_millis(50),
            timeout: Duration::from_secs(3600),
            timeout_strategy: TimeoutStrategy::Cancel,
            verify: false,
            hash_pages: true,
            deadlines: Deadlines::default(),
        }
    }
}

/// What the destination is asked to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DestinationOptions {
    /// The lease file, if the user names it: the source's must be the same file then.
    pub lease: Option<PathBuf>,
    /// The deadlines.
    pub deadlines: Deadlines,
}
