//! What the user writes to have a wire.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::WireError;

/// Longest path of a socket; the kernel's limit is 108.
const PATH_BYTES: usize = 100;

/// A wire to be had: `none`, `loopback`, `unix:PATH` or `tap:NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum WireSpec {
    /// None: frames go nowhere.
    #[default]
    None,
    /// What is sent comes back.
    Loopback,
    /// A stream socket that somebody listens at, framed as QEMU's `-netdev stream` does.
    Unix(PathBuf),
    /// A tap of this host, made with `multi_queue`.
    Tap(String),
}

impl WireSpec {
    /// True if it is something of this host, which only the host's own user may name.
    #[must_use]
    pub fn is_of_host(&self) -> bool {
        matches!(self, Self::Unix(_) | Self::Tap(_))
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
            Some(("tap", name)) if is_interface(name) => Ok(Self::Tap(name.into())),
            Some(("tap", _)) => Err(WireError::TapName),
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
            Self::Tap(name) => write!(f, "tap:{name}"),
        }
    }
}

/// What the kernel takes as an interface's name.
fn is_interface(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    (1..crate::tap::NAME_BYTES).contains(&name.len()) && name.bytes().all(good)
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
