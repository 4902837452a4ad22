//! Reading the probe's lines, one at a time. `DESIGN.md` has their formats.

use std::str::FromStr;
use std::time::Duration;

/// One line of the probe's console. Unknown keys are left alone, a missing one reads as 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// `probe: hello ...`: the guest runs and has read its options.
    Hello(Hello),
    /// `probe: ready ...`: the working set is filled, the load begins.
    Ready,
    /// `probe: t=...`: every `status_ms`.
    Status(Status),
    /// `probe: blackout_us=... noise_us=...`: a gap over five times the recent noise.
    Blackout(Blackout),
    /// `probe: bye ...`: the last line before power-off.
    Bye(Bye),
    /// `FAIL ...`, whole: a wrong byte, a lost interrupt, a fault, a wrong option.
    Fail(String),
    /// `probe:` and anything else (answers to input characters).
    Note(String),
    /// Not the probe's.
    Other(String),
}

/// `probe: hello`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// vCPUs that the guest drives.
    pub vcpus: u64,
    /// Working set in bytes.
    pub ws: u64,
    /// TSC frequency that the guest counts by.
    pub tsc_khz: u64,
    /// ndma devices that it drives.
    pub ndma: u64,
}

/// `probe: t=...`. All counts are since the guest's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Guest time since the load began.
    pub t: Duration,
    /// Pages written, each checked before.
    pub pages: u64,
    /// Pages checked, by writes and sweeps.
    pub checked: u64,
    /// Full sweeps over the working set and the DMA areas, of the vCPU that has done the fewest.
    pub sweeps: u64,
    /// DMA descriptors whose results were checked.
    pub dma: u64,
    /// Completion interrupts.
    pub irqs: u64,
    /// Interrupts that no completed batch explains: allowed by MSI, not by exact migration.
    pub extra: u64,
    /// Largest gap between two heartbeats since the last status line, in µs.
    pub gap_us: u64,
    /// Largest gap since the start, in µs: the blackout, once there was one.
    pub max_gap_us: u64,
    /// Largest gap in the second before that one, in µs: what this host does without a blackout.
    pub noise_us: u64,
}

/// `probe: blackout_us=... noise_us=...`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Blackout {
    /// The gap, in µs.
    pub blackout_us: u64,
    /// The largest in the second before, in µs.
    pub noise_us: u64,
}

/// `probe: bye`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bye {
    /// Totals, as a status line has them; `gap_us` is 0.
    pub totals: Status,
    /// Whether the guest found no fault.
    pub ok: bool,
}

impl Line {
    /// Reads one line, without its line ending.
    pub fn parse(line: &str) -> Self {
        let line = line.trim_end_matches(['\r', '\n']);
        if line.starts_with("FAIL") {
            return Self::Fail(line.to_owned());
        }
        let Some(rest) = line.strip_prefix("probe: ") else {
            return Self::Other(line.to_owned());
        };
        let fields = Fields(rest);
        match rest.split([' ', '=']).next() {
            Some("hello") => Self::Hello(Hello {
                vcpus: fields.number("vcpus"),
                ws: fields.number("ws"),
                tsc_khz: fields.number("tsc_khz"),
                ndma: fields.number("ndma"),
            }),
            Some("ready") => Self::Ready,
            Some("t") => Self::Status(fields.status()),
            Some("blackout_us") => Self::Blackout(Blackout {
                blackout_us: fields.number("blackout_us"),
                noise_us: fields.number("noise_us"),
            }),
            Some("bye") => {
                Self::Bye(Bye { totals: fields.status(), ok: fields.get("result") == Some("ok") })
            }
            _ => Self::Note(rest.to_owned()),
        }
    }
}

/// The `key=value` words of a line.
struct Fields<'a>(&'a str);

impl<'a> Fields<'a> {
    fn get(&self, key: &str) -> Option<&'a str> {
        let words = self.0.split_ascii_whitespace().filter_map(|word| word.split_once('='));
        words.filter(|(name, _)| *name == key).map(|(_, value)| value).next()
    }

    fn number(&self, key: &str) -> u64 {
        self.get(key).and_then(|value| u64::from_str(value).ok()).unwrap_or(0)
    }

    fn status(&self) -> Status {
        Status {
            t: seconds(self.get("t").unwrap_or_default()),
            pages: self.number("pages"),
            checked: self.number("checked"),
            sweeps: self.number("sweeps"),
            dma: self.number("dma"),
            irqs: self.number("irqs"),
            extra: self.number("extra"),
            gap_us: self.number("gap_us"),
            max_gap_us: self.number("max_gap_us"),
            noise_us: self.number("noise_us"),
        }
    }
}

/// `12.345` seconds; the guest writes three decimals always.
fn seconds(text: &str) -> Duration {
    let (whole, thousandths) = text.split_once('.').unwrap_or((text, "0"));
    let whole = Duration::from_secs(whole.parse().unwrap_or(0));
    whole.saturating_add(Duration::from_millis(thousandths.parse().unwrap_or(0)))
}

#[cfg(test)]
#[path = "line_test.rs"]
mod tests;
