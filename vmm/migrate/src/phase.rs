//! The phases of a migration, as logs, the control socket and reports name them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Which end of the link a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The process that runs the guest when the migration begins.
    Source,
    /// The process that runs it when the migration has succeeded.
    Destination,
}

impl Side {
    /// The name used in logs and test hooks.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One phase of a migration. The source walks through them in this order; `harvest` to `forecast`
/// repeat per round, and `rollback` may follow any of them up to `commit`.
///
/// The destination reaches `setup`, is told of the source's phases from `track-start` to
/// `last-harvest` by the stream, and walks through `ready`, `commit` and `running` on its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Phase {
    /// Greeting, configuration block, blockers. No RAM has moved.
    Setup = 0,
    /// Dirty logs on, for vCPUs and for DMA; devices begin their pre-copy.
    TrackStart = 1,
    /// Every page once.
    Bulk = 2,
    /// Dirty logs are read.
    Harvest = 3,
    /// What the harvest found is sent.
    Resend = 4,
    /// Device state that may be sent while the device runs.
    DevicePrecopy = 5,
    /// Is the downtime that a stop now would cost within the limit?
    Forecast = 6,
    /// vCPUs are kicked out of the guest; pending PIO and MMIO are completed.
    PauseVcpus = 7,
    /// All devices to P2P and NDMA.
    Quiesce = 8,
    /// All devices, timers and I/O threads to STOP; doorbells read out; irqfds off.
    Stop = 9,
    /// The last dirty pages are read and sent.
    FinalHarvest = 10,
    /// Devices, then vCPUs, interrupt controllers and clock are saved and sent.
    DeviceState = 11,
    /// What saving has dirtied. From here on nothing may write guest memory.
    LastHarvest = 12,
    /// Source: all is sent, the answer is awaited. Destination: all is loaded, READY is said next.
    Ready = 13,
    /// Source: READY has come, the lease is given up next. Destination: the lease is taken next.
    Commit = 14,
    /// Source: the guest runs on the other side. Destination: the lease is taken and its epoch
    /// raised; vCPUs start next.
    Running = 15,
    /// Source only: the guest is about to go on here.
    Rollback = 16,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Self; 17] = [
        Self::Setup,
        Self::TrackStart,
        Self::Bulk,
        Self::Harvest,
        Self::Resend,
        Self::DevicePrecopy,
        Self::Forecast,
        Self::PauseVcpus,
        Self::Quiesce,
        Self::Stop,
        Self::FinalHarvest,
        Self::DeviceState,
        Self::LastHarvest,
        Self::Ready,
        Self::Commit,
        Self::Running,
        Self::Rollback,
    ];

    /// The name used in logs, events and test hooks.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Setup => "setup",
            Self::TrackStart => "track-start",
            Self::Bulk => "bulk",
            Self::Harvest => "harvest",
            Self::Resend => "resend",
            Self::DevicePrecopy => "device-precopy",
            Self::Forecast => "forecast",
            Self::PauseVcpus => "pause-vcpus",
            Self::Quiesce => "quiesce",
            Self::Stop => "stop",
            Self::FinalHarvest => "final-harvest",
            Self::DeviceState => "device-state",
            Self::LastHarvest => "last-harvest",
            Self::Ready => "ready",
            Self::Commit => "commit",
            Self::Running => "running",
            Self::Rollback => "rollback",
        }
    }

    /// The step of the seven-step progression for device migration (DT: DMA tracking is on) that
    /// this phase is or belongs to; `None` for the handover, which that progression leaves out.
    #[must_use]
    pub const fn seven_step(self) -> Option<&'static str> {
        match self {
            Self::Setup | Self::Ready | Self::Commit | Self::Running | Self::Rollback => None,
            Self::TrackStart | Self::Bulk => Some("DT, RUNNING: copy every page"),
            Self::DevicePrecopy => Some("DT, SAVING+RUNNING: pre-copy device data"),
            Self::Harvest => Some("DT, SAVING+NDMA+RUNNING: read and clear the dirty bitmap"),
            Self::Resend | Self::Forecast => Some("DT, SAVING+RUNNING: copy what was dirtied"),
            Self::PauseVcpus | Self::Quiesce => Some("DT, SAVING+NDMA+RUNNING: P2P grace"),
            Self::Stop | Self::FinalHarvest => Some("DT, 0: read the dirty track, copy"),
            Self::DeviceState | Self::LastHarvest => Some("0: read and send the device state"),
        }
    }

    /// The phase of this name, see [`Phase::name`].
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }

    /// The phase that is this number on the wire.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|p| *p as u32 == number)
    }

    /// True from the moment vCPUs are kicked until the guest runs somewhere again.
    #[must_use]
    pub const fn in_switchover(self) -> bool {
        matches!(
            self,
            Self::PauseVcpus
                | Self::Quiesce
                | Self::Stop
                | Self::FinalHarvest
                | Self::DeviceState
                | Self::LastHarvest
                | Self::Ready
                | Self::Commit
        )
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
#[path = "phase_test.rs"]
mod tests;
