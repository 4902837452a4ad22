//! Reasons why a guest cannot be moved, as data for the user to act on.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of reason it is; stable, for tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockerCode {
    /// The stream's version or a mandatory feature is unknown here.
    Protocol,
    /// RAM size or layout.
    Memory,
    /// CPU count, model or features.
    Cpu,
    /// TSC frequency that cannot be had here.
    Tsc,
    /// The machine state is newer than this side can read, or of an unknown kind.
    MachineState,
    /// A plugin that is not installed here, or no plugin.
    PluginMissing,
    /// The plugin's ABI major differs, or the minor is too old.
    PluginAbi,
    /// The plugin cannot read the device state version of the other side.
    DeviceState,
    /// Device parameters differ or are refused.
    DeviceParams,
    /// BAR regions, vectors or slot of a device differ.
    DeviceShape,
    /// The lease is another file, another VM's, on a remote file system, or not held by the source.
    Lease,
    /// A host facility is missing: no /dev/kvm, a capability, memory.
    Host,
    /// A device without migration support.
    NotMigratable,
    /// A device whose DMA cannot be tracked, or not as asked for.
    Tracking,
    /// Something else, see the reason.
    Other,
}

impl BlockerCode {
    /// The name used in JSON and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Tsc => "tsc",
            Self::MachineState => "machine-state",
            Self::PluginMissing => "plugin-missing",
            Self::PluginAbi => "plugin-abi",
            Self::DeviceState => "device-state",
            Self::DeviceParams => "device-params",
            Self::DeviceShape => "device-shape",
            Self::Lease => "lease",
            Self::Host => "host",
            Self::NotMigratable => "not-migratable",
            Self::Tracking => "tracking",
            Self::Other => "other",
        }
    }
}

/// One reason against a migration, and the way out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blocker {
    /// The kind of reason.
    pub code: BlockerCode,
    /// The device concerned, as slot and plugin id, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What is wrong, with the values.
    pub reason: String,
    /// What the user can do about it.
    pub hint: String,
}

impl Blocker {
    /// A reason that concerns no single device.
    pub fn new(code: BlockerCode, reason: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, device: None, reason: reason.into(), hint: hint.into() }
    }

    /// The same reason, about a device.
    #[must_use]
    pub fn about(mut self, device: impl Into<String>) -> Self {
        self.device = Some(device.into());
        self
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code.name())?;
        if let Some(device) = &self.device {
            write!(f, " ({device})")?;
        }
        write!(f, ": {}; {}", self.reason, self.hint)
    }
}

/// Several blockers in one message, one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockerList(pub Vec<Blocker>);

impl fmt::Display for BlockerList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, blocker) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{blocker}")?;
        }
        Ok(())
    }
}
