//! What all sections share.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use drogher_tests::{Place, Vm, bin_folder};

use crate::console::Follower;
use crate::qemu;

/// Where files go, what is there to compare with, and how thorough to be.
pub struct Setup {
    /// Sockets, consoles, the probe's ELF.
    pub place: Place,
    /// A smoke run: few samples.
    pub quick: bool,
    /// QEMU's version; why it can't be run.
    pub qemu: Result<String>,
    /// The probe guest, for QEMU.
    pub kernel: PathBuf,
    /// The TSC's frequency, told to every guest, so that none has to measure it.
    pub tsc_khz: u64,
    began: Instant,
}

impl Setup {
    /// Writes the probe, and asks a guest for the frequency of the TSC.
    pub fn new(quick: bool) -> Result<Self> {
        let place = Place::new();
        let kernel = place.path("probe.elf");
        std::fs::write(&kernel, drogher_probe::ELF).context("Cannot write the probe's ELF")?;
        let lease = place.path("first.lease");
        let lease = lease.to_str().context("the temporary folder's name is not UTF-8")?;
        let args = ["run", "--memory", "64M", "--cmdline", "rate=0", "--lease", lease];
        let vm = Vm::start_with(&bin_folder().join("drogher"), &place, "first", &args, &[])?;
        let mut follower = Follower::new(&vm.console);
        follower.ready().with_context(|| format!("drogher said: {}", vm.stderr()))?;
        let tsc_khz = follower.console().hello().map_or(0, |hello| hello.tsc_khz);
        ensure!(tsc_khz != 0, "the guest does not know how fast its TSC counts");
        Ok(Self { place, quick, qemu: qemu::version(), kernel, tsc_khz, began: Instant::now() })
    }

    /// `full` samples, or `quick` ones in a smoke run.
    pub fn count(&self, full: usize, quick: usize) -> usize {
        if self.quick { quick } else { full }
    }

    /// A probe's command line with this load.
    pub fn cmdline(&self, load: &str) -> String {
        format!("{load} tsc_khz={}", self.tsc_khz)
    }

    /// A guest of this size under this load.
    pub fn guest(&self, memory: &str, load: &str) -> qemu::Guest {
        qemu::Guest {
            kernel: self.kernel.clone(),
            memory: memory.to_owned(),
            cmdline: self.cmdline(load),
        }
    }

    /// A word to people who wait.
    pub fn say(&self, what: &str) {
        eprintln!("[{:4} s] {what}", self.began.elapsed().as_secs());
    }
}
