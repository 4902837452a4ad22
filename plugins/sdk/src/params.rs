//! Parameters: what there are and their checked values.

use crate::{Failure, FailureKind};
use drogher_plugin_abi as abi;
use std::collections::BTreeMap;

/// Kind of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// Any text.
    Text,
    /// A number, in bounds that include both ends.
    Number {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
    },
    /// `true` or `false`.
    Bool,
}

/// One parameter of a plugin.
#[derive(Clone, Copy, Debug)]
pub struct ParamSpec {
    pub(crate) name: &'static str,
    pub(crate) kind: ParamKind,
    pub(crate) default: &'static str,
    pub(crate) doc: &'static str,
    pub(crate) runtime: bool,
    pub(crate) compat: bool,
}

impl ParamSpec {
    /// A parameter; the default is text of its kind: `"64"`, `"true"`.
    pub const fn new(
        name: &'static str,
        kind: ParamKind,
        default: &'static str,
        doc: &'static str,
    ) -> Self {
        ParamSpec { name, kind, default, doc, runtime: false, compat: false }
    }

    /// May be set while the instance lives.
    pub const fn runtime(mut self) -> Self {
        self.runtime = true;
        self
    }

    /// Must be the same at both ends of a migration.
    pub const fn compat(mut self) -> Self {
        self.compat = true;
        self
    }

    pub(crate) const fn flags(&self) -> u32 {
        (if self.runtime { abi::DROGHER_PARAM_RUNTIME } else { 0 })
            | (if self.compat { abi::DROGHER_PARAM_COMPAT } else { 0 })
    }

    fn check(&self, value: &str) -> Result<(), Failure> {
        let name = self.name;
        match self.kind {
            ParamKind::Text => Ok(()),
            ParamKind::Bool if matches!(value, "true" | "false") => Ok(()),
            ParamKind::Bool => {
                Err(Failure::invalid(format!("Parameter {name}={value}: not true or false")))
            }
            ParamKind::Number { min, max } => match value.parse::<u64>() {
                // A sign would be taken by `parse`.
                Ok(n) if (min..=max).contains(&n) && !value.starts_with('+') => Ok(()),
                _ => Err(Failure::invalid(format!(
                    "Parameter {name}={value}: not a number from {min} to {max}"
                ))),
            },
        }
    }
}

/// The values of all parameters.
#[derive(Clone, Debug, Default)]
pub struct Params {
    values: BTreeMap<&'static str, String>,
}

impl Params {
    /// The defaults, with `given` values over them, all checked. Public for unit tests of devices.
    pub fn new(specs: &'static [ParamSpec], given: &[(&str, &str)]) -> Result<Self, Failure> {
        let mut params = Params::default();
        for spec in specs {
            spec.check(spec.default)?;
            params.values.insert(spec.name, spec.default.to_owned());
        }
        for &(name, value) in given {
            params.set(specs, name, value)?;
        }
        Ok(params)
    }

    pub(crate) fn set(
        &mut self,
        specs: &'static [ParamSpec],
        name: &str,
        value: &str,
    ) -> Result<&'static ParamSpec, Failure> {
        let spec = specs.iter().find(|spec| spec.name == name).ok_or_else(|| {
            let known: Vec<_> = specs.iter().map(|spec| spec.name).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let text = format!("No parameter {name}; there are: {known}");
            Failure::new(FailureKind::NotFound, text)
        })?;
        spec.check(value)?;
        self.values.insert(spec.name, value.to_owned());
        Ok(spec)
    }

    /// The text of a parameter.
    pub fn text(&self, name: &str) -> Result<&str, Failure> {
        self.values
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("No parameter {name}")))
    }

    /// The value of a numeric parameter.
    pub fn number(&self, name: &str) -> Result<u64, Failure> {
        let text = self.text(name)?;
        text.parse().map_err(|_| Failure::invalid(format!("Parameter {name}={text}: no number")))
    }

    /// The value of a parameter of kind `Bool`.
    pub fn flag(&self, name: &str) -> Result<bool, Failure> {
        Ok(self.text(name)? == "true")
    }
}
