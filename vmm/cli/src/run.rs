//! `drogher run`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use drogher_control::config::{Kernel, Partial, VmConfig};
use drogher_control::lease_path;
use drogher_control::process::Process;
use drogher_machine::boot;
use drogher_machine::machine::{Devices, Machine, MachineConfig};
use drogher_machine::migration::Guest;
use drogher_migrate::{Lease, VmId};

use crate::args::RunArgs;
use crate::guest;

/// `drogher run`: boots a guest and runs it until it ends or has moved away.
pub fn run(args: RunArgs) -> anyhow::Result<u8> {
    let file = match &args.config {
        Some(path) => Partial::from_file(path)?,
        None => Partial::default(),
    };
    let config = file.overridden_by(args.into_partial()).complete()?;
    let stop = crate::signals::stop_flag()?;
    let kernel = KernelFiles::read(&config)?;
    let vm_id = VmId::random().context("Cannot draw a VM id")?;
    let lease_path = match &config.lease {
        Some(path) => std::path::absolute(path)?,
        None => lease_path::of(vm_id)?,
    };
    let process = Process::new();
    let _server = guest::serve(config.control.as_deref(), &process)?;
    let machine = Machine::create(MachineConfig {
        memory_bytes: config.memory_bytes,
        cpus: config.cpus,
        devices: Devices::Specs(config.devices.clone()),
        plugin_dirs: guest::plugin_dirs(&config.plugin_path)?,
        console: guest::console(&config.console),
        ram: None,
    })?;
    kernel.load(&machine, &config.cmdline)?;
    // Last of all, so that a process that dies gives it up last: after its memory has gone.
    let lease = Lease::acquire_new(&lease_path, vm_id)?;
    let guest = Guest::new(machine, vm_id, lease.identity().path.clone());
    guest.start(&lease.permits(), false)?;
    process.adopt(Arc::clone(&guest), lease);
    Ok(guest::supervise(&process, &stop))
}

/// What to boot, in memory.
struct KernelFiles {
    name: PathBuf,
    elf: Option<Vec<u8>>,
    initrd: Option<Vec<u8>>,
}

impl KernelFiles {
    fn read(config: &VmConfig) -> anyhow::Result<Self> {
        let (name, elf) = match &config.kernel {
            Kernel::Probe => (Path::new("probe"), None),
            Kernel::File(path) => (path.as_path(), Some(boot::read_kernel(path)?)),
        };
        let read = |path: &PathBuf| {
            std::fs::read(path)
                .with_context(|| format!("Cannot read the initrd {}", path.display()))
        };
        let initrd = config.initrd.as_ref().map(read).transpose()?;
        Ok(Self { name: name.to_owned(), elf, initrd })
    }

    fn load(&self, machine: &Machine, cmdline: &str) -> anyhow::Result<()> {
        // The probe counts time in TSC ticks, and not every CPU says how long one is.
        let khz = machine.model().tsc_khz();
        let probe_line = if self.elf.is_none() && khz != 0 && !cmdline.contains("tsc_khz=") {
            format!("{cmdline} tsc_khz={khz}")
        } else {
            cmdline.to_owned()
        };
        machine.load_kernel(&boot::Kernel {
            name: &self.name.display().to_string(),
            elf: self.elf.as_deref().unwrap_or(drogher_probe::ELF),
            cmdline: probe_line.trim(),
            initrd: self.initrd.as_deref(),
        })?;
        Ok(())
    }
}
