//! `drogher run`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use drogher_control::config::{Kernel, Partial, VmConfig};
use drogher_control::lease_path;
use drogher_control::process::Process;
use drogher_machine::boot;
use drogher_machine::machine::{Devices, Machine, MachineConfig};
use drogher_machine::migration::{Guest, TestHooks};
use drogher_migrate::error::chain;
use drogher_migrate::{HeldLease, Lease, VmId};

use crate::args::RunArgs;
use crate::guest;

/// `drogher run`: boots a guest and runs it until it ends or has moved away.
pub fn run(args: RunArgs) -> anyhow::Result<u8> {
    let file = match &args.config {
        Some(path) => Partial::from_file(path)?,
        None => Partial::default(),
    };
    let config = file.overridden_by(args.into_partial()).complete()?;
    // Wrong ones show now, and not when a migration begins.
    TestHooks::from_env()?;
    let stop = crate::signals::stop_flag()?;
    let kernel = KernelFiles::read(&config)?;
    let vm_id = VmId::random().context("Cannot draw a VM id")?;
    let lease_path = match &config.lease {
        Some(path) => guest::lease_path(path)?,
        None => guest::lease_path(&lease_path::of(vm_id)?)?,
    };
    let process = Process::starting();
    let _server = guest::serve(config.control.as_deref(), &process)?;
    let (console, terminal) = guest::console(&config.console, &stop)?;
    let machine = Machine::create(MachineConfig {
        memory_bytes: config.memory_bytes,
        cpus: config.cpus,
        cpu: config.cpu,
        devices: Devices::Specs(config.devices.clone()),
        plugin_dirs: guest::plugin_dirs(&config.plugin_path)?,
        console,
        ram: None,
    })?;
    kernel.load(&machine, &config.cmdline)?;
    // Last of all, so that a process that dies gives it up last: after its memory has gone.
    let lease = match &config.lease {
        Some(_) => Lease::acquire_new(&lease_path, vm_id)?,
        None => Lease::acquire_made(&lease_path, vm_id)?,
    };
    let guest = Guest::new(machine, vm_id, lease.identity().path.clone());
    let told = guest.set_wishes(&config.tracking);
    if let Err(error) = told.and_then(|()| guest.start(&lease.permits(), false)) {
        // What has started of it is stopped, as far as it can be.
        let _ = guest.end();
        give_up(lease);
        return Err(error.into());
    }
    process.adopt(Arc::clone(&guest), lease);
    Ok(guest::supervise(&process, &stop, terminal))
}

/// Nothing ran under this lease: it is left as after a guest that has ended.
fn give_up(lease: HeldLease) {
    let remove = lease.record().made;
    if let Err(error) = lease.finish(remove) {
        tracing::warn!("{}", chain(&error));
    }
}

/// What to boot, in memory.
struct KernelFiles {
    name: PathBuf,
    image: Option<Vec<u8>>,
    initrd: Option<Vec<u8>>,
}

impl KernelFiles {
    fn read(config: &VmConfig) -> anyhow::Result<Self> {
        let (name, image) = match &config.kernel {
            Kernel::Probe => (Path::new("probe"), None),
            Kernel::File(path) => (path.as_path(), Some(boot::read_kernel(path)?)),
        };
        let read = |path: &PathBuf| boot::read_file("initrd", path, config.memory_bytes);
        let initrd = config.initrd.as_ref().map(read).transpose()?;
        Ok(Self { name: name.to_owned(), image, initrd })
    }

    fn load(&self, machine: &Machine, cmdline: &str) -> anyhow::Result<()> {
        // The probe counts time in TSC ticks, and not every CPU says how long one is.
        let khz = machine.model().tsc_khz();
        let probe_line = if self.image.is_none() && khz != 0 && !cmdline.contains("tsc_khz=") {
            format!("{cmdline} tsc_khz={khz}")
        } else {
            cmdline.to_owned()
        };
        machine.load_kernel(&boot::Kernel {
            name: &self.name.display().to_string(),
            image: self.image.as_deref().unwrap_or(drogher_probe::ELF),
            cmdline: probe_line.trim(),
            initrd: self.initrd.as_deref(),
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_did_not_start_leaves_no_lease_that_nobody_named() {
        let folder = tempfile::tempdir().unwrap();
        let (made, named) = (folder.path().join("made"), folder.path().join("named"));
        give_up(Lease::acquire_made(&made, VmId([1; 16])).unwrap());
        assert!(!made.exists());
        give_up(Lease::acquire_new(&named, VmId([1; 16])).unwrap());
        let record = Lease::open(&named).unwrap().peek().unwrap();
        assert_eq!(record.state, drogher_migrate::LeaseState::Ended);
    }
}
