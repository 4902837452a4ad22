//! The KVM VM: interrupt controllers, memory slots, routes, and the buses that hang on it.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_PMU_CAPABILITY,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_MEM_LOG_DIRTY_PAGES, KVM_PIT_SPEAKER_DUMMY,
    KVM_PMU_CAP_DISABLE, kvm_enable_cap, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::Bus;
use crate::caps::Caps;
use crate::events::EventQueue;
use crate::io_thread::IoHandle;
use crate::ioctls;
use crate::layout::{IDENTITY_MAP, TSS};
use crate::memory::{GuestRam, MemoryError, RamRange};
use crate::routing::Routes;
use crate::wiring::{DoorbellAt, MsiLine, MsiMessage, Wiring, WiringError};

/// The device node.
const DEV_KVM: &str = "/dev/kvm";
/// The only version of KVM's API that there has been since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// Why there is no VM.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The device node cannot be opened.
    #[error("Cannot open {DEV_KVM} ({hint})")]
    NoKvm {
        /// The way out.
        hint: &'static str,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// KVM speaks another API.
    #[error("KVM has API version {0}, not {API_VERSION}: this kernel is too old")]
    ApiVersion(i32),
    /// Something else is in its place.
    #[error(
        "/dev/kvm is there, but is not KVM: remove it, and load the module kvm_intel or kvm_amd"
    )]
    NotKvm,
    /// KVM lacks something that is needed.
    #[error("KVM on this host has no {0}, which a machine needs: use a newer kernel")]
    MissingCapability(&'static str),
    /// KVM refused a step.
    #[error("KVM refused to {what}")]
    Refused {
        /// The step.
        what: String,
        /// KVM's answer.
        #[source]
        source: std::io::Error,
    },
    /// Guest RAM is not as it must be.
    #[error("Guest RAM cannot be used")]
    Memory(#[from] MemoryError),
}

/// Turns KVM's answer into an error that says what was asked.
pub(crate) fn refused(what: impl Into<String>) -> impl FnOnce(kvm_ioctls::Error) -> VmError {
    let what = what.into();
    move |e| VmError::Refused { what, source: std::io::Error::from_raw_os_error(e.errno()) }
}

/// Opens KVM; the error says what to do when there is none.
///
/// # Errors
/// `NoKvm`, `NotKvm`, `ApiVersion`.
pub fn open_kvm() -> Result<Kvm, VmError> {
    let kvm = Kvm::new().map_err(|e| VmError::NoKvm {
        hint: match e.errno() {
            libc::EACCES | libc::EPERM => {
                "Its owner lets nobody else use it: add yourself to the group \"kvm\" and log in again"
            }
            libc::ENOENT | libc::ENXIO | libc::ENODEV => {
                "Load the module kvm_intel or kvm_amd, and switch virtualisation on in the \
                 firmware (or nested virtualisation in the host, if this is a guest)"
            }
            _ => "Check that the kvm modules are loaded and healthy",
        },
        source: std::io::Error::from_raw_os_error(e.errno()),
    })?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        // The request is unknown to it.
        ..0 => Err(VmError::NotKvm),
        other => Err(VmError::ApiVersion(other)),
    }
}

/// One memory slot of KVM: one range of RAM.
#[derive(Debug, Clone, Copy)]
pub struct Slot {
    /// KVM's number.
    pub id: u32,
    /// The range it maps.
    pub range: RamRange,
}

/// A VM without vCPUs. Shared by reference count by everything that belongs to it; the KVM
/// descriptors go before the RAM that they map.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    kvm: Kvm,
    caps: Caps,
    routes: Mutex<Routes>,
    bus: Bus,
    events: EventQueue,
    io: IoHandle,
    slots: Vec<Slot>,
    ram: Arc<GuestRam>,
}

