//! What the VMM itself is told of a device: the keys that begin with `vm.`, which no plugin sees.

use std::fmt;

use drogher_tracking::{Choice, ChoiceError, EarlyNdma};
use drogher_wires::{WireError, WireSpec};
use std::path::PathBuf;
use thiserror::Error;

/// How a key of the VMM begins.
pub const PREFIX: &str = "vm.";
/// The address space of a device that names none.
pub const MAIN_SPACE: &str = "main";
/// Longest name, in bytes.
const NAME_BYTES: usize = 32;
/// All keys, for messages.
const KNOWN: &str = "vm.name, vm.space, vm.iommu, vm.tracker, vm.tracking_page, vm.require, \
                     vm.ndma, vm.peers, vm.net (vm.net1 to vm.net7), vm.pcap";
/// The wires of ports 0 to 7.
const NET: [&str; 8] =
    ["vm.net", "vm.net1", "vm.net2", "vm.net3", "vm.net4", "vm.net5", "vm.net6", "vm.net7"];

/// A key or value that the VMM does not take.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum KeyError {
    /// No such key.
    #[error("There is no key {0:?}; there are: {KNOWN}")]
    Unknown(String),
    /// The key is given twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
    /// A name with other signs, too long or empty.
    #[error("{key}={value}: a name is 1 to {NAME_BYTES} of a-z A-Z 0-9 - _")]
    Name {
        /// The key.
        key: &'static str,
        /// As given.
        value: String,
    },
    /// A value that the key does not have.
    #[error("{key}={value} is not possible; use {allowed}")]
    Value {
        /// The key.
        key: &'static str,
        /// As given.
        value: String,
        /// What there is.
        allowed: &'static str,
    },
    /// A wire that there is not.
    #[error("{key}: {text}")]
    Wire {
        /// The key.
        key: &'static str,
        /// What is wrong.
        text: String,
    },
    /// A value of tracking that there is not.
    #[error("{key}={value}: {source}")]
    Tracking {
        /// The key.
        key: &'static str,
        /// As given.
        value: String,
        /// Why not.
        source: ChoiceError,
    },
}

/// What is said of one device; what is not said is left to the defaults.
///
/// | key | |
/// |---|---|
/// | `vm.name=NAME` | for messages, and for others to name it by |
/// | `vm.space=NAME` | its address space; `main` |
/// | `vm.iommu=on\|off` | off: raw DMA, past every tracker |
/// | `vm.tracker=auto\|iommu\|device\|pinned\|fault\|all` | the provider |
/// | `vm.tracking_page=4K..2M` | the tracking page size |
/// | `vm.require=exact\|any` | refuse to migrate with other reports |
/// | `vm.ndma=early\|untracked\|late` | when it enters NDMA |
/// | `vm.peers=NAME+NAME...` | the devices whose BARs it may write to |
/// | `vm.net=none\|loopback\|unix:PATH` | the wire in its Ethernet port; `vm.net1` to `vm.net7` for more |
/// | `vm.pcap=FILE` | a copy of all its frames |
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceKeys {
    /// Its name.
    pub name: Option<String>,
    /// Its address space, if it is said.
    pub space: Option<String>,
    /// False: its DMA is raw.
    pub iommu: Option<bool>,
    /// How it is to be tracked.
    pub tracking: Choice,
    /// Names of devices whose BARs it may write to.
    pub peers: Vec<String>,
    /// The wires in its Ethernet ports, where they are said.
    pub wires: [Option<WireSpec>; NET.len()],
    /// Where its frames are copied to.
    pub capture: Option<PathBuf>,
}

impl DeviceKeys {
    /// The address space: by name, or `main`.
    #[must_use]
    pub fn space(&self) -> &str {
        self.space.as_deref().unwrap_or(MAIN_SPACE)
    }

    /// True if its DMA passes no IOMMU.
    #[must_use]
    pub fn is_raw(&self) -> bool {
        self.iommu == Some(false)
    }

    /// The wire in an Ethernet port.
    #[must_use]
    pub fn wire(&self, port: usize) -> WireSpec {
        self.wires.get(port).cloned().flatten().unwrap_or_default()
    }

