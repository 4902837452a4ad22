//! What the configuration block says of a device, and what stands against moving it.

use drogher_migrate::config::{Param, RegionShape};
use drogher_migrate::{Blocker, BlockerCode, DeviceConfig};
use drogher_plugin_host::Region;

use super::endpoint::Shape;
use super::error::DeviceError;
use super::function::PciDevice;

/// Region flags as the plugin ABI has them.
const REGION_IO: u32 = 1;
const REGION_64BIT: u32 = 2;
const REGION_PREFETCH: u32 = 4;

/// A region's flags as the plugin ABI has them.
pub(super) fn region_flags(region: &Region) -> u32 {
    let flag = |on, flag| if on { flag } else { 0 };
    flag(region.io, REGION_IO)
        | flag(region.wide, REGION_64BIT)
        | flag(region.prefetch, REGION_PREFETCH)
}

impl PciDevice {
    /// The device for the configuration block; also fixes how much state it may send.
    pub(super) fn describe(&self) -> Result<DeviceConfig, DeviceError> {
        let shape = self.shape();
        let params = self.endpoint.params().map_err(|source| DeviceError::Call {
            device: self.label().into(),
            what: "reading parameters".into(),
            source,
        })?;
        let region = |region: &Region| RegionShape {
            index: region.index,
            bytes: region.length,
            flags: region_flags(region),
        };
        Ok(DeviceConfig {
            slot: self.rid().0,
            plugin: shape.plugin.id.clone(),
            plugin_version: shape.plugin.version.clone(),
            abi_major: shape.plugin.abi_major,
            abi_minor: shape.plugin.abi_minor,
            state_version: shape.migration.map_or(0, |migration| migration.version),
            state_min_reader: shape.migration.map_or(0, |migration| migration.min_reader),
            max_state: self.announce_state()?,
            params: params
                .into_iter()
                .chain(self.keys().entries().into_iter().map(|(key, value)| (key.into(), value)))
                .map(|(key, value)| Param { key, value })
                .collect(),
            regions: shape.info.regions.iter().map(region).collect(),
            vectors: shape.info.vectors,
        })
    }

    /// What stands against moving this device away.
    pub(super) fn blockers(&self) -> Vec<Blocker> {
        let mut blockers = unmovable(self.shape(), self.label());
        if let Some(reason) = self.endpoint.failed() {
            let reason = format!("the device is in ERROR: {reason}");
            let hint = "reset the device from the guest, or restart the guest without it";
            let blocker = Blocker::new(BlockerCode::NotMigratable, reason, hint);
            blockers.push(blocker.about(self.label()));
        }
        blockers
    }
}

fn unmovable(shape: &Shape, label: &str) -> Vec<Blocker> {
    if shape.migration.is_some() {
        return Vec::new();
    }
    let reason = "the plugin has no migration extension";
    let hint = "start the guest without this device, or use a plugin that has it";
    vec![Blocker::new(BlockerCode::NotMigratable, reason, hint).about(label)]
}

/// Why a device that `theirs` describes cannot arrive in one of this shape. Parameters are not
/// compared: this one was made with theirs.
pub(super) fn refusals(shape: &Shape, theirs: &DeviceConfig) -> Vec<Blocker> {
    let mut blockers = unmovable(shape, &theirs.label());
    let mut add = |code, reason: String, hint: &str| {
        blockers.push(Blocker::new(code, reason, hint).about(theirs.label()));
    };
    if shape.plugin.id != theirs.plugin {
        let reason = format!("this slot has {} here", shape.plugin.id);
        add(BlockerCode::PluginMissing, reason, "keep the plugins of both sides in one order");
    }
    if shape.plugin.abi_major != theirs.abi_major {
        let (here, there) = (shape.plugin.abi_major, theirs.abi_major);
        let reason = format!("the plugin has ABI major {here} here, {there} at the source");
        add(BlockerCode::PluginAbi, reason, "install the plugin build of the source");
    }
    let (version, min_reader) = (theirs.state_version, theirs.state_min_reader);
    if let Some(migration) = shape.migration
        && !migration.reads(version, min_reader)
    {
        let reason = format!(
            "the source writes state version {version} (readers from {min_reader} on); \
                 the plugin here is version {} and reads from {} on",
            migration.version, migration.oldest_read
        );
        add(BlockerCode::DeviceState, reason, "install the plugin version of the source");
    }
    let regions = shape.info.regions.iter().map(|region| RegionShape {
        index: region.index,
        bytes: region.length,
        flags: region_flags(region),
    });
    let regions: Vec<_> = regions.collect();
    if regions != theirs.regions || shape.info.vectors != theirs.vectors {
        let reason = format!(
            "regions {regions:?} and {} vectors here, {:?} and {} at the source",
            shape.info.vectors, theirs.regions, theirs.vectors
        );
        add(BlockerCode::DeviceShape, reason, "install the plugin version of the source");
    }
    blockers
}
