//! Whether the devices of another machine can arrive here, before anything of them is moved.

use std::path::PathBuf;
use std::sync::Arc;

use drogher_iommu::{Domain, DomainConfig, HeapMemory, Rid};
use drogher_migrate::{Blocker, BlockerCode, DeviceConfig};
use drogher_plugin_host::{
    Cause, HostServices, Instance, InstanceConfig, InstanceError, LoadError, LogLevel, Plugin,
};

use super::describe::refusals;
use super::error::{DeviceError, Fault};
use super::plugin::{keys_of, params_of, shape_of, tracking_of};
use super::set::MAX_DEVICES;
use super::spec::DeviceSpec;
use crate::tracking::Subject;

/// A device on trial is never started, so it asks for nothing.
struct Nobody;

impl HostServices for Nobody {
    fn irq(&self, _vector: u16) {}

    fn log(&self, level: LogLevel, text: &str) {
        tracing::debug!(?level, "device on trial: {text}");
    }

    fn failed(&self, cause: &Cause) {
        tracing::debug!("device on trial: {cause}");
    }
}

/// What each of these devices would be for tracking. Makes each once, with no memory to reach, looks
/// at it and throws it away; needs no KVM.
///
/// # Errors
/// The first device that cannot be had, by name.
pub fn trial(specs: &[DeviceSpec], dirs: &[PathBuf]) -> Result<Vec<Subject>, DeviceError> {
    let try_one = |(slot, spec): (u16, &DeviceSpec)| {
        let name = || spec.name_or_path.clone();
        let failed = |source: Fault| DeviceError::Create { device: name(), source };
        let file = Plugin::find(&spec.name_or_path, dirs);
        let plugin = file.and_then(|file| Plugin::open(&file));
        let plugin =
            plugin.map_err(|source| DeviceError::Load { device: name(), source: source.into() })?;
        let rid = Rid(slot << 3);
        let domain = Domain::new(Arc::new(HeapMemory::new(0)), DomainConfig::default());
        let requester = domain.and_then(|domain| domain.attach(rid));
        let requester = requester.map_err(|source| failed(source.into()))?;
        let wish = InstanceConfig {
            name: format!("{rid} {}", plugin.descriptor().id),
            params: spec.params.clone(),
            ..InstanceConfig::default()
        };
        let instance = Instance::create(&plugin, wish, requester, Arc::new(Nobody));
        let instance = instance.map_err(|source| failed(source.into()))?;
        let (shape, tracking) = (shape_of(&plugin, &instance), tracking_of(&instance));
        Ok(Subject::new(rid, &spec.keys, &shape, tracking))
    };
    (1..).zip(specs).map(try_one).collect()
}

/// Every reason why these devices cannot arrive here; empty if they can. Makes each device once, with
/// the source's parameters and no memory to reach, looks at it and throws it away. Plugins are looked
/// up in `dirs` by their ids.
#[must_use]
pub fn check(configs: &[DeviceConfig], dirs: &[PathBuf]) -> Vec<Blocker> {
    let mut blockers = Vec::new();
    if configs.len() > MAX_DEVICES {
        let reason = format!("{} devices; bus 0 has room for {MAX_DEVICES}", configs.len());
        let hint = "start the guest with fewer devices";
        return vec![Blocker::new(BlockerCode::DeviceShape, reason, hint)];
    }
    for (slot, config) in (1_u16..).zip(configs) {
        if config.slot != slot << 3 {
            let reason =
                format!("it is device {slot} of the list but has RID {:#06x}", config.slot);
            let hint = "use one build of this program on both sides";
            let blocker = Blocker::new(BlockerCode::DeviceShape, reason, hint);
            blockers.push(blocker.about(config.label()));
        }
        blockers.extend(check_one(config, dirs));
    }
    blockers
}

fn check_one(config: &DeviceConfig, dirs: &[PathBuf]) -> Vec<Blocker> {
    let blocker = |code, error: &dyn std::error::Error, hint: &str| {
        vec![Blocker::new(code, chain(error), hint).about(config.label())]
    };
    if let Err(error) = keys_of(config) {
        let hint = "use the build of the source, which knows this key";
        return blocker(BlockerCode::DeviceParams, &error, hint);
    }
    let found = Plugin::find_by_id(&config.plugin, dirs);
    let plugin = match found.and_then(|file| Plugin::open(&file)) {
        Ok(plugin) => plugin,
        Err(error) => {
            let (code, hint) = match &error {
                LoadError::NoSuchId { .. } => (
                    BlockerCode::PluginMissing,
                    "put the plugin's file there, or name its folder with --plugin-path",
                ),
                _ => (BlockerCode::PluginAbi, "install a build of the plugin that loads here"),
            };
            return blocker(code, &error, hint);
        }
    };
    let host = "free memory or raise limits on this host";
    let memory = Arc::new(HeapMemory::new(0));
    let domain = match Domain::new(memory, DomainConfig::default()) {
        Ok(domain) => domain,
        Err(error) => return blocker(BlockerCode::Host, &error, host),
    };
    let requester = match domain.attach(Rid(config.slot)) {
        Ok(requester) => requester,
        Err(error) => return blocker(BlockerCode::Host, &error, host),
    };
    let wish = InstanceConfig {
        name: config.label(),
        params: params_of(config),
        ..InstanceConfig::default()
    };
    match Instance::create(&plugin, wish, requester, Arc::new(Nobody)) {
        Ok(instance) => refusals(&shape_of(&plugin, &instance), config),
        Err(error) => {
            let (code, hint) = match &error {
                InstanceError::Param { .. } | InstanceError::Refused { .. } => (
                    BlockerCode::DeviceParams,
                    "install the plugin version of the source, which takes these parameters",
                ),
                InstanceError::Thread { .. } => (BlockerCode::Host, host),
                _ => (BlockerCode::PluginAbi, "install a build of the plugin that works here"),
            };
            blocker(code, &error, hint)
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
    // Some errors repeat their cause.
    texts.dedup_by(|cause, error| error.ends_with(cause.as_str()));
    texts.join(": ")
}
