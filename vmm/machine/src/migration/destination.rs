//! The engine's hands on a guest that arrives.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use drogher_migrate::{Blocker, BlockerCode, ConfigBlock, DestinationHost, Permits, StateDigest};

use super::describe::{self, Expectations};
use super::digest;
use super::error::HostError;
use super::guest::Guest;
use super::source::{holes, oa};
use crate::console::ConsoleConfig;
use crate::machine::{Devices, Machine, MachineConfig};
use crate::memory::GuestRam;

/// What the destination itself decides about the machine that it builds.
#[derive(Debug)]
pub struct DestinationSetup {
    /// Folders to look for plugins in.
    pub plugin_dirs: Vec<PathBuf>,
    /// Where the guest's serial port goes.
    pub console: ConsoleConfig,
    /// This side's own path of the lease, if the user has named it.
    pub lease: Option<PathBuf>,
    /// What the user expects to arrive.
    pub expected: Expectations,
}

/// A guest on its way here.
#[derive(Debug)]
pub struct DestinationGuest {
    setup: Option<DestinationSetup>,
    guest: Option<Arc<Guest>>,
    /// What has come is mapped once, after the bulk pass: until then a page that is written is
    /// written to the memory file, which costs no page fault, unless faults are what brings large
    /// pages. What has not come stays a hole.
    mapped: bool,
    large_pages: bool,
}

impl DestinationGuest {
    /// Nothing has arrived yet.
    #[must_use]
    pub fn new(setup: DestinationSetup) -> Self {
        let large_pages = GuestRam::faults_in_large_pages();
        Self { setup: Some(setup), guest: None, mapped: false, large_pages }
    }

    /// The guest, once a machine has been built for it.
    #[must_use]
    pub fn guest(&self) -> Option<Arc<Guest>> {
        self.guest.clone()
    }

    fn built(&self) -> Result<&Arc<Guest>, HostError> {
        self.guest.as_ref().ok_or(HostError::NotBuilt)
    }

    /// Builds the machine that `config` describes.
    fn build(&mut self, config: &ConfigBlock) -> Result<Arc<Guest>, HostError> {
        let setup = self.setup.take().ok_or(HostError::NotBuilt)?;
        let machine = Machine::create(MachineConfig {
            memory_bytes: describe::bytes_of(config),
            cpus: u8::try_from(config.cpus).map_err(|_| HostError::Cpus(config.cpus))?,
            cpu: config.cpu_model.parse()?,
            devices: Devices::Arriving(config.devices.clone()),
            ram: None,
            plugin_dirs: setup.plugin_dirs,
            console: setup.console,
        })?;
        let lease = setup.lease.unwrap_or_else(|| config.lease.path.clone());
        Ok(Guest::new(machine, config.vm_id, lease))
    }
}

/// Takes one part of the machine state from the front: its length (u32, little endian), its bytes.
fn part<'a>(state: &'a [u8], part: &'static str) -> Result<(&'a [u8], &'a [u8]), HostError> {
    let truncated = || HostError::Truncated { bytes: state.len(), part };
    let (length, rest) = state.split_first_chunk::<4>().ok_or_else(truncated)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| truncated())?;
    rest.split_at_checked(length).ok_or_else(truncated)
}

impl DestinationHost for DestinationGuest {
    type Error = HostError;

    fn check(&mut self, config: &ConfigBlock) -> Vec<Blocker> {
        let Some(setup) = &self.setup else {
            let hint = "start another drogher receive";
            return vec![Blocker::new(BlockerCode::Other, "a guest has arrived already", hint)];
        };
        describe::blockers(config, &setup.expected, &setup.plugin_dirs)
    }

    fn prepare(&mut self, config: &ConfigBlock) -> Result<(), HostError> {
        let guest = self.build(config)?;
        if describe::regions(guest.machine()) != config.memory {
            return Err(HostError::Layout);
        }
        guest.machine().devices().begin_resume()?;
        self.guest = Some(guest);
        Ok(())
    }

    fn write_ram(&mut self, first: u64, data: &[u8]) -> Result<(), HostError> {
        let guest = self.built()?;
        let at = oa(guest, first, data.len())?;
        let ram = guest.machine().ram();
        if self.mapped || self.large_pages {
            Ok(ram.write_at(at, data)?)
        } else {
            Ok(ram.write_unmapped(at, data)?)
        }
    }

    fn zero_ram(&mut self, pages: Range<u64>) -> Result<(), HostError> {
        let guest = self.built()?;
        for page in pages {
            let at = oa(guest, page, 4096)?;
            guest.machine().ram().fill_at(at, 0, 4096)?;
        }
        Ok(())
    }

    fn round_done(&mut self, _round: u32) -> Result<(), HostError> {
        if !self.mapped {
            self.built()?.machine().ram().map_written()?;
            self.mapped = true;
        }
        Ok(())
    }

    fn load_device(&mut self, device: usize, data: &[u8]) -> Result<(), HostError> {
        Ok(self.built()?.machine().devices().load_chunk(device, data)?)
    }

    fn finish_device(&mut self, device: usize) -> Result<(), HostError> {
        Ok(self.built()?.machine().devices().commit_device(device)?)
    }

    fn load_machine(&mut self, state: &[u8]) -> Result<(), HostError> {
        let machine = self.built()?.machine();
        let (cpu, rest) = part(state, "vCPU")?;
        let (pci, rest) = part(rest, "PCI")?;
        if !rest.is_empty() {
            return Err(HostError::Leftover(rest.len()));
        }
        machine.load_cpu_state(cpu)?;
        Ok(machine.devices().load(pci)?)
    }

    fn zero_run(&mut self, pages: Range<u64>) -> u64 {
        self.guest.as_ref().map_or(0, |guest| holes(guest, pages))
    }

    fn read_ram(&mut self, first: u64, buf: &mut [u8]) -> Result<(), HostError> {
        let guest = self.built()?;
        let at = oa(guest, first, buf.len())?;
        Ok(guest.machine().ram().read_at(at, buf)?)
    }

    fn state_digests(&mut self, out: &mut Vec<StateDigest>) -> Result<(), HostError> {
        digest::digests(self.built()?, out)
    }

    fn run(&mut self, permits: &Permits, paused: bool) -> Result<(), HostError> {
        Ok(self.built()?.start(permits, paused)?)
    }
}

#[cfg(test)]
#[path = "switch_test.rs"]
mod tests;
