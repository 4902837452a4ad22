//! Parameters of plugins: what there are, and checks of values before a plugin sees them.

use crate::load_error::TableError;
use crate::raw::RawParam;
use crate::text;
use drogher_plugin_abi as abi;

/// Kind of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// Any text.
    Text,
    /// A decimal number, in bounds that include both ends.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Its name, of `a-z 0-9 _`.
    pub name: String,
    /// What values it takes.
    pub kind: ParamKind,
    /// Value if none is given.
    pub default: String,
    /// One line for people.
    pub doc: String,
    /// May be set while the instance lives.
    pub runtime: bool,
    /// Must be the same at both ends of a migration.
    pub compat: bool,
}

/// A wrong parameter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// No such parameter.
    #[error("No parameter {name}; there are: {known}")]
    Unknown {
        /// The name given.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// Given twice.
    #[error("Parameter {name} is given twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// A value that is not of the parameter's kind.
    #[error("Parameter {name}={value}: must be {rule}")]
    Value {
        /// The name.
        name: String,
        /// The value given.
        value: String,
        /// What it must be.
        rule: String,
    },
    /// Not while the instance lives.
    #[error("Parameter {name} can be given at the start only")]
    NotRuntime {
        /// The name.
        name: String,
    },
    /// The plugin describes an impossible parameter.
    #[error("Parameter number {number} of the plugin is impossible: {what}")]
    Description {
        /// Its number.
        number: u32,
        /// What is wrong.
        what: String,
    },
}

impl ParamInfo {
    pub(crate) fn new(
        number: u32,
        raw: &RawParam,
        before: &[ParamInfo],
    ) -> Result<Self, ParamError> {
        let wrong = |what: String| ParamError::Description { number, what };
        let text = |field, bytes: &[u8]| {
            text::strict(bytes).map_err(|problem| wrong(format!("its {field} {problem}")))
        };
        let name = text("name", &raw.name)?;
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
            return Err(wrong(format!("its name {name:?} is not 1 to 64 of a-z 0-9 _")));
        }
        if before.iter().any(|other| other.name == name) {
            return Err(wrong(format!("its name {name} was there before")));
        }
        if raw.flags & !abi::DROGHER_PARAM_FLAGS != 0 || raw.reserved != 0 {
            return Err(wrong(format!("reserved flags are set: {:#x}", raw.flags)));
        }
        let kind = match raw.kind {
            abi::DROGHER_PARAM_TEXT => ParamKind::Text,
            abi::DROGHER_PARAM_BOOL => ParamKind::Bool,
            abi::DROGHER_PARAM_U64 if (raw.min, raw.max) == (0, 0) => {
                ParamKind::Number { min: 0, max: u64::MAX }
            }
            abi::DROGHER_PARAM_U64 => ParamKind::Number { min: raw.min, max: raw.max },
            kind => return Err(wrong(format!("kind {kind} does not exist"))),
        };
        let info = ParamInfo {
            name,
            kind,
            default: text("default", &raw.default)?,
            doc: text("documentation", &raw.doc)?,
            runtime: raw.flags & abi::DROGHER_PARAM_RUNTIME != 0,
            compat: raw.flags & abi::DROGHER_PARAM_COMPAT != 0,
        };
        info.check(&info.default).map_err(|error| wrong(error.to_string()))?;
        Ok(info)
    }

    /// Checks a value.
    pub fn check(&self, value: &str) -> Result<(), ParamError> {
        let rule = match self.kind {
            ParamKind::Text if text::strict(value.as_bytes()).is_ok() => return Ok(()),
            ParamKind::Text => format!("text of at most {} bytes on one line", text::MAX),
            ParamKind::Bool if matches!(value, "true" | "false") => return Ok(()),
            ParamKind::Bool => "true or false".to_owned(),
            ParamKind::Number { min, max } => {
                let digits = !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit());
                match value.parse::<u64>() {
                    Ok(number) if digits && (min..=max).contains(&number) => return Ok(()),
                    _ => format!("a number from {min} to {max}"),
                }
            }
        };
        Err(ParamError::Value { name: self.name.clone(), value: value.to_owned(), rule })
    }
}

/// Checks the plugin's table.
pub(crate) fn check_table(raw: &abi::Params) -> Result<(), TableError> {
    let table = "drogher_params";
    for (function, there) in
        [("info", raw.info.is_some()), ("get", raw.get.is_some()), ("set", raw.set.is_some())]
    {
        if !there {
            return Err(TableError::NoFunction { table, function });
        }
    }
    let field = |field, value: u32, rule| {
        Err(TableError::Field { table, field, value: u64::from(value), rule })
    };
    if raw.flags != 0 || raw.reserved != 0 {
        return field("flags", raw.flags | raw.reserved, "must be 0");
    }
    if raw.count > abi::DROGHER_PARAMS_MAX {
        return field("count", raw.count, "at most 256");
    }
    Ok(())
}

/// The parameter of a name.
pub(crate) fn find<'a>(infos: &'a [ParamInfo], name: &str) -> Result<&'a ParamInfo, ParamError> {
    infos.iter().find(|info| info.name == name).ok_or_else(|| {
        let known: Vec<_> = infos.iter().map(|info| info.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        ParamError::Unknown { name: name.to_owned(), known }
    })
}

/// Checks the values given at creation.
pub(crate) fn check_all(infos: &[ParamInfo], given: &[(String, String)]) -> Result<(), ParamError> {
    for (n, (name, value)) in given.iter().enumerate() {
        find(infos, name)?.check(value)?;
        if given.iter().take(n).any(|(other, _)| other == name) {
            return Err(ParamError::Twice { name: name.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "params_test.rs"]
mod tests;
