//! What the control socket shows of a migration: QEMU's `query-migrate` names, ours beside them.

use serde::{Deserialize, Serialize};

use crate::phase::{Phase, Side};

/// Where a migration stands, in QEMU's words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationStatus {
    /// There was none.
    #[default]
    None,
    /// Being negotiated.
    Setup,
    /// Rounds are going on; the guest runs at the source.
    Active,
    /// The guest is stopped.
    Device,
    /// Aborted by the user, or by the guest's own end.
    Cancelled,
    /// The guest runs at the destination.
    Completed,
    /// Given up on an error.
    Failed,
}

/// RAM figures of `query-migrate`. Times in milliseconds, sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RamStatus {
    /// Bytes sent, or at the destination received.
    pub transferred: u64,
    /// Bytes still to be sent, as far as known.
    pub remaining: u64,
    /// Bytes of guest RAM.
    pub total: u64,
    /// Zero pages sent.
    pub duplicate: u64,
    /// Other pages sent.
    pub normal: u64,
    /// Their bytes.
    pub normal_bytes: u64,
    /// Pages dirtied per second.
    pub dirty_pages_rate: u64,
    /// Megabits per second.
    pub mbps: f64,
    /// How often the logs were harvested.
    pub dirty_sync_count: u64,
    /// Bytes in a page.
    pub page_size: u64,
    /// Pages sent per second.
    pub pages_per_second: u64,
    /// Bytes sent while the guest ran.
    pub precopy_bytes: u64,
    /// Bytes sent while it stood.
    pub downtime_bytes: u64,
}

/// Device state figures of `query-migrate`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VfioStatus {
    /// Bytes of device state sent.
    pub transferred: u64,
}

/// Our additions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DrogherStatus {
    /// Which side of it this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub side: Option<Side>,
    /// The phase.
    pub phase: Option<Phase>,
    /// The round; 0 is the bulk pass.
    pub round: u32,
    /// Pages dirtied by vCPUs at the last harvest.
    pub dirty_by_cpu: u64,
    /// Pages dirtied by DMA at the last harvest.
    pub dirty_by_dma: u64,
    /// Bytes per second, page contents.
    pub bandwidth: u64,
    /// Downtime that a stop would have cost at the last forecast.
    pub forecast_us: u64,
    /// The downtime, in microseconds, once it is known.
    pub downtime_us: u64,
    /// Pages that differed, if they were verified.
    pub pages_differing: Option<u64>,
}

/// The whole status. Times in milliseconds, as QEMU gives them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// Where it stands.
    pub status: MigrationStatus,
    /// Since it began, or from begin to end.
    pub total_time: u64,
    /// The downtime, once it is known; only the source knows it.
    pub downtime: u64,
    /// The last forecast.
    pub expected_downtime: u64,
    /// Until the destination had accepted.
    pub setup_time: u64,
    /// RAM.
    pub ram: RamStatus,
    /// Devices.
    pub vfio: VfioStatus,
    /// Why it has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_desc: Option<String>,
    /// Our additions.
    pub drogher: DrogherStatus,
}
