//! What a migration tells while it runs and when it has ended.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::phase::Phase;

/// Something that has happened, for a live line, a chart or a log. Times in microseconds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Event {
    /// A phase begins.
    Phase {
        /// Which.
        phase: Phase,
        /// Round it belongs to; 0 before the first harvest.
        round: u32,
        /// Since the migration began.
        at_us: u64,
    },
    /// A round (0: the bulk pass) has been sent and received.
    Round(Round),
    /// The forecast after a round.
    Forecast(Forecast),
    /// Verification has ended.
    Verified(Verified),
    /// It has ended on this side; what became of it is in the outcome.
    Ended {
        /// Since the migration began.
        at_us: u64,
    },
}

/// One round.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Round {
    /// Its number; 0 is the bulk pass.
    pub round: u32,
    /// Pages that the vCPUs' log held at its harvest.
    pub dirty_by_cpu: u64,
    /// Pages that DMA had dirtied at its harvest.
    pub dirty_by_dma: u64,
    /// Pages sent, with zero pages.
    pub pages: u64,
    /// Of those, pages of zeroes, which are sent as such.
    pub zero_pages: u64,
    /// Bytes sent, headers included.
    pub bytes: u64,
    /// Bytes of device state among them.
    pub device_bytes: u64,
    /// How long it took, until the destination had read all of it.
    pub time_us: u64,
    /// Bytes per second, page contents only, over the time above.
    pub bandwidth: u64,
    /// Bytes per second that the guest and its devices dirtied since the round before.
    pub dirty_rate: u64,
}

/// What a stop would cost now. Times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Forecast {
    /// The round just ended.
    pub round: u32,
    /// Pages that are dirty now.
    pub dirty_pages: u64,
    /// Sending them.
    pub pages_us: u64,
    /// Sending the devices' state.
    pub devices_us: u64,
    /// What does not depend on sizes: stopping, harvesting, loading, the answer.
    pub fixed_us: u64,
    /// All together.
    pub downtime_us: u64,
    /// The limit.
    pub limit_us: u64,
    /// Bytes per second that it was reckoned with.
    pub bandwidth: u64,
}

/// What verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Verified {
    /// Pages compared.
    pub pages: u64,
    /// Pages that differ.
    pub differing: u64,
    /// GPA of the first that does.
    pub first_gpa: Option<u64>,
    /// Parts of the state compared: devices, vCPUs, interrupt controllers.
    pub states: u64,
    /// Names of those that differ or are missing on one side.
    pub differing_states: Vec<String>,
}

/// The terms of the downtime, as they were. Microseconds; `verify_us` is not part of the total.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Downtime {
    /// From the kick of the vCPUs until the guest ran again, without verification.
    pub total_us: u64,
    /// vCPUs.
    pub pause_us: u64,
    /// Devices to P2P and NDMA.
    pub quiesce_us: u64,
    /// Devices to STOP, permits back.
    pub stop_us: u64,
    /// Reading the logs and sending the last dirty pages.
    pub final_us: u64,
    /// Saving and sending devices and vCPUs.
    pub state_us: u64,
    /// Last harvest.
    pub last_us: u64,
    /// From the last byte sent until READY, without verification.
    pub ready_us: u64,
    /// From READY until the guest ran, as the destination says.
    pub commit_us: u64,
    /// Hashing and comparing, if asked for.
    pub verify_us: u64,
    /// Pages sent while the guest stood.
    pub pages: u64,
    /// Bytes sent while the guest stood.
    pub bytes: u64,
}

/// The whole migration, when it has ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Report {
    /// From begin to end.
    pub total_us: u64,
    /// From begin until the destination had accepted.
    pub setup_us: u64,
    /// The downtime and its terms; zeroes if the guest was never stopped.
    pub downtime: Downtime,
    /// The last forecast before the stop.
    pub forecast: Option<Forecast>,
    /// Rounds, the bulk pass included.
    pub rounds: Vec<Round>,
    /// Bytes sent in all (source) or received (destination).
    pub bytes: u64,
    /// Pages sent or received in all, with zero pages.
    pub pages: u64,
    /// Of those, zero pages.
    pub zero_pages: u64,
    /// Bytes of device state.
    pub device_bytes: u64,
    /// What verification found, if it was asked for.
    pub verified: Option<Verified>,
}

/// A duration in whole microseconds, for the types above.
#[must_use]
pub fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
