//! The kernel command line: `key=value` words separated by white space.

use core::fmt;

/// `rate=max`: as fast as the vCPUs can.
pub const RATE_MAX: u64 = u64::MAX;
/// The most vCPUs that the guest has stacks and task state segments for.
pub const MAX_VCPUS: u32 = 8;
/// The most descriptors in a batch: half of the ring that the guest sets up.
pub const MAX_BATCH: u32 = 64;

/// Whether the guest drives ndma devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dma {
    /// Those that it finds, if any. The default.
    Auto,
    /// As `Auto`, and finding none is a FAIL.
    On,
    /// Leaves devices alone: neither memory decoding nor bus mastering is switched on.
    Off,
}

/// What a vCPU does when it has done what is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Halts until its LAPIC timer, set to `nap_us`, or a device interrupts. The default.
    Halt,
    /// Reads the TSC over and over: gaps are then exact, and a host core is busy.
    Spin,
}

/// How the guest ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reset through port 0xCF9.
    Reset,
    /// An exception with no interrupt descriptor table.
    TripleFault,
    /// Prints `bye` and powers off through port 0x604.
    Shutdown,
}

/// `trigger=ACTION@LINES`: do it once that many status lines were printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trigger {
    /// What to do.
    pub action: Action,
    /// After how many status lines.
    pub at: u64,
}

/// Every option, with its default in [`Options::default`]. `Display` writes the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// `ws`: bytes of memory that the vCPUs write, in whole pages. Suffixes K, M, G.
    pub ws: u64,
    /// `rate`: pages written per second, all vCPUs together; 0 none, [`RATE_MAX`] (`max`) no limit.
    pub rate: u64,
    /// `seed` of every pattern and choice.
    pub seed: u64,
    /// `dma=auto|on|off`.
    pub dma: Dma,
    /// `dma_rate`: descriptors per second, all devices together; 0 none, [`RATE_MAX`] no limit.
    pub dma_rate: u64,
    /// `dma_batch`: descriptors per doorbell and interrupt, 1..=[`MAX_BATCH`].
    pub dma_batch: u32,
    /// `dma_ws`: bytes per device that only the device writes.
    pub dma_ws: u64,
    /// `dma_scratch`: the most of a device's own memory to use, in bytes.
    pub dma_scratch: u64,
    /// `vcpus`, 1..=[`MAX_VCPUS`]; each owns a share of the working set.
    pub vcpus: u32,
    /// `status_ms`: time between two status lines.
    pub status_ms: u64,
    /// `seconds` to run before `bye`; 0 for ever.
    pub seconds: u64,
    /// `sweep_ms`: time in which every page that is not due for writing is checked, too; 0 never.
    pub sweep_ms: u64,
    /// `lost_ms`: running time after which an unanswered doorbell is a FAIL.
    pub lost_ms: u64,
    /// `idle=halt|spin`.
    pub idle: Idle,
    /// `nap_us`: the longest that `idle=halt` sleeps, and so the floor of `gap_us`.
    pub nap_us: u64,
    /// `tsc_khz`; 0: found out by CPUID, PIT or LAPIC timer.
    pub tsc_khz: u64,
    /// `trigger=reset@N|triplefault@N|shutdown@N`.
    pub trigger: Option<Trigger>,
}

impl Options {
    /// The defaults, usable in a `const`.
    pub const DEFAULT: Self = Self {
        ws: 16 << 20,
        rate: 1000,
        seed: 1,
        dma: Dma::Auto,
        dma_rate: 200,
        dma_batch: 16,
        dma_ws: 2 << 20,
        dma_scratch: 1 << 20,
        vcpus: 1,
        status_ms: 1000,
        seconds: 0,
        sweep_ms: 2000,
        lost_ms: 5000,
        idle: Idle::Halt,
        nap_us: 1000,
        tsc_khz: 0,
        trigger: None,
    };

