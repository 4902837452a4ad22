//! Devices by name, and their parameters while they live.

use std::sync::Arc;

use drogher_iommu_types::plugin::is_called;
use drogher_plugin_host::{ParamInfo, ParamKind};
use serde::{Deserialize, Serialize};

use super::error::DeviceError;
use super::function::PciDevice;
use super::set::DeviceSet;

/// One parameter of a device, for people and tools.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ParamView {
    /// Its name.
    pub name: String,
    /// `text`, `number` or `bool`; empty if its plugin does not describe it.
    pub kind: String,
    /// Smallest number, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u64>,
    /// Largest number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// The value it has now.
    pub value: String,
    /// The value if none is given.
    pub default: String,
    /// What it does.
    pub doc: String,
    /// It may be set while the device lives.
    pub runtime: bool,
    /// It has to be the same at both ends of a migration.
    pub compat: bool,
}

/// The parameters of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct DeviceParams {
    /// Its address on the PCI bus.
    pub slot: String,
    /// Its plugin's id.
    pub plugin: String,
    /// What the user calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its parameters; those that the plugin does not describe are as they were given.
    pub params: Vec<ParamView>,
    /// Why they cannot be read, if they cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

fn view(name: String, value: String, info: Option<&ParamInfo>) -> ParamView {
    let (kind, min, max) = match info.map(|info| info.kind) {
        None => ("", None, None),
        Some(ParamKind::Text) => ("text", None, None),
        Some(ParamKind::Bool) => ("bool", None, None),
        Some(ParamKind::Number { min, max }) => ("number", Some(min), Some(max)),
    };
    ParamView {
        name,
        kind: kind.into(),
        min,
        max,
        value,
        default: info.map(|info| info.default.clone()).unwrap_or_default(),
        doc: info.map(|info| info.doc.clone()).unwrap_or_default(),
        runtime: info.is_some_and(|info| info.runtime),
        compat: info.is_some_and(|info| info.compat),
    }
}

impl PciDevice {
    /// Its parameters as they are now.
    fn params(&self) -> DeviceParams {
        let infos = self.endpoint.param_infos();
        let (params, error) = match self.endpoint.params() {
            Ok(values) => (values, None),
            Err(error) => (Vec::new(), Some(drogher_migrate::error::chain(&*error))),
        };
        let with_info = |(name, value): (String, String)| {
            let info = infos.iter().find(|info| info.name == name);
            view(name, value, info)
        };
        DeviceParams {
            slot: self.rid().to_string(),
            plugin: self.shape().plugin.id.clone(),
            name: self.name().map(str::to_owned),
            params: params.into_iter().map(with_info).collect(),
            error,
        }
    }
}

impl DeviceSet {
    /// The parameters of all devices, in slot order.
    #[must_use]
    pub fn params(&self) -> Vec<DeviceParams> {
        self.devices().iter().map(|device| device.params()).collect()
    }

    /// Sets a parameter of the device that `asked` names.
    ///
    /// # Errors
    /// There is no such device, parameter or value, or it cannot be set now.
    pub fn set_param(&self, asked: &str, name: &str, value: &str) -> Result<(), DeviceError> {
        let device = self.find(asked)?;
        let set = device.endpoint.set_param(name, value);
        set.map_err(|source| DeviceError::Call {
            device: device.label().into(),
            what: format!("setting {name}"),
            source,
        })
    }

    /// The device that [`pick`] finds for `asked`.
    ///
    /// # Errors
    /// As there.
    pub fn find(&self, asked: &str) -> Result<&PciDevice, DeviceError> {
        let called = |device: &Arc<PciDevice>| Called {
            slot: device.rid().to_string(),
            plugin: device.shape().plugin.id.clone(),
            name: device.name().map(str::to_owned),
        };
        pick(self.devices(), asked, called).map(Arc::as_ref)
    }
}

/// What a device can be called by.
pub struct Called {
    /// Its address, `bb:dd.f`.
    pub slot: String,
    /// Its plugin's id.
    pub plugin: String,
    /// Its `vm.name`.
    pub name: Option<String>,
}

impl Called {
    fn by_user(&self, asked: &str) -> bool {
        self.name.as_deref() == Some(asked) || self.slot == asked
    }
}

impl std::fmt::Display for Called {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} ({name}, {})", self.slot, self.plugin),
            None => write!(f, "{} ({})", self.slot, self.plugin),
        }
    }
}

/// The device that `asked` names: by its name or address or, if it is the only one, by its plugin.
///
/// # Errors
/// [`NoSuchDevice`](DeviceError::NoSuchDevice) or [`SeveralDevices`](DeviceError::SeveralDevices), with what there is.
pub fn pick<'a, T>(
    devices: &'a [T],
    asked: &str,
    called: impl Fn(&T) -> Called,
) -> Result<&'a T, DeviceError> {
    let called: Vec<_> = devices.iter().map(|device| (called(device), device)).collect();
    if let Some((_, device)) = called.iter().find(|(called, _)| called.by_user(asked)) {
        return Ok(*device);
    }
    let list = |some: &[&(Called, &T)]| {
        let words: Vec<_> = some.iter().map(|(called, _)| called.to_string()).collect();
        if words.is_empty() { "none".to_owned() } else { words.join(", ") }
    };
    let of_plugin = |(called, _): &&(Called, &'a T)| is_called(&called.plugin, asked);
    let found: Vec<_> = called.iter().filter(of_plugin).collect();
    match found[..] {
        [(_, device)] => Ok(*device),
        [] => Err(DeviceError::NoSuchDevice {
            asked: asked.to_owned(),
            known: list(&called.iter().collect::<Vec<_>>()),
        }),
        _ => Err(DeviceError::SeveralDevices { asked: asked.to_owned(), found: list(&found) }),
    }
}

#[cfg(test)]
#[path = "params_test.rs"]
mod tests;
