//! The composition: RAM, VM, vCPUs, console, devices, I/O thread, and what can be done with them.
//!
//! [`Machine::create`] allocates everything and starts nothing. A machine is then either booted
//! ([`load_kernel`](Machine::load_kernel)) or loaded ([`load_cpu_state`](Machine::load_cpu_state)
//! and the devices' own functions), and started with one permit for each vCPU.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use drogher_iommu::{Domain, Memory};
use drogher_iommu_types::{DirtyBitmap, Gpa, Patience};
use drogher_migrate::DeviceConfig;

use crate::boot::{self, BootError, Kernel};
use crate::caps::Caps;
use crate::console::{ConsoleConfig, ConsoleError, Output};
use crate::device::{DeviceError, DeviceSet, DeviceSpec};
use crate::dirty_log::DirtyLog;
use crate::events::GuestEvent;
use crate::io_thread::{IoError, IoThread};
use crate::memory::{GuestRam, MemoryError};
use crate::platform::Platform;
use crate::record::{Reader, StateError, Tag, Writer};
use crate::tracking::{RamMap, Spaces, SpacesError};
use crate::vcpu::control::Phase;
use crate::vcpu::cpuid::{CpuKind, CpuModel, ModelError};
use crate::vcpu::{Vcpu, VcpuError, setup, state};
use crate::vm::{Vm, VmError, refused};
use crate::wiring::Wiring;
use crate::{clock, irqchip};
use zerocopy::IntoBytes;

/// Most vCPUs of a machine.
pub const MAX_CPUS: u8 = 8;
/// How long a vCPU is waited for that should have stopped before: longer than a plugin may take for an access.
const LATE_STOP: Duration = Duration::from_secs(5);
/// How long the console's backlog may take when the machine goes.
const FLUSH: Duration = Duration::from_secs(1);
/// Bytes reserved for the saved state of each vCPU, and of the rest: more than any host's extended state
/// needs.
const STATE_BYTES: usize = 16 << 10;

/// Which devices a machine has.
#[derive(Debug)]
pub enum Devices {
    /// What the user has written.
    Specs(Vec<DeviceSpec>),
    /// What the source of a migration has described.
    Arriving(Vec<DeviceConfig>),
}

impl Default for Devices {
    fn default() -> Self {
        Self::Specs(Vec::new())
    }
}

/// What a machine is made of.
#[derive(Debug)]
pub struct MachineConfig {
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub memory_bytes: u64,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Which CPU the guest sees.
    pub cpu: CpuKind,
    /// Devices, in slot order.
    pub devices: Devices,
    /// Where plugins given by name are looked up.
    pub plugin_dirs: Vec<PathBuf>,
    /// What the serial console is connected to.
    pub console: ConsoleConfig,
    /// RAM that exists already (shared with another machine), of `memory_bytes`.
    pub ram: Option<Arc<GuestRam>>,
}

impl MachineConfig {
    /// A machine without devices and console.
    #[must_use]
    pub fn new(memory_bytes: u64, cpus: u8) -> Self {
        Self {
            memory_bytes,
            cpus,
            cpu: CpuKind::default(),
            devices: Devices::default(),
            plugin_dirs: Vec::new(),
            console: ConsoleConfig::None,
            ram: None,
        }
    }
}

