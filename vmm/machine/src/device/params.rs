//! Devices by name, and their parameters while they live.

use std::sync::Arc;

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

    /// The device of this name, address (`bb:dd.f`) or, if it is the only one, plugin id.
    ///
    /// # Errors
    /// There is none, or there are several.
    pub fn find(&self, asked: &str) -> Result<&PciDevice, DeviceError> {
        let by_name = |device: &&Arc<PciDevice>| {
            device.name() == Some(asked) || device.rid().to_string() == asked
        };
        let by_plugin = |device: &&Arc<PciDevice>| device.shape().plugin.id == asked;
        let mut plugin = self.devices().iter().filter(by_plugin);
        let found = match self.devices().iter().find(by_name) {
            Some(device) => Some(device),
            None => plugin.next().filter(|_| plugin.next().is_none()),
        };
        found.map(Arc::as_ref).ok_or_else(|| DeviceError::NotOne {
            asked: asked.to_owned(),
            known: self.devices().iter().map(|d| d.label()).collect::<Vec<_>>().join(", "),
        })
    }
}

#[cfg(test)]
#[path = "params_test.rs"]
mod tests;