impl Vm {
    /// Makes the VM with its interrupt controllers and the slots for `ram`. `limit` may take
    /// capabilities away, so that the machine does without them.
    ///
    /// # Errors
    /// No KVM, a capability missing, or a step refused.
    pub fn new(
        ram: Arc<GuestRam>,
        io: IoHandle,
        limit: impl FnOnce(&mut Caps),
    ) -> Result<Self, VmError> {
        let kvm = open_kvm()?;
        let fd = kvm.create_vm().map_err(refused("create a VM"))?;
        let mut caps = Caps::query(&kvm, &fd)?;
        limit(&mut caps);
        enable_caps(&fd, &caps)?;
        if fd.check_extension(Cap::SetIdentityMapAddr) {
            fd.set_identity_map_address(IDENTITY_MAP)
                .map_err(refused(format!("place the identity map at {IDENTITY_MAP:#x}")))?;
        }
        if fd.check_extension(Cap::SetTssAddr) {
            let at = usize::try_from(TSS).unwrap_or(0);
            fd.set_tss_address(at).map_err(refused(format!("place the TSS at {TSS:#x}")))?;
        }
        fd.create_irq_chip().map_err(refused("create the interrupt controllers"))?;
        fd.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })
            .map_err(refused("create the interval timer"))?;
        let slots = (0u32..).zip(ram.ranges()).map(|(id, &range)| Slot { id, range }).collect();
        let vm = Self {
            routes: Mutex::new(Routes::new(caps.max_routes)),
            events: EventQueue::new()
                .map_err(|source| VmError::Refused { what: "make an eventfd".into(), source })?,
            bus: Bus::default(),
            fd,
            kvm,
            caps,
            io,
            slots,
            ram,
        };
        for slot in &vm.slots {
            vm.set_slot(slot, false)?;
        }
        vm.update_routes(&vm.lock_routes()).map_err(|source| VmError::Refused {
            what: "set the interrupt routes".into(),
            source,
        })?;
        Ok(vm)
    }

    /// Registers a slot with or without KVM's dirty log.
    pub(crate) fn set_slot(&self, slot: &Slot, log: bool) -> Result<(), VmError> {
        let hva = self.ram.hva(slot.range.oa, slot.range.len)?;
        let region = kvm_userspace_memory_region {
            slot: slot.id,
            flags: if log { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: slot.range.gpa.0,
            memory_size: slot.range.len,
            userspace_addr: hva as u64,
        };
        set_region(&self.fd, region).map_err(refused(format!(
            "map {} bytes of RAM at {:#x} (dirty log {})",
            slot.range.len,
            slot.range.gpa.0,
            if log { "on" } else { "off" },
        )))
    }

    /// KVM's descriptor of the VM.
    #[must_use]
    pub fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// KVM itself.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// What this KVM can do.
    #[must_use]
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// Ports and MMIO.
    #[must_use]
    pub fn bus(&self) -> &Bus {
        &self.bus
    }

    /// What the guest did that concerns its owner.
    #[must_use]
    pub fn events(&self) -> &EventQueue {
        &self.events
    }

    /// The memory slots.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    fn lock_routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update_routes(&self, routes: &Routes) -> std::io::Result<()> {
        let table = routes.table().map_err(|e| std::io::Error::other(format!("{e:?}")))?;
        self.fd.set_gsi_routing(&table).map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
    }
}

fn enable_caps(fd: &VmFd, caps: &Caps) -> Result<(), VmError> {
    let enable = |cap: u32, name: &str, arg: u64| {
        fd.enable_cap(&kvm_enable_cap { cap, args: [arg, 0, 0, 0], ..Default::default() })
            .map_err(refused(format!("enable {name} with {arg:#x}")))
    };
    // Before the slots: a slot's log starts in the mode that is on when it is switched on.
    if caps.manual_dirty_log != 0 {
        enable(
            KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
            "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
            caps.manual_dirty_log,
        )?;
    }
    if caps.pmu_off {
        // What they have counted cannot be moved. The CPU model does not offer them either, but
        // some are there without being offered.
        enable(KVM_CAP_PMU_CAPABILITY, "KVM_CAP_PMU_CAPABILITY", KVM_PMU_CAP_DISABLE.into())?;
    }
    if caps.exception_payload {
        enable(KVM_CAP_EXCEPTION_PAYLOAD, "KVM_CAP_EXCEPTION_PAYLOAD", 1)?;
    }
    if caps.triple_fault_event {
        enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT, "KVM_CAP_X86_TRIPLE_FAULT_EVENT", 1)?;
    }
    Ok(())
}

