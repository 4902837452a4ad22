//! The configuration of a VM, from a TOML file and from flags, in one shape.
//!
//! Flags win over the file, field by field; `devices` are added to the file's.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use drogher_machine::device::{DeviceSpec, SpecError};
use drogher_machine::tracking::Wishes;
use drogher_machine::vcpu::cpuid::{CpuKind, UnknownCpu};
use serde::Deserialize;

/// Default amount of guest RAM: 256 MiB.
pub const MEMORY_BYTES_DEFAULT: u64 = 256 << 20;

/// Guest RAM is a multiple of this: 2 MiB.
const MEMORY_UNIT_BYTES: u64 = 2 << 20;

/// Smallest guest RAM: the probe and its page tables need this much.
pub const MEMORY_BYTES_MIN: u64 = 16 << 20;

/// Longest configuration file: 1 MiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Most vCPUs that a VM may have.
pub const CPUS_MAX: u8 = 8;

/// What can be wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("Cannot read the configuration file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        #[source]
        source: std::io::Error,
    },
    /// The file is longer than any configuration.
    #[error("The configuration file {0} has more than {FILE_BYTES_MAX} bytes")]
    TooLong(PathBuf),
    /// The file is no TOML, or has an unknown or mistyped key.
    #[error("The configuration file {path} is not valid")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A size is no number with an optional unit.
    #[error("{0:?} is no size: give a number of bytes with an optional K, M or G, as in 256M")]
    Size(String),
    /// Guest RAM is too small, or no multiple of 2 MiB.
    #[error("{0} bytes of memory: at least 16M, and a multiple of 2M, are needed")]
    Memory(u64),
    /// The number of vCPUs is out of range.
    #[error("{0} vCPUs: 1 to {CPUS_MAX} are possible")]
    Cpus(u8),
    /// A number of vCPUs is no such number.
    #[error("{0:?} is no number of vCPUs: 1 to {CPUS_MAX} are possible")]
    Number(String),
    /// There is no such CPU model.
    #[error(transparent)]
    Cpu(#[from] UnknownCpu),
    /// A device can't be understood.
    #[error(transparent)]
    Device(#[from] SpecError),
    /// An address of a peer has another form than `unix:PATH`.
    #[error("{0:?} is no address: only unix:PATH is possible")]
    Address(String),
}

/// Where the guest's serial output goes, and its input comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Console {
    /// This process's standard output and input.
    #[default]
    Stdio,
    /// Appended to a file; no input.
    File(PathBuf),
    /// Thrown away; no input.
    None,
}

impl From<&str> for Console {
    fn from(text: &str) -> Self {
        match text {
            "stdio" => Self::Stdio,
            "none" => Self::None,
            path => Self::File(path.into()),
        }
    }
}

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Kernel {
    /// The probe guest that this binary carries.
    #[default]
    Probe,
    /// An ELF file with a PVH entry, or a bzImage.
    File(PathBuf),
}

impl From<&str> for Kernel {
    fn from(text: &str) -> Self {
        match text {
            "probe" => Self::Probe,
            path => Self::File(path.into()),
        }
    }
}

/// What a file or the flags say; absent means not said.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Partial {
    /// `probe` or the path of a kernel.
    pub kernel: Option<String>,
    /// The path of an initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
    /// Guest RAM, as in `256M`.
    pub memory: Option<String>,
    /// Number of vCPUs.
    pub cpus: Option<u8>,
    /// `host` or `baseline`.
    pub cpu: Option<String>,
    /// Devices, each as on the command line.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Path of the control socket.
    pub control: Option<PathBuf>,
    /// Path of the lease file.
    pub lease: Option<PathBuf>,
    /// `stdio`, `none` or a file.
    pub console: Option<String>,
    /// Folders to look for plugins in, after the binary's own.
    #[serde(default)]
    pub plugin_path: Vec<PathBuf>,
    /// How devices' DMA is tracked.
    #[serde(default)]
    pub tracking: Wishes,
}

