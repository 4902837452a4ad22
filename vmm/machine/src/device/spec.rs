//! What the user writes to have a device: a plugin and its parameters.

use std::str::FromStr;

use thiserror::Error;

use super::keys::{DeviceKeys, KeyError, PREFIX};

/// A device to be made: `NAME|FILE.so[,key=value]...`. Keys that begin with `vm.` are for the VMM, all
/// others for the plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Name of a plugin to be looked up, or the path of a file (anything with a `/` or ending in
    /// `.so`).
    pub name_or_path: String,
    /// Parameters of the plugin, in the order given.
    pub params: Vec<(String, String)>,
    /// What the VMM is told of it.
    pub keys: DeviceKeys,
}

/// A text that describes no device.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpecError {
    /// No name before the first comma.
    #[error("Device {text:?} names no plugin; write NAME or FILE.so, then ,key=value")]
    NoName {
        /// The whole text.
        text: String,
    },
    /// A parameter without `=`, or without a name.
    #[error("Parameter {param:?} of device {device:?} is not key=value")]
    Param {
        /// The device's name or path.
        device: String,
        /// The parameter.
        param: String,
    },
    /// A parameter given twice.
    #[error("Parameter {key:?} of device {device:?} is given twice")]
    Twice {
        /// The device's name or path.
        device: String,
        /// The parameter's name.
        key: String,
    },
    /// A key of the VMM that there is not, or with a value that it does not have.
    #[error("Device {device:?}: {source}")]
    Key {
        /// The device's name or path.
        device: String,
        /// What is wrong.
        source: KeyError,
    },
}

impl DeviceSpec {
    /// A plugin without parameters.
    pub fn new(name_or_path: impl Into<String>) -> Self {
        Self { name_or_path: name_or_path.into(), params: Vec::new(), keys: DeviceKeys::default() }
    }

    /// Adds a parameter of the plugin.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.params.push((key.into(), value.into()));
        self
    }
}

impl FromStr for DeviceSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let mut parts = text.split(',');
        let name = parts.next().unwrap_or_default();
        if name.is_empty() {
            return Err(SpecError::NoName { text: text.into() });
        }
        let mut spec = Self::new(name);
        for param in parts {
            let bad = || SpecError::Param { device: name.into(), param: param.into() };
            let (key, value) = param.split_once('=').ok_or_else(bad)?;
            if key.is_empty() {
                return Err(bad());
            }
            if key.starts_with(PREFIX) {
                let set = spec.keys.set(key, value);
                set.map_err(|source| SpecError::Key { device: name.into(), source })?;
                continue;
            }
            if spec.params.iter().any(|(other, _)| other == key) {
                return Err(SpecError::Twice { device: name.into(), key: key.into() });
            }
            spec = spec.with(key, value);
        }
        Ok(spec)
    }
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