/// Why a machine cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A number of vCPUs that there cannot be.
    #[error("A machine on this host has 1 to {most} vCPUs, not {asked}")]
    Cpus {
        /// Asked for.
        asked: u8,
        /// Possible on this host.
        most: usize,
    },
    /// RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// RAM that the CPU model has no addresses for.
    #[error(
        "Guest RAM of {} GiB ends beyond the {bits} bits of address of the CPU model {model}; use less, or --cpu host",
        bytes >> 30
    )]
    AddressBits {
        /// RAM in bytes.
        bytes: u64,
        /// Bits of a physical address.
        bits: u32,
        /// The model.
        model: CpuKind,
    },
    /// KVM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The CPU model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The I/O thread.
    #[error(transparent)]
    Io(#[from] IoError),
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The serial device's interrupt or ports.
    #[error("Cannot set up the {what}")]
    Platform {
        /// Which device.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The devices' address space.
    #[error(transparent)]
    Spaces(#[from] SpacesError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The kernel.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Not one permit for each vCPU.
    #[error("{given} permits for {cpus} vCPUs")]
    Permits {
        /// Permits given.
        given: usize,
        /// vCPUs.
        cpus: usize,
    },
}

/// A machine. Its functions may be called from any thread, one at a time for those that start,
/// stop, save or load. Dropping it ends all its threads.
// Fields drop in this order: vCPUs before what they access, devices before the VM.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    io: IoThread,
    devices: DeviceSet,
    spaces: Spaces,
    platform: Platform,
    model: CpuModel,
    vm: Arc<Vm>,
    ram: Arc<GuestRam>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("ram_bytes", &self.ram.bytes())
            .field("vcpus", &self.vcpus)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Makes everything that a machine needs. Nothing runs: vCPUs and I/O thread are parked,
    /// devices in STOP. RAM is not populated; see [`GuestRam::populate`].
    ///
    /// # Errors
    /// What cannot be had, by name.
    pub fn create(config: MachineConfig) -> Result<Self, MachineError> {
        Self::create_limited(config, |_| {})
    }

    /// As [`create`](Self::create), on a KVM that has less: `limit` takes capabilities away. So
    /// that the other way of doing something can be tested where it is not needed.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn create_limited(
        mut config: MachineConfig,
        limit: fn(&mut Caps),
    ) -> Result<Self, MachineError> {
        let (devices, dirs) =
            (std::mem::take(&mut config.devices), std::mem::take(&mut config.plugin_dirs));
        Self::assemble(config, limit, |spaces, wiring| match &devices {
            Devices::Specs(specs) => DeviceSet::new(specs, &dirs, spaces, wiring),
            Devices::Arriving(configs) => DeviceSet::for_configs(configs, &dirs, spaces, wiring),
        })
    }

    /// As [`create_limited`](Self::create_limited), with devices that `make` makes.
    pub(crate) fn assemble(
        config: MachineConfig,
        limit: fn(&mut Caps),
        make: impl FnOnce(&Spaces, &Arc<dyn Wiring>) -> Result<DeviceSet, DeviceError>,
    ) -> Result<Self, MachineError> {
        let (cpus, most) = (config.cpus, usize::from(MAX_CPUS));
        if cpus == 0 || usize::from(cpus) > most {
            return Err(MachineError::Cpus { asked: cpus, most });
        }
        let ram = match config.ram {
            Some(ram) if ram.bytes() == config.memory_bytes => ram,
            Some(ram) => {
                Err(MemoryError::FileSize { expected: config.memory_bytes, found: ram.bytes() })?
            }
            None => Arc::new(GuestRam::new(config.memory_bytes)?),
        };
        let io = IoThread::start()?;
        let vm = Arc::new(Vm::new(Arc::clone(&ram), io.handle().clone(), limit)?);
        if usize::from(cpus) > vm.caps().max_vcpus {
            return Err(MachineError::Cpus { asked: cpus, most: vm.caps().max_vcpus });
        }
        let platform = Platform::new(&vm, config.console)?;
        let spaces = spaces(&ram)?;
        let wiring: Arc<dyn Wiring> = Arc::clone(&vm) as _;
        let devices = make(&spaces, &wiring)?;
        let (model, vcpus) = processors(&vm, cpus, config.cpu)?;
        check_reach(ram.end_page(), ram.bytes(), model.address_bits(), model.kind())?;
        Ok(Self { vcpus, io, devices, spaces, platform, model, vm, ram })
    }

    /// Guest RAM.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The KVM VM; also the machine's [`Wiring`].
    #[must_use]
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// The devices.
    #[must_use]
    pub fn devices(&self) -> &DeviceSet {
        &self.devices
    }

    /// The address spaces that devices do DMA in.
    #[must_use]
    pub fn spaces(&self) -> &Spaces {
        &self.spaces
    }

    /// The second stage of the devices that name no address space.
    #[must_use]
    pub fn domain(&self) -> &Domain {
        self.spaces.main().domain()
    }

    /// The CPU that the guest sees.
    #[must_use]
    pub fn model(&self) -> &CpuModel {
        &self.model
    }

    /// vCPU number `id`.
    #[cfg(test)]
    pub(crate) fn vcpu(&self, id: usize) -> &Vcpu {
        self.vcpus.get(id).expect("a vCPU")
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn cpus(&self) -> u8 {
        u8::try_from(self.vcpus.len()).unwrap_or(MAX_CPUS)
    }

    /// Where the console's output goes.
    #[must_use]
    pub fn console(&self) -> &Output {
        self.platform.console()
    }

    /// A dirty log for this machine's vCPUs, off, with its buffers. Make it before a migration
    /// begins, and one at a time.
    #[must_use]
    pub fn dirty_log(&self) -> DirtyLog {
        DirtyLog::new(&self.vm)
    }

    /// A clean bitmap over all GPAs of RAM, the hole included.
    #[must_use]
    pub fn ram_bitmap(&self) -> Option<DirtyBitmap> {
        DirtyBitmap::new(Gpa(0)..Gpa::from_page(self.ram.end_page())?).ok()
    }

    /// Puts a kernel into fresh RAM and the first vCPU at its entry.
    ///
    /// # Errors
    /// The kernel cannot be started, or vCPU 0 is not parked.
    pub fn load_kernel(&self, kernel: &Kernel<'_>) -> Result<(), MachineError> {
        let entry = boot::load(&self.ram, kernel, self.cpus())?;
        if let Some(first) = self.vcpus.first() {
            setup::enter(&first.inner()?.fd, &entry)?;
        }
        Ok(())
    }

    /// Starts the vCPUs, each holding its permit until it has stopped. I/O thread and devices are
    /// started apart, before: [`unpark_io`](Self::unpark_io), [`devices`](Self::devices).
    ///
    /// # Errors
    /// Not as many permits as vCPUs, or a vCPU is not parked; those before it then run.
    pub fn start<P: Send + 'static>(&self, permits: Vec<P>) -> Result<(), MachineError> {
        let (given, cpus) = (permits.len(), self.vcpus.len());
        if given != cpus {
            return Err(MachineError::Permits { given, cpus });
        }
        for (vcpu, permit) in self.vcpus.iter().zip(permits) {
            let permit: Box<dyn Any + Send> = Box::new(permit);
            vcpu.start(permit)?;
        }
        Ok(())
    }

    /// Stops all vCPUs: out of the guest, port and MMIO accesses completed, permits given back.
    /// Those that have stopped by themselves are no error.
    ///
    /// # Errors
    /// One still runs after `deadline`: a device's register access hangs. It stops when that ends.
    pub fn pause_vcpus(&self, deadline: Duration) -> Result<(), MachineError> {
        self.vcpus.iter().for_each(Vcpu::kick);
        self.wait_parked(deadline)
    }

    fn wait_parked(&self, deadline: Duration) -> Result<(), MachineError> {
        let mut patience = Patience::new(deadline);
        Ok(self.vcpus.iter().try_for_each(|vcpu| vcpu.wait_parked(&mut patience))?)
    }

    /// Starts the vCPUs again after [`pause_vcpus`](Self::pause_vcpus), with new permits. One that has
    /// not stopped in time then is on its way, and is waited for.
    ///
    /// # Errors
    /// As [`start`](Self::start); or a vCPU has still not stopped.
    pub fn resume<P: Send + 'static>(&self, permits: Vec<P>) -> Result<(), MachineError> {
        if self.stop_requested() {
            self.wait_parked(LATE_STOP)?;
        }
        self.start(permits)
    }

    /// True if no vCPU runs.
    #[must_use]
    pub fn is_parked(&self) -> bool {
        self.vcpus.iter().all(|vcpu| vcpu.phase() != Phase::Running)
    }

    /// True if a stop was asked for and the vCPUs have not been started since.
    #[must_use]
    pub fn stop_requested(&self) -> bool {
        self.vcpus.iter().any(Vcpu::stopping)
    }

    /// Parks what runs beside vCPUs and devices: the I/O thread (no doorbell, no console input is
    /// handled from its return on), the interval timer, the console's irqfd. vCPUs are parked.
    ///
    /// # Errors
    /// A handler still runs after `deadline`, or KVM refuses.
    pub fn park_io(&self, deadline: Duration) -> Result<(), MachineError> {
        self.io.handle().park(deadline)?;
        Ok(self.platform.hold()?)
    }

    /// Lets all that [`park_io`](Self::park_io) parks go on.
    ///
    /// # Errors
    /// KVM refuses.
    pub fn unpark_io(&self) -> Result<(), MachineError> {
        self.platform.release()?;
        self.io.handle().unpark();
        Ok(())
    }

    /// An empty buffer for [`save_cpu_state`](Self::save_cpu_state), large enough that saving
    /// does not allocate for it.
    #[must_use]
    pub fn state_buffer(&self) -> Vec<u8> {
        Vec::with_capacity(STATE_BYTES * (self.vcpus.len() + 1))
    }

    /// Saves vCPUs, interrupt controllers, clock and platform devices into `out` (emptied
    /// before). vCPUs must be parked, devices in STOP, the I/O thread parked, irqfds off.
    ///
    /// # Errors
    /// A vCPU is not parked, or KVM refuses.
    pub fn save_cpu_state(&self, out: &mut Vec<u8>) -> Result<(), StateError> {
        let caps = self.vm.caps();
        let mut writer = Writer::new(out, u16::from(self.cpus()));
        for vcpu in &self.vcpus {
            let mut inner = vcpu.inner()?;
            state::save(&mut inner, caps, vcpu.id().into(), &mut writer)?;
        }
        irqchip::save(self.vm.fd(), &mut writer)?;
        writer.put(Tag::Clock, 0, clock::save(self.vm.fd())?.as_bytes());
        self.platform.save(&mut writer)
    }

    /// Loads what [`save_cpu_state`](Self::save_cpu_state) saved, on a machine that has never run
    /// or is parked. Irqfds must be off. All of it is checked for form before any is taken.
    ///
    /// # Errors
    /// What is wrong with the state, or what KVM refuses; the machine must then not be started.
    pub fn load_cpu_state(&self, bytes: &[u8]) -> Result<(), StateError> {
        let caps = self.vm.caps();
        let reader = Reader::new(bytes, self.cpus().into())?;
        let chips = irqchip::Saved::parse(&reader)?;
        let platform = self.platform.parse(&reader)?;
        let clock = reader.get(Tag::Clock, 0)?;
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for vcpu in &self.vcpus {
            let inner = vcpu.inner()?;
            let saved = state::Saved::parse(&inner, caps, vcpu.id().into(), &reader)?;
            vcpus.push((inner, saved));
        }
        chips.load(self.vm.fd())?;
        let time = clock::load(self.vm.fd(), caps, &clock)?;
        for (inner, saved) in &mut vcpus {
            saved.load(inner, &time)?;
        }
        self.platform.load(&platform)
    }

    /// Presses the guest's power button. What it does then is the guest's affair.
    ///
    /// # Errors
    /// The machine is held still, or the kernel refuses.
    pub fn press_power_button(&self) -> Result<(), MachineError> {
        self.platform.press_power_button().map_err(|source| MachineError::Platform {
            what: "power button",
            source: Box::new(source),
        })
    }

    /// The oldest thing that the guest did that concerns its owner, waiting at most `timeout`.
    /// The vCPU that did it has stopped; the others run on until they are stopped.
    pub fn wait_event(&self, timeout: Duration) -> Option<GuestEvent> {
        self.vm.events().wait(timeout)
    }

    /// Stops vCPUs and I/O thread for good and writes out the console.
    ///
    /// # Errors
    /// A vCPU or a handler still runs after `deadline`.
    pub fn stop(&self, deadline: Duration) -> Result<(), MachineError> {
        let paused = self.pause_vcpus(deadline);
        let parked = self.park_io(deadline);
        self.console().flush(FLUSH);
        paused.and(parked)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.console().flush(FLUSH);
    }
}

