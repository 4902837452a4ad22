//! What the user writes to have a wire.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::WireError;

/// Longest path of a socket; the kernel's limit is 108.
const PATH_BYTES: usize = 100;

/// A wire to be had: `none`, `loopback` or `unix:PATH`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WireSpec {
    /// None: frames go nowhere.
    #[default]
    None,
    /// What is sent comes back.
    Loopback,
    /// A stream socket that somebody listens at, framed as QEMU's `-netdev stream` does.
    Unix(PathBuf),
}

impl WireSpec {
    /// The path on this host that it names.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::None | Self::Loopback => None,
        }
    }
}

impl FromStr for WireSpec {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            None if text == "loopback" => Ok(Self::Loopback),
            Some(("unix", path)) if (1..=PATH_BYTES).contains(&path.len()) => {
                Ok(Self::Unix(path.into()))
            }
            Some(("unix", _)) => Err(WireError::NoPath),
            Some(("tap", name)) => Err(WireError::Tap(name.into())),
            _ => Err(WireError::Unknown(text.into())),
        }
    }
}

impl fmt::Display for WireSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Loopback => f.write_str("loopback"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