impl Partial {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// When it can't be read, or has an unknown or mistyped key.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text))
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(ConfigError::TooLong(path.to_owned()));
        }
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// This, where `over` says nothing else.
    #[must_use]
    pub fn overridden_by(mut self, over: Self) -> Self {
        self.devices.extend(over.devices);
        self.plugin_path.extend(over.plugin_path);
        Self {
            kernel: over.kernel.or(self.kernel),
            initrd: over.initrd.or(self.initrd),
            cmdline: over.cmdline.or(self.cmdline),
            memory: over.memory.or(self.memory),
            cpus: over.cpus.or(self.cpus),
            cpu: over.cpu.or(self.cpu),
            devices: self.devices,
            control: over.control.or(self.control),
            lease: over.lease.or(self.lease),
            console: over.console.or(self.console),
            plugin_path: self.plugin_path,
            tracking: self.tracking.overridden_by(over.tracking),
        }
    }

    /// The whole configuration, defaults filled in and checked.
    ///
    /// # Errors
    /// When a value is out of its range or has the wrong form.
    pub fn complete(self) -> Result<VmConfig, ConfigError> {
        let memory_bytes = match &self.memory {
            Some(text) => parse_memory(text)?,
            None => MEMORY_BYTES_DEFAULT,
        };
        let cpus = check_cpus(self.cpus.unwrap_or(1))?;
        Ok(VmConfig {
            kernel: self.kernel.as_deref().map(Kernel::from).unwrap_or_default(),
            initrd: self.initrd,
            cmdline: self.cmdline.unwrap_or_default(),
            memory_bytes,
            cpus,
            cpu: self.cpu.as_deref().unwrap_or("host").parse()?,
            devices: self
                .devices
                .iter()
                .map(|text| text.parse())
                .collect::<Result<_, SpecError>>()?,
            control: self.control,
            lease: self.lease,
            console: self.console.as_deref().map(Console::from).unwrap_or_default(),
            plugin_path: self.plugin_path,
            tracking: self.tracking,
        })
    }
}

/// A whole, checked configuration of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    /// What to boot.
    pub kernel: Kernel,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// Number of vCPUs, 1 to [`CPUS_MAX`].
    pub cpus: u8,
    /// Which CPU the guest sees.
    pub cpu: CpuKind,
    /// Devices in PCI slot order.
    pub devices: Vec<DeviceSpec>,
    /// Path of the control socket; none: no control.
    pub control: Option<PathBuf>,
    /// Path of the lease file; none: one is made.
    pub lease: Option<PathBuf>,
    /// Serial console.
    pub console: Console,
    /// Where to look for plugins, after the binary's own folder.
    pub plugin_path: Vec<PathBuf>,
    /// How devices' DMA is tracked.
    pub tracking: Wishes,
}

/// Parses a size such as `4096`, `64K`, `256M`, `2G` (powers of 1024; `MiB` and the like too).
///
/// # Errors
/// When it is no number with one of these units, or overflows.
pub fn parse_size(text: &str) -> Result<u64, ConfigError> {
    let bad = || ConfigError::Size(text.to_owned());
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let shift = match unit.trim().to_ascii_uppercase().trim_end_matches("IB") {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return Err(bad()),
    };
    let number: u64 = number.parse().map_err(|_| bad())?;
    number.checked_mul(1 << shift).ok_or_else(bad)
}

/// Parses an amount of guest RAM.
///
/// # Errors
/// When it is no size, too small, or no multiple of 2 MiB.
pub fn parse_memory(text: &str) -> Result<u64, ConfigError> {
    let bytes = parse_size(text)?;
    if bytes < MEMORY_BYTES_MIN || !bytes.is_multiple_of(MEMORY_UNIT_BYTES) {
        return Err(ConfigError::Memory(bytes));
    }
    Ok(bytes)
}

/// A number of vCPUs that a VM can have.
///
/// # Errors
/// When it is out of range.
pub fn check_cpus(cpus: u8) -> Result<u8, ConfigError> {
    if (1..=CPUS_MAX).contains(&cpus) { Ok(cpus) } else { Err(ConfigError::Cpus(cpus)) }
}

/// The path in an address of the form `unix:PATH`.
///
/// # Errors
/// When it has another form.
pub fn parse_unix_address(text: &str) -> Result<PathBuf, ConfigError> {
    match text.strip_prefix("unix:") {
        Some(path) if !path.is_empty() => Ok(path.into()),
        _ => Err(ConfigError::Address(text.to_owned())),
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