/// Refuses RAM that the guest could not address.
fn check_reach(end_page: u64, bytes: u64, bits: u32, model: CpuKind) -> Result<(), MachineError> {
    let pages = 1_u64.checked_shl(bits.saturating_sub(12)).unwrap_or(u64::MAX);
    if end_page > pages {
        return Err(MachineError::AddressBits { bytes, bits, model });
    }
    Ok(())
}

/// Address spaces in which all of RAM can be mapped.
fn spaces(ram: &Arc<GuestRam>) -> Result<Spaces, SpacesError> {
    let map = ram
        .ranges()
        .iter()
        .map(|range| RamMap { gpa: range.gpa..Gpa(range.gpa.0 + range.len), oa: range.oa });
    Spaces::new(Arc::clone(ram) as Arc<dyn Memory>, map.collect())
}

/// The vCPUs and the model that they share. Its frequency is asked of the first one: it belongs to
/// vCPUs, not to KVM.
fn processors(
    vm: &Arc<Vm>,
    cpus: u8,
    kind: CpuKind,
) -> Result<(CpuModel, Vec<Vcpu>), MachineError> {
    let fds = (0..cpus).map(|id| {
        let fd = vm.fd().create_vcpu(id.into()).map_err(refused(format!("create vCPU {id}")))?;
        Ok((id, fd))
    });
    let fds: Vec<_> = fds.collect::<Result<_, VmError>>()?;
    let khz = fds.first().and_then(|(_, fd)| fd.get_tsc_khz().ok()).unwrap_or(0);
    let model = CpuModel::new(vm.kvm(), vm.caps(), kind, khz)?;
    let vcpus = fds.into_iter().map(|(id, fd)| Vcpu::new(vm, fd, id, &model, cpus));
    let vcpus = vcpus.collect::<Result<_, _>>()?;
    Ok((model, vcpus))
}

#[cfg(test)]
#[path = "machine_test.rs"]
mod tests;
