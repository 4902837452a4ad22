//! The engine's hands on a guest that arrives.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use drogher_iommu_types::Gpa;

use drogher_migrate::{
    Blocker, BlockerCode, ConfigBlock, DestinationHost, Extent, Permits, StateDigest,
};

use super::describe::{self, Expectations};
use super::digest;
use super::error::HostError;
use super::guest::Guest;
use super::offer::Trial;
use super::source::{Extents, oa};
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
    trial: Trial,
    guest: Option<Arc<Guest>>,
    /// What has come is mapped once, after the bulk pass: until then a page that is written is
    /// written to the memory file, which costs no page fault, unless faults are what brings large
    /// pages. What has not come stays a hole.
    mapped: bool,
    extents: Extents,
    large_pages: bool,
    /// From when on RAM is not this thread's alone.
    running: bool,
}

impl DestinationGuest {
    /// Nothing has arrived yet. What this host can offer is looked for from now on: the longer before
    /// [`receive`](super::receive), the less a source waits for it.
    #[must_use]
    pub fn new(setup: DestinationSetup) -> Self {
        let large_pages = GuestRam::faults_in_large_pages();
        Self {
            setup: Some(setup),
            trial: Trial::begin(),
            guest: None,
            mapped: false,
            extents: Extents::default(),
            large_pages,
            running: false,
        }
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
        let offer = self.trial.take();
        describe::blockers(config, &setup.expected, &setup.plugin_dirs, offer)
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

    #[expect(unsafe_code, reason = "contents are received right into guest RAM")]
    fn ram_mut(&mut self, pages: Range<u64>) -> Option<&mut [u8]> {
        if self.running || !(self.mapped || self.large_pages) {
            return None;
        }
        let bytes = (pages.end - pages.start) << 12;
        let ram = self.guest.as_ref()?.machine().ram();
        let at = ram.oa(Gpa(pages.start << 12), bytes)?;
        // SAFETY: vCPUs are parked and devices are not running, which closes the gates to their DMA, until
        // `run` sets `running`; and the slice borrows `self`, through which all else here goes.
        unsafe { ram.quiet_mut(at, bytes) }.ok()
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

    fn extent(&mut self, pages: Range<u64>) -> Extent {
        let all = pages.end - pages.start;
        let Some(guest) = &self.guest else { return Extent::Data(all) };
        self.extents.of(guest.machine().ram(), pages)
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
        self.running = true;
        Ok(self.built()?.start(permits, paused)?)
    }
}

#[cfg(test)]
#[path = "switch_test.rs"]
mod tests;
