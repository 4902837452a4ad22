//! How long a record may be.

use super::{HEADER_BYTES, Tag};
use crate::config::ConfigBlock;
use crate::host::PAGE_SIZE;
use crate::wire::pages::{MAX_DATA_PAGES, MAX_RUNS, PAGES_HEAD, RUN_BYTES};

/// Most bytes of a configuration block or of a refusal.
pub const MAX_CONFIG: u64 = 1 << 20;
/// Most bytes of state in one record, besides its fixed head.
pub const MAX_CHUNK: usize = 256 << 10;
/// Most bytes of a reason in words.
const MAX_TEXT: u64 = 16 << 10;
/// Most bytes of an unknown optional record: it is skipped, but must not be endless.
const MAX_UNKNOWN: u64 = 64 << 10;

/// Limits of what may come from the peer at this point.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Limits {
    /// Most bytes of one piece of machine state; zero before the configuration is accepted.
    machine: u64,
    /// Most bytes of one piece of device state.
    device: u64,
    /// Whether pages may come.
    pages: bool,
}

impl Limits {
    /// What may come once this configuration has been accepted.
    pub(crate) fn accepted(config: &ConfigBlock) -> Self {
        let device = config.devices.iter().map(|d| d.max_state).max();
        Self {
            machine: config.max_machine_state.min(MAX_CHUNK as u64),
            device: device.map_or(0, |most| 8 + most.min(MAX_CHUNK as u64)),
            pages: true,
        }
    }

    /// Longest payload of this tag; `None` stands for an unknown one.
    pub(crate) fn of(&self, tag: Option<Tag>) -> u64 {
        match tag {
            None => MAX_UNKNOWN,
            Some(Tag::Config | Tag::Refuse | Tag::Verified) => MAX_CONFIG,
            Some(Tag::Pages) if self.pages => {
                (PAGES_HEAD + MAX_RUNS * RUN_BYTES + MAX_DATA_PAGES * PAGE_SIZE) as u64
            }
            Some(Tag::DeviceData) => self.device,
            Some(Tag::MachineState) => self.machine,
            Some(Tag::Digests) if self.pages => MAX_CHUNK as u64,
            Some(Tag::Pages | Tag::Digests) => 0,
            Some(Tag::StateDigest) => 8 + 256,
            Some(Tag::Cancel | Tag::Failed) => MAX_TEXT,
            Some(
                Tag::Phase
                | Tag::DeviceEnd
                | Tag::Sync
                | Tag::Handover
                | Tag::VerifyEnd
                | Tag::Commit
                | Tag::Accept
                | Tag::Synced
                | Tag::Loaded
                | Tag::Ready
                | Tag::Running,
            ) => HEADER_BYTES as u64,
        }
    }

    /// Bytes that a reader's buffer needs for any record allowed now, without page contents.
    pub(crate) fn buffer(&self) -> u64 {
        [Tag::Config, Tag::DeviceData, Tag::MachineState, Tag::Digests]
            .into_iter()
            .map(|tag| self.of(Some(tag)))
            .fold(MAX_UNKNOWN, u64::max)
    }
}