    /// A key that means nothing to a device with so many Ethernet ports.
    #[must_use]
    pub fn net_key_beyond(&self, ports: usize) -> Option<&'static str> {
        let said = NET.iter().zip(&self.wires).skip(ports).find(|(_, wire)| wire.is_some());
        let capture = (ports == 0 && self.capture.is_some()).then_some("vm.pcap");
        said.map(|(key, _)| *key).or(capture)
    }

    /// Keys that name a file, socket or interface of the host, and their values.
    #[must_use]
    pub fn paths(&self) -> Vec<(&'static str, String)> {
        let names_path = |key: &str| {
            let wire = NET.iter().position(|other| *other == key);
            let wire = wire.and_then(|port| self.wires.get(port)).and_then(Option::as_ref);
            key == "vm.pcap" || wire.is_some_and(WireSpec::is_of_host)
        };
        self.entries().into_iter().filter(|(key, _)| names_path(key)).collect()
    }

    /// Takes one key, `vm.` included.
    ///
    /// # Errors
    /// `Unknown`, `Twice`, or what is wrong with the value.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), KeyError> {
        let track = |key, name: &str| {
            let choice = format!("{name}={value}").parse::<Choice>();
            choice.map_err(|source| KeyError::Tracking { key, value: value.into(), source })
        };
        let bad = |key, allowed| KeyError::Value { key, value: value.into(), allowed };
        match key {
            "vm.name" => once("vm.name", &mut self.name, name("vm.name", value)?),
            "vm.space" => once("vm.space", &mut self.space, name("vm.space", value)?),
            "vm.iommu" => {
                let on = match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(bad("vm.iommu", "on or off")),
                };
                once("vm.iommu", &mut self.iommu, on)
            }
            "vm.tracker" => {
                merge("vm.tracker", &mut self.tracking, track("vm.tracker", "provider")?)
            }
            "vm.tracking_page" => {
                let key = "vm.tracking_page";
                merge(key, &mut self.tracking, track(key, "page-size")?)
            }
            "vm.require" => {
                merge("vm.require", &mut self.tracking, track("vm.require", "require")?)
            }
            "vm.ndma" => {
                let early = match value {
                    "early" => EarlyNdma::On,
                    "untracked" => EarlyNdma::Untracked,
                    "late" => EarlyNdma::Off,
                    _ => return Err(bad("vm.ndma", "early, untracked or late")),
                };
                once("vm.ndma", &mut self.tracking.early_ndma, early)
            }
            "vm.peers" => {
                if !self.peers.is_empty() {
                    return Err(KeyError::Twice("vm.peers"));
                }
                let names = value.split('+').map(|peer| name("vm.peers", peer));
                self.peers = names.collect::<Result<_, _>>()?;
                Ok(())
            }
            "vm.pcap" if value.is_empty() => Err(bad("vm.pcap", "the name of a file")),
            "vm.pcap" => once("vm.pcap", &mut self.capture, value.into()),
            _ => {
                let port =
                    NET.iter().position(|net| *net == key || (key == "vm.net0" && *net == NET[0]));
                let found = port.and_then(|port| NET.get(port).zip(self.wires.get_mut(port)));
                let (key, wire) = found.ok_or_else(|| KeyError::Unknown(key.into()))?;
                let spec = value
                    .parse()
                    .map_err(|error: WireError| KeyError::Wire { key, text: error.to_string() })?;
                once(key, wire, spec)
            }
        }
    }

    /// What is said, as keys and values that [`set`](Self::set) takes.
    #[must_use]
    pub fn entries(&self) -> Vec<(&'static str, String)> {
        let Choice { provider, page_size, require_exact, early_ndma } = self.tracking;
        let tracker = |wish: drogher_tracking::Wish| {
            wish.provider().map_or("auto", drogher_tracking::ProviderKind::name).to_owned()
        };
        let entries = [
            ("vm.name", self.name.clone()),
            ("vm.space", self.space.clone()),
            ("vm.iommu", self.iommu.map(|on| if on { "on" } else { "off" }.to_owned())),
            ("vm.tracker", provider.map(tracker)),
            ("vm.tracking_page", page_size.map(|size| size.to_string())),
            ("vm.require", require_exact.map(|on| if on { "exact" } else { "any" }.to_owned())),
            ("vm.ndma", early_ndma.map(|early| ndma(early).to_owned())),
            ("vm.peers", (!self.peers.is_empty()).then(|| self.peers.join("+"))),
            ("vm.pcap", self.capture.as_ref().map(|path| path.display().to_string())),
        ];
        let wires = NET.iter().zip(&self.wires);
        let wires = wires.map(|(key, wire)| (*key, wire.as_ref().map(WireSpec::to_string)));
        let all = entries.into_iter().chain(wires);
        all.filter_map(|(key, value)| Some((key, value?))).collect()
    }

    /// The value of a key, also if it is the default; empty if there is neither.
    #[must_use]
    pub fn effective(&self, key: &str) -> String {
        let said = self.entries().into_iter().find(|(other, _)| *other == key);
        let default = match key {
            "vm.space" => MAIN_SPACE,
            "vm.iommu" => "on",
            "vm.tracker" => "auto",
            "vm.require" => "any",
            "vm.ndma" => "late",
            key if NET.contains(&key) => "none",
            _ => "",
        };
        said.map_or_else(|| default.to_owned(), |(_, value)| value)
    }
}

impl fmt::Display for DeviceKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = self.entries().into_iter().map(|(key, value)| format!("{key}={value}"));
        f.write_str(&texts.collect::<Vec<_>>().join(","))
    }
}

fn ndma(early: EarlyNdma) -> &'static str {
    match early {
        EarlyNdma::Off => "late",
        EarlyNdma::Untracked => "untracked",
        EarlyNdma::On => "early",
    }
}

fn name(key: &'static str, value: &str) -> Result<String, KeyError> {
    let sign = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if (1..=NAME_BYTES).contains(&value.len()) && value.bytes().all(sign) {
        return Ok(value.to_owned());
    }
    Err(KeyError::Name { key, value: value.into() })
}

fn once<T>(key: &'static str, to: &mut Option<T>, value: T) -> Result<(), KeyError> {
    match to.replace(value) {
        None => Ok(()),
        Some(_) => Err(KeyError::Twice(key)),
    }
}

/// Adds the one field that `choice` has.
fn merge(key: &'static str, to: &mut Choice, choice: Choice) -> Result<(), KeyError> {
    let twice = (choice.provider.is_some() && to.provider.is_some())
        || (choice.page_size.is_some() && to.page_size.is_some())
        || (choice.require_exact.is_some() && to.require_exact.is_some());
    if twice {
        return Err(KeyError::Twice(key));
    }
    *to = choice.or(*to);
    Ok(())
}

#[cfg(test)]
#[path = "keys_test.rs"]
mod tests;