#[expect(unsafe_code, reason = "KVM maps process memory into the guest")]
fn set_region(fd: &VmFd, region: kvm_userspace_memory_region) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: the region is one range of `GuestRam`'s mapping, checked by `hva`; `Vm` and each vCPU
    // keep the `GuestRam` alive for longer than KVM's descriptors, and ranges do not overlap.
    unsafe { fd.set_user_memory_region(region) }
}

fn wiring(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> WiringError {
    let what = what.into();
    move |source| WiringError::Kvm { what, source }
}

impl Wiring for Vm {
    fn register_ioeventfd(&self, at: DoorbellAt, fd: &EventFd) -> Result<(), WiringError> {
        ioctls::ioeventfd(&self.fd, at.address, at.width, fd, true)
            .map_err(wiring(format!("bind a doorbell of {} bytes at {:#x}", at.width, at.address)))
    }

    fn unregister_ioeventfd(&self, at: DoorbellAt, fd: &EventFd) -> Result<(), WiringError> {
        ioctls::ioeventfd(&self.fd, at.address, at.width, fd, false).map_err(wiring(format!(
            "unbind the doorbell of {} bytes at {:#x}",
            at.width, at.address
        )))
    }

    fn new_msi_vector(&self) -> Result<MsiLine, WiringError> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(wiring("make an eventfd for an interrupt"))?;
        let mut routes = self.lock_routes();
        let gsi = routes.take().ok_or(WiringError::NoGsi(routes.most()))?;
        Ok(MsiLine { gsi, fd })
    }

    fn set_msi_routes(&self, wanted: &[(u32, Option<MsiMessage>)]) -> Result<(), WiringError> {
        let mut routes = self.lock_routes();
        if let Some(&(gsi, _)) = wanted.iter().find(|&&(gsi, _)| !routes.knows(gsi)) {
            return Err(WiringError::UnknownGsi(gsi));
        }
        let mut changed = false;
        for &(gsi, message) in wanted {
            changed |= routes.set(gsi, message) != Some(message);
        }
        // An update makes KVM wait for all its readers: not for nothing.
        if changed {
            self.update_routes(&routes)
                .map_err(wiring(format!("route {} interrupts", wanted.len())))?;
        }
        Ok(())
    }

    fn attach_msi(&self, line: &MsiLine) -> Result<(), WiringError> {
        self.fd
            .register_irqfd(&line.fd, line.gsi)
            .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
            .map_err(wiring(format!("bind an eventfd to GSI {}", line.gsi)))?;
        // KVM has taken notice of what was counted, but not taken it out.
        let _ = line.fd.read();
        Ok(())
    }

    fn detach_msi(&self, line: &MsiLine) -> Result<(), WiringError> {
        self.fd
            .unregister_irqfd(&line.fd, line.gsi)
            .map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
            .map_err(wiring(format!("unbind the eventfd of GSI {}", line.gsi)))
    }

    fn remove_msi_vector(&self, line: MsiLine) -> Result<(), WiringError> {
        let mut routes = self.lock_routes();
        if !routes.free(line.gsi) {
            return Err(WiringError::UnknownGsi(line.gsi));
        }
        self.update_routes(&routes).map_err(wiring(format!("remove GSI {}", line.gsi)))
    }

    fn claim_mmio(
        &self,
        range: Range<u64>,
        device: Arc<dyn DeviceMmio + Send + Sync>,
    ) -> Result<(), WiringError> {
        self.bus.claim_mmio(range, device)
    }

    fn move_mmio(&self, from: u64, to: u64) -> Result<(), WiringError> {
        self.bus.move_mmio(from, to)
    }

    fn release_mmio(&self, base: u64) -> Result<(), WiringError> {
        self.bus.release_mmio(base)
    }

    fn claim_pio(
        &self,
        range: Range<u16>,
        device: Arc<dyn DevicePio + Send + Sync>,
    ) -> Result<(), WiringError> {
        self.bus.claim_pio(range, device)
    }

    fn io(&self) -> &IoHandle {
        &self.io
    }

    fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }
}
