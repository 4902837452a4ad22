//! What is to be measured.

use std::fmt;

use drogher_iommu_types::PAGE_SIZE;
use drogher_tracking::{ProviderKind, TrackingPageSize};
use serde::Serialize;

/// Bytes of RAM that can be measured with, a multiple of [`MEMORY_UNIT`].
const MEMORY: std::ops::RangeInclusive<u64> = 4 << 20..=4 << 30;
/// A large leaf.
const MEMORY_UNIT: u64 = 2 << 20;
/// Writes per second that a cell can have.
const RATE: std::ops::RangeInclusive<u64> = 100..=10_000_000;

/// A provider in a page size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Fixed {
    /// The provider.
    pub provider: ProviderKind,
    /// The tracking page size.
    pub page_size: TrackingPageSize,
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.provider, self.page_size)
    }
}

/// A grid: each working set with each rate is a cell, in which each provider is measured in each
/// page size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings {
    /// RAM, in bytes.
    pub memory: u64,
    /// Memory that the device writes to, in bytes.
    pub working_sets: Vec<u64>,
    /// Writes per second.
    pub rates: Vec<u64>,
    /// The providers.
    pub providers: Vec<ProviderKind>,
    /// The page sizes of those providers that have a choice of it.
    pub page_sizes: Vec<TrackingPageSize>,
    /// Paired runs for each figure.
    pub runs: u32,
}

impl Default for Settings {
    /// Twelve cells, in less than five minutes.
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            working_sets: vec![256 << 10, 4 << 20, 48 << 20],
            rates: vec![1_000, 10_000, 50_000, 200_000],
            providers: ProviderKind::EACH.to_vec(),
            page_sizes: vec![TrackingPageSize::K4, TrackingPageSize::K64, TrackingPageSize::M2],
            runs: 5,
        }
    }
}

/// Why a grid cannot be measured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingError {
    /// RAM.
    #[error("{0} bytes of memory cannot be measured with; use 4M to 4G, in steps of 2M")]
    Memory(u64),
    /// A working set.
    #[error(
        "A working set of {bytes} bytes is not whole pages of 4K within the {memory} bytes of memory"
    )]
    WorkingSet {
        /// As given.
        bytes: u64,
        /// The memory.
        memory: u64,
    },
    /// A rate.
    #[error("A rate of {0}/s cannot be measured; use 100/s to 10000000/s")]
    Rate(u64),
    /// Nothing of something.
    #[error("No {0} given; name at least one")]
    None(&'static str),
    /// The same twice.
    #[error("The {what} {value} is given twice")]
    Twice {
        /// What.
        what: &'static str,
        /// As given.
        value: String,
    },
    /// The number of runs.
    #[error("{0} paired runs have no median that means anything; use 1 to 99, an odd number")]
    Runs(u32),
    /// A text that is no size.
    #[error("{0:?} is no size; write it as 4096, 256K, 8M or 1G")]
    Size(String),
    /// A text that is no rate.
    #[error("{0:?} is no rate; write it as 20000/s, 20000 or 20K")]
    NoRate(String),
}

impl Settings {
    /// One cell, in a few seconds.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            memory: 16 << 20,
            working_sets: vec![2 << 20],
            rates: vec![20_000],
            page_sizes: vec![TrackingPageSize::K4, TrackingPageSize::K64],
            ..Self::default()
        }
    }

    /// True if it can be measured.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), SettingError> {
        let memory = self.memory;
        if !MEMORY.contains(&memory) || !memory.is_multiple_of(MEMORY_UNIT) {
            return Err(SettingError::Memory(memory));
        }
        if self.runs.is_multiple_of(2) || self.runs > 99 {
            return Err(SettingError::Runs(self.runs));
        }
        all_different("working set", &self.working_sets)?;
        all_different("rate", &self.rates)?;
        all_different("provider", &self.providers)?;
        all_different("tracking page size", &self.page_sizes)?;
        let bad = |bytes: u64| bytes == 0 || bytes > memory || !bytes.is_multiple_of(PAGE_SIZE);
        if let Some(&bytes) = self.working_sets.iter().find(|bytes| bad(**bytes)) {
            return Err(SettingError::WorkingSet { bytes, memory });
        }
        match self.rates.iter().find(|rate| !RATE.contains(rate)) {
            Some(rate) => Err(SettingError::Rate(*rate)),
            None => Ok(()),
        }
    }

    /// What is measured in each cell. Pins and everything mapped have no page size but 4K.
    #[must_use]
    pub fn choices(&self) -> Vec<Fixed> {
        let sizes = |provider| match provider {
            ProviderKind::Pinned | ProviderKind::All => &[TrackingPageSize::K4][..],
            _ => &self.page_sizes[..],
        };
        let each = |provider: &ProviderKind| {
            let provider = *provider;
            sizes(provider).iter().map(move |page_size| Fixed { provider, page_size: *page_size })
        };
        self.providers.iter().flat_map(each).collect()
    }
}

fn all_different<T: PartialEq + fmt::Display>(
    what: &'static str,
    values: &[T],
) -> Result<(), SettingError> {
    if values.is_empty() {
        return Err(SettingError::None(what));
    }
    let twice =
        values.iter().enumerate().find(|(at, value)| values.iter().take(*at).any(|v| v == *value));
    match twice {
        Some((_, value)) => Err(SettingError::Twice { what, value: value.to_string() }),
        None => Ok(()),
    }
}

/// Reads a size: a number of bytes with an optional K, M or G.
///
/// # Errors
/// `Size`.
pub fn parse_size(text: &str) -> Result<u64, SettingError> {
    scaled(text, 1024).ok_or_else(|| SettingError::Size(text.to_owned()))
}

/// Reads a rate: a number, with an optional K or M for a thousand or a million, and `/s`.
///
/// # Errors
/// `NoRate`.
pub fn parse_rate(text: &str) -> Result<u64, SettingError> {
    let number = text.strip_suffix("/s").unwrap_or(text);
    scaled(number, 1000).ok_or_else(|| SettingError::NoRate(text.to_owned()))
}

fn scaled(text: &str, unit: u64) -> Option<u64> {
    let (digits, power) = match text.as_bytes().last()? {
        b'K' | b'k' => (text.get(..text.len() - 1)?, 1),
        b'M' | b'm' => (text.get(..text.len() - 1)?, 2),
        b'G' | b'g' => (text.get(..text.len() - 1)?, 3),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(unit.pow(power))
}

#[cfg(test)]
#[path = "settings_test.rs"]
mod tests;
