//! Parameters of an instance.

use drogher_plugin_sdk::{
    Failure, LogCaps, ParamKind, ParamSpec, Params, PinKind, Preference, Tracker,
};

use crate::scratch::PAGE;

/// KiB in a page of scratch memory.
const PAGE_KIB: u64 = (PAGE >> 10) as u64;

/// Size of the scratch memory.
pub const SCRATCH_KIB: &str = "scratch_kib";
/// The most that it moves.
pub const RATE_MIB: &str = "rate_mib";
const LOG: &str = "log";
const LOG_MIN_KIB: &str = "log_min_kib";
const LOG_MAX_KIB: &str = "log_max_kib";
const PIN: &str = "pin";
const NDMA: &str = "ndma";
const PREFERS: &str = "prefers";
const PREFERS_PAGE_KIB: &str = "prefers_page_kib";

/// Tracking pages, in KiB.
const TRACKING: ParamKind = ParamKind::Number { min: 4, max: 2048 };

/// All parameters. Unknown names and values out of bounds are refused before `create`.
pub const SPECS: &[ParamSpec] = &[
    ParamSpec::new(
        SCRATCH_KIB,
        ParamKind::Number { min: PAGE_KIB, max: 65536 },
        "64",
        "Memory on the device in KiB, a multiple of 4",
    )
    .compat(),
    ParamSpec::new(
        RATE_MIB,
        ParamKind::Number { min: 0, max: 1 << 20 },
        "0",
        "Payload that it moves at most, in MiB a second; 0: no limit",
    )
    .runtime(),
    ParamSpec::new(LOG, ParamKind::Text, "off", "Its own log of its writes: off, on or shared")
        .compat(),
    ParamSpec::new(LOG_MIN_KIB, TRACKING, "4", "Smallest page of its log in KiB, a power of two")
        .compat(),
    ParamSpec::new(LOG_MAX_KIB, TRACKING, "2048", "Largest page of its log in KiB, a power of two")
        .compat(),
    ParamSpec::new(
        PIN,
        ParamKind::Text,
        "off",
        "Which writes go to pinned memory: off, some or all",
    )
    .compat(),
    ParamSpec::new(NDMA, ParamKind::Text, "on", "Whether it has NDMA: on or off").compat(),
    ParamSpec::new(
        PREFERS,
        ParamKind::Text,
        "none",
        "What it says tracks it best: none, iommu, device, pinned, fault or all",
    )
    .compat(),
    ParamSpec::new(
        PREFERS_PAGE_KIB,
        ParamKind::Number { min: 0, max: 2048 },
        "0",
        "The tracking page that it prefers in KiB, a power of two from 4; 0: no wish",
    )
    .compat(),
];

/// Its own log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogWay {
    /// None.
    #[default]
    Off,
    /// Reported when it is asked.
    On,
    /// Bits set in the host's bitmap.
    Shared,
}

/// Which of its writes go to pinned memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PinWay {
    /// None.
    #[default]
    Off,
    /// The long ones.
    Some,
    /// All.
    All,
}

/// How the device's writes are made and tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ways {
    /// Its own log.
    pub log: LogWay,
    /// Tracking pages that the log offers, in bytes.
    pub log_pages: (u64, u64),
    /// Its pins.
    pub pin: PinWay,
    /// It has NDMA.
    pub ndma: bool,
    /// What it says suits it best.
    pub preference: Option<Preference>,
}

impl Ways {
    /// What the parameters ask for.
    ///
    /// # Errors
    /// A word that is none of those possible; a page size that is no power of two; no page size.
    pub fn new(params: &Params) -> Result<Self, Failure> {
        let log = [("off", LogWay::Off), ("on", LogWay::On), ("shared", LogWay::Shared)];
        let pin = [("off", PinWay::Off), ("some", PinWay::Some), ("all", PinWay::All)];
        let trackers = [
            ("none", None),
            ("iommu", Some(Tracker::Iommu)),
            ("device", Some(Tracker::Device)),
            ("pinned", Some(Tracker::Pinned)),
            ("fault", Some(Tracker::Fault)),
            ("all", Some(Tracker::All)),
        ];
        let (min, max) = (page(params, LOG_MIN_KIB)?, page(params, LOG_MAX_KIB)?);
        if min > max {
            let (min, max) = (min >> 10, max >> 10);
            let text = format!("Parameter {LOG_MIN_KIB}={min}: more than {LOG_MAX_KIB}={max}");
            return Err(Failure::invalid(text));
        }
        let page_size = match params.number(PREFERS_PAGE_KIB)? {
            0 => None,
            _ => Some(page(params, PREFERS_PAGE_KIB)?),
        };
        let preference = word(params, PREFERS, &trackers)?.map(|tracker| Preference {
            tracker,
            page_size,
            cost_hint_ns: None,
            reason: format!("its parameter {PREFERS} says so"),
        });
        Ok(Self {
            log: word(params, LOG, &log)?,
            log_pages: (min, max),
            pin: word(params, PIN, &pin)?,
            ndma: word(params, NDMA, &[("on", true), ("off", false)])?,
            preference,
        })
    }

    /// What the log can do.
    #[must_use]
    pub fn log_caps(&self) -> Option<LogCaps> {
        let (min_page, max_page) = self.log_pages;
        let shared = self.log == LogWay::Shared;
        (self.log != LogWay::Off).then_some(LogCaps { min_page, max_page, shared, ..LogCaps::ANY })
    }

    /// How it pins.
    #[must_use]
    pub fn pin_kind(&self) -> Option<PinKind> {
        match self.pin {
            PinWay::Off => None,
            PinWay::Some => Some(PinKind::Some),
            PinWay::All => Some(PinKind::Only),
        }
    }
}

/// One of a few words.
fn word<T: Clone>(params: &Params, name: &str, words: &[(&str, T)]) -> Result<T, Failure> {
    let text = params.text(name)?;
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| value.clone());
    found.ok_or_else(|| {
        let known: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let known = known.join(", ");
        Failure::invalid(format!("Parameter {name}={text}: not one of {known}"))
    })
}

/// A tracking page size in bytes.
fn page(params: &Params, name: &str) -> Result<u64, Failure> {
    let kib = params.number(name)?;
    if !kib.is_power_of_two() || kib < 4 {
        let text = format!("Parameter {name}={kib}: not a power of two from 4 to 2048");
        return Err(Failure::invalid(text));
    }
    Ok(kib << 10)
}

/// The rate that the parameters ask for, in bytes a second; 0 for none.
///
/// # Errors
/// None that the checks of values let through.
pub fn bytes_per_s(params: &Params) -> Result<u64, Failure> {
    Ok(params.number(RATE_MIB)? << 20)
}

/// Pages of scratch memory that the parameters ask for.
///
/// # Errors
/// A size that is no multiple of a page.
pub fn scratch_pages(params: &Params) -> Result<usize, Failure> {
    let kib = params.number(SCRATCH_KIB)?;
    if !kib.is_multiple_of(PAGE_KIB) {
        return Err(Failure::invalid(format!(
            "Parameter {SCRATCH_KIB}={kib}: not a multiple of {PAGE_KIB}"
        )));
    }
    usize::try_from(kib / PAGE_KIB)
        .map_err(|_| Failure::invalid(format!("Parameter {SCRATCH_KIB}={kib}: too large")))
}

#[cfg(test)]
#[path = "params_test.rs"]
mod tests;
