//! A plugin instance as an [`Endpoint`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use drogher_iommu::Requester;
use drogher_migrate::DeviceConfig;
use drogher_plugin_host::{
    HostServices, Instance, InstanceConfig, ParamInfo, Plugin, PrecopyInfo, Read, State,
};

use super::endpoint::{Endpoint, PluginName, Shape, Tracking};
use super::error::{DeviceError, Fault};
use super::keys::{DeviceKeys, KeyError, PREFIX};
use super::set::Maker;

struct PluginDevice {
    instance: Instance,
    shape: Shape,
    /// For a plugin that cannot say what its parameters are.
    given: Vec<(String, String)>,
}

/// Makes a device of the plugin in `file`.
pub fn maker(file: PathBuf, params: Vec<(String, String)>) -> Maker<'static> {
    Box::new(move |name, requester, services| create(&file, name, &params, requester, services))
}

/// The plugin's parameters at the source of a migration.
pub fn params_of(config: &DeviceConfig) -> Vec<(String, String)> {
    let own = config.params.iter().filter(|param| !param.key.starts_with(PREFIX));
    own.map(|param| (param.key.clone(), param.value.clone())).collect()
}

/// What the VMM of the source was told of the device.
///
/// # Errors
/// A key or value that is unknown here.
pub fn keys_of(config: &DeviceConfig) -> Result<DeviceKeys, KeyError> {
    let mut keys = DeviceKeys::default();
    for param in config.params.iter().filter(|param| param.key.starts_with(PREFIX)) {
        keys.set(&param.key, &param.value)?;
    }
    Ok(keys)
}

/// Loads the plugin in `file` and makes a device of it; `name` (the RID) and the plugin's id name it
/// in messages.
fn create(
    file: &Path,
    name: &str,
    params: &[(String, String)],
    requester: Requester,
    services: Arc<dyn HostServices>,
) -> Result<Arc<dyn Endpoint>, DeviceError> {
    let device = || file.display().to_string();
    let plugin = Plugin::open(file);
    let plugin =
        plugin.map_err(|source| DeviceError::Load { device: device(), source: source.into() })?;
    let config = InstanceConfig {
        name: format!("{name} {}", plugin.descriptor().id),
        params: params.to_vec(),
        ..InstanceConfig::default()
    };
    let instance = Instance::create(&plugin, config, requester, services);
    let instance = instance
        .map_err(|source| DeviceError::Create { device: device(), source: source.into() })?;
    let shape = shape_of(&plugin, &instance);
    let given = params.to_vec();
    Ok(Arc::new(PluginDevice { instance, shape, given }))
}

/// What an instance is.
pub fn shape_of(plugin: &Plugin, instance: &Instance) -> Shape {
    let descriptor = plugin.descriptor();
    Shape {
        plugin: PluginName {
            id: descriptor.id.clone(),
            version: descriptor.version.clone(),
            abi_major: descriptor.abi_major,
            abi_minor: descriptor.abi_minor,
        },
        info: instance.info().clone(),
        migration: instance.state_format(),
        ndma: instance.has_ndma(),
    }
}

/// What an instance brings for its tracking.
pub fn tracking_of(instance: &Instance) -> Tracking {
    Tracking {
        log: instance.device_log(),
        pins: instance.pins(),
        pin_board: instance.pin_board(),
        preference: instance.preference(),
    }
}

impl Endpoint for PluginDevice {
    fn shape(&self) -> &Shape {
        &self.shape
    }

    fn region_read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Fault> {
        Ok(self.instance.region_read(region, offset, data)?)
    }

    fn region_write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Fault> {
        Ok(self.instance.region_write(region, offset, data)?)
    }

    fn config_read(&self, offset: u32, data: &mut [u8]) -> Result<(), Fault> {
        Ok(self.instance.config_read(offset, data)?)
    }

    fn config_write(&self, offset: u32, data: &[u8]) -> Result<(), Fault> {
        Ok(self.instance.config_write(offset, data)?)
    }

    fn cap_read(&self, cap: u32, offset: u32, data: &mut [u8]) -> Result<(), Fault> {
        Ok(self.instance.cap_read(cap, offset, data)?)
    }

    fn cap_write(&self, cap: u32, offset: u32, data: &[u8]) -> Result<(), Fault> {
        Ok(self.instance.cap_write(cap, offset, data)?)
    }

    fn doorbell(&self, index: u32) -> Result<(), Fault> {
        Ok(self.instance.doorbell(index)?)
    }

    fn reset(&self) -> Result<(), Fault> {
        Ok(self.instance.reset()?)
    }

    fn failed(&self) -> Option<String> {
        self.instance.error().map(|cause| cause.to_string())
    }

    fn state(&self) -> State {
        self.instance.state()
    }

    fn go(&self, state: State) -> Result<(), Fault> {
        Ok(self.instance.set_state(state)?)
    }

    fn set_ndma(&self, on: bool) -> Result<(), Fault> {
        Ok(if on { self.instance.enter_ndma() } else { self.instance.leave_ndma() }?)
    }

    fn precopy_info(&self) -> Result<PrecopyInfo, Fault> {
        Ok(self.instance.precopy_info()?)
    }

    fn stop_copy_bytes(&self) -> Result<u64, Fault> {
        Ok(self.instance.stop_copy_size()?)
    }

    fn read_state(&self, buf: &mut [u8]) -> Result<Read, Fault> {
        Ok(self.instance.read_state(buf)?)
    }

    fn write_state(&self, data: &[u8]) -> Result<(), Fault> {
        Ok(self.instance.write_state(data)?)
    }

    fn tracking(&self) -> Tracking {
        tracking_of(&self.instance)
    }

    fn param_infos(&self) -> Vec<ParamInfo> {
        self.instance.params().to_vec()
    }

    fn set_param(&self, name: &str, value: &str) -> Result<(), Fault> {
        Ok(self.instance.param_set(name, value)?)
    }

    fn params(&self) -> Result<Vec<(String, String)>, Fault> {
        if self.instance.params().is_empty() {
            return Ok(self.given.clone());
        }
        let get = |name: &str| Ok((name.to_owned(), self.instance.param_get(name)?));
        self.instance.params().iter().map(|param| get(&param.name)).collect()
    }
}