    /// Reads a command line. Words without a known key are left alone (a VMM or QEMU may add
    /// its own) and counted; a known key with a wrong value is an error.
    pub fn parse(line: &str) -> Result<(Self, u32), BadOption<'_>> {
        let mut options = Self::DEFAULT;
        let mut ignored = 0;
        for word in line.split_ascii_whitespace() {
            let known = match word.split_once('=') {
                Some((key, value)) => options.set(key, value).ok_or(BadOption { key, value })?,
                None => false,
            };
            ignored += u32::from(!known);
        }
        Ok((options, ignored))
    }

    /// Sets one option: `Some(false)` for an unknown key, `None` for a wrong value.
    fn set(&mut self, key: &str, value: &str) -> Option<bool> {
        match key {
            "ws" => self.ws = at_least(bytes(value)?, 4096)?,
            "rate" => self.rate = rate(value)?,
            "seed" => self.seed = value.parse().ok()?,
            "dma" => self.dma = dma(value)?,
            "dma_rate" => self.dma_rate = rate(value)?,
            "dma_batch" => self.dma_batch = count(value, MAX_BATCH)?,
            "dma_ws" => self.dma_ws = at_least(bytes(value)?, 1 << 20)?,
            "dma_scratch" => self.dma_scratch = bytes(value)?,
            "vcpus" => self.vcpus = count(value, MAX_VCPUS)?,
            "status_ms" => self.status_ms = at_least(value.parse().ok()?, 10)?,
            "seconds" => self.seconds = value.parse().ok()?,
            "sweep_ms" => self.sweep_ms = value.parse().ok()?,
            "lost_ms" => self.lost_ms = at_least(value.parse().ok()?, 10)?,
            "idle" => self.idle = idle(value)?,
            "nap_us" => self.nap_us = at_least(value.parse().ok()?, 50)?,
            "tsc_khz" => self.tsc_khz = value.parse().ok()?,
            "trigger" => self.trigger = Some(trigger(value)?),
            _ => return Some(false),
        }
        Some(true)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// A known key with a value that it cannot have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadOption<'a> {
    /// The option.
    pub key: &'a str,
    /// What was given.
    pub value: &'a str,
}

impl fmt::Display for BadOption<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Probe option {}={} has a wrong value", self.key, self.value)
    }
}

impl core::error::Error for BadOption<'_> {}

/// A number of bytes: decimal digits and K, M, G or nothing.
fn bytes(value: &str) -> Option<u64> {
    let (digits, shift) = match value.as_bytes().last()? {
        b'K' | b'k' => (value.get(..value.len() - 1)?, 10),
        b'M' | b'm' => (value.get(..value.len() - 1)?, 20),
        b'G' | b'g' => (value.get(..value.len() - 1)?, 30),
        _ => (value, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn rate(value: &str) -> Option<u64> {
    if value == "max" { Some(RATE_MAX) } else { value.parse().ok() }
}

fn at_least(value: u64, least: u64) -> Option<u64> {
    (value >= least).then_some(value)
}

fn count(value: &str, most: u32) -> Option<u32> {
    value.parse().ok().filter(|n| (1..=most).contains(n))
}

fn dma(value: &str) -> Option<Dma> {
    match value {
        "auto" => Some(Dma::Auto),
        "on" => Some(Dma::On),
        "off" => Some(Dma::Off),
        _ => None,
    }
}

fn idle(value: &str) -> Option<Idle> {
    match value {
        "halt" => Some(Idle::Halt),
        "spin" => Some(Idle::Spin),
        _ => None,
    }
}

fn trigger(value: &str) -> Option<Trigger> {
    let (action, at) = value.split_once('@')?;
    let action = match action {
        "reset" => Action::Reset,
        "triplefault" => Action::TripleFault,
        "shutdown" => Action::Shutdown,
        _ => return None,
    };
    Some(Trigger { action, at: at.parse().ok()? })
}

impl fmt::Display for Options {
    /// Every option in full: the guest's defaults may change, this line stays what it was.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ws, seed, dma_batch, dma_ws, dma_scratch, vcpus, .. } = *self;
        let Self { status_ms, seconds, sweep_ms, lost_ms, nap_us, tsc_khz, .. } = *self;
        let dma = match self.dma {
            Dma::Auto => "auto",
            Dma::On => "on",
            Dma::Off => "off",
        };
        let idle = match self.idle {
            Idle::Halt => "halt",
            Idle::Spin => "spin",
        };
        write!(f, "ws={ws} rate={} seed={seed} dma={dma}", Rate(self.rate))?;
        write!(f, " dma_rate={} dma_batch={dma_batch}", Rate(self.dma_rate))?;
        write!(f, " dma_ws={dma_ws} dma_scratch={dma_scratch} vcpus={vcpus}")?;
        write!(f, " status_ms={status_ms} seconds={seconds} sweep_ms={sweep_ms}")?;
        write!(f, " lost_ms={lost_ms} idle={idle} nap_us={nap_us} tsc_khz={tsc_khz}")?;
        if let Some(Trigger { action, at }) = self.trigger {
            let action = match action {
                Action::Reset => "reset",
                Action::TripleFault => "triplefault",
                Action::Shutdown => "shutdown",
            };
            write!(f, " trigger={action}@{at}")?;
        }
        Ok(())
    }
}

/// A rate as the command line writes it.
pub struct Rate(pub u64);

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == RATE_MAX { f.write_str("max") } else { write!(f, "{}", self.0) }
    }
}

#[cfg(test)]
#[path = "options_test.rs"]
mod tests;
