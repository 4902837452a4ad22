//! What goes over the control socket.

use std::time::Duration;

use drogher_machine::tracking::{Choice, Require, TrackingPageSize, TrackingStatus, Wish, Wishes};
use drogher_migrate::options::{SourceOptions, TimeoutStrategy};
use drogher_migrate::report::{Event, Report};
use drogher_migrate::status::Status as MigrationStatus;
use serde::{Deserialize, Serialize};

/// Why a request is refused, in words for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(drogher_migrate::error::chain(&error))
    }
}

/// What the guest of a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// There is none yet: the process is about to boot one.
    Starting,
    /// There is none yet: the process waits for one to arrive.
    Waiting,
    /// One is arriving.
    Incoming,
    /// It runs here.
    Running,
    /// It is here, its vCPUs stopped by `pause`.
    Paused,
    /// It is here, stopped for the switchover of a migration.
    Switching,
    /// It has ended, or runs in another process.
    Gone,
}

/// One device of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStatus {
    /// Its address on the PCI bus.
    pub slot: String,
    /// The plugin's id.
    pub plugin: String,
    /// What the user calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its VFIO v2 state.
    pub state: String,
    /// Why it has failed, if it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The wires in its Ethernet ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wires: Vec<WireStatus>,
}

/// A wire, and the frames that it carried in this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct WireStatus {
    /// As in `vm.net`.
    pub wire: String,
    /// Sent by the device and taken by the wire.
    pub sent: u64,
    /// Sent by the device and dropped.
    pub sent_dropped: u64,
    /// Come from the wire.
    pub arrived: u64,
    /// Come from the wire and dropped.
    pub arrived_dropped: u64,
}

/// The guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmStatus {
    /// What it does.
    pub state: GuestState,
    /// The VM's id, the same on both sides of a migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// This process.
    pub pid: u32,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Guest RAM in bytes.
    pub memory_bytes: u64,
    /// Path of the lease file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    /// Devices in slot order.
    pub devices: Vec<DeviceStatus>,
    /// How their DMA is tracked, or would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<TrackingStatus>,
}

/// The answer to `GET /v1/status`: QEMU's `query-migrate` fields, and the guest beside them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The guest.
    pub vm: VmStatus,
    /// The migration, if there is or was one.
    #[serde(flatten)]
    pub migration: MigrationStatus,
}

/// The body of `POST /v1/migrate`. Knobs are named as Cloud Hypervisor names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateRequest {
    /// `unix:PATH` of a process in `drogher receive`.
    pub to: String,
    /// Switch over once the forecast downtime is at most this; 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// Rounds may take this long; 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_s: Option<u64>,
    /// `cancel` or `ignore`; `cancel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_strategy: Option<TimeoutStrategy>,
    /// Compare hashes of every page and state on both sides before the switch.
    #[serde(default)]
    pub verify: bool,
    /// Page contents carry a hash, without which damage on the way goes unnoticed; true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_hash: Option<bool>,
    /// How devices' DMA is tracked in this migration, where it is said.
    #[serde(default, skip_serializing_if = "is_unsaid")]
    pub tracking: Wishes,
}

fn is_unsaid(wishes: &Wishes) -> bool {
    *wishes == Wishes::default()
}

impl MigrateRequest {
    /// The engine's options.
    #[must_use]
    pub fn options(&self) -> SourceOptions {
        let mut options = SourceOptions { verify: self.verify, ..SourceOptions::default() };
        if let Some(page_hash) = self.page_hash {
            options.hash_pages = page_hash;
        }
        if let Some(downtime_ms) = self.downtime_ms {
            options.downtime = Duration::from_millis(downtime_ms);
        }
        if let Some(timeout_s) = self.timeout_s {
            options.timeout = Duration::from_secs(timeout_s);
        }
        if let Some(strategy) = self.timeout_strategy {
            options.timeout_strategy = strategy;
        }
        options
    }
}

/// The body of `PUT /v1/tracking`: from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct TrackingRequest {
    /// A device by name, `bb:dd.f` or plugin; all, if none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracker: Option<Wish>,
    /// The tracking page size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<TrackingPageSize>,
    /// What reports have to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require: Option<Require>,
}

impl TrackingRequest {
    /// What it says.
    #[must_use]
    pub fn choice(&self) -> Choice {
        Choice {
            provider: self.tracker,
            page_size: self.page,
            require_exact: self.require.map(|require| require == Require::Exact),
            ..Choice::default()
        }
    }
}

/// The body of `PUT /v1/params`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParamRequest {
    /// A device by name, `bb:dd.f`, or its plugin if no other device has the same.
    pub device: String,
    /// The parameter.
    pub name: String,
    /// Its new value.
    pub value: String,
}

/// What became of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It runs at the destination.
    Moved,
    /// It is still here, as before.
    Stays,
    /// It has moved, and then ended there in order.
    Ended,
    /// The destination has taken it over and died.
    Lost,
    /// Nobody here can say; this side has halted for good.
    Halted,
    /// It is stopped here and could not go on.
    Stuck,
}

/// One line of the answer to `POST /v1/migrate`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub enum MigrateLine {
    /// Something happened.
    Event {
        /// What.
        of: Event,
    },
    /// Nothing happened for a second; this is how things stand.
    Status {
        /// How things stand.
        status: Box<Status>,
    },
    /// The end, always the last line.
    Outcome {
        /// What became of the guest.
        outcome: Outcome,
        /// In words.
        message: String,
        /// Figures.
        report: Box<Report>,
        /// How the devices' DMA was tracked, if it came to that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tracking: Option<Box<TrackingStatus>>,
    },
}

#[cfg(test)]
#[path = "api_test.rs"]
mod tests;
