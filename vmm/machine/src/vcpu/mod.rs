//! vCPUs: a thread each, created parked, started with a permit, stopped within a bounded time.

pub mod baseline;
pub mod control;
pub mod cpuid;
mod kick;
pub mod msrs;
mod report;
pub mod setup;
pub mod state;
mod thread;
pub mod tsc;

use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::thread::JoinHandle;

use drogher_iommu_types::Patience;
use kvm_bindings::Xsave;
use kvm_ioctls::VcpuFd;

use crate::ioctls;
use crate::vm::{Vm, VmError, refused};
use control::{Control, Permit, Phase};
use kick::RunPage;
use msrs::MsrList;

/// Why a vCPU cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    /// It could not be made.
    #[error("Cannot make vCPU {id}")]
    Create {
        /// Its number.
        id: u8,
        /// Why.
        #[source]
        source: VmError,
    },
    /// Its thread could not be started.
    #[error("Cannot start the thread of vCPU {id}")]
    Thread {
        /// Its number.
        id: u8,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not parked.
    #[error("vCPU {id} is {phase:?}, not parked")]
    NotParked {
        /// Its number.
        id: u8,
        /// Where it is.
        phase: Phase,
    },
    /// It is still running at the deadline.
    #[error("vCPU {id} has not stopped in time: a device's register access hangs")]
    NotStopped {
        /// Its number.
        id: u8,
    },
}

/// What a vCPU's thread and its owner share. The KVM descriptor goes before the VM.
#[derive(Debug)]
struct Shared {
    id: u8,
    control: Control,
    page: RunPage,
    inner: Mutex<Inner>,
    vm: Arc<Vm>,
}

/// The descriptor, with buffers made once so that saving allocates nothing.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) fd: VcpuFd,
    pub(crate) msrs: MsrList,
    /// For hosts whose extended state is larger than 4096 bytes.
    pub(crate) xsave: Option<Xsave>,
    pub(crate) tsc_offset: bool,
}

/// One vCPU. Its thread ends when this is dropped.
#[derive(Debug)]
pub struct Vcpu {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Makes vCPU `id` of `count` from its fresh descriptor, with CPUID and a thread, parked.
    ///
    /// # Errors
    /// KVM or the kernel refuses a step.
    pub(crate) fn new(
        vm: &Arc<Vm>,
        fd: VcpuFd,
        id: u8,
        model: &cpuid::CpuModel,
        count: u8,
    ) -> Result<Self, VcpuError> {
        let create = |source| VcpuError::Create { id, source };
        let io = |what: &str| {
            let what = format!("{what} of vCPU {id}");
            move |source| VcpuError::Create { id, source: VmError::Refused { what, source } }
        };
        let page = RunPage::map(&fd, vm.fd().run_size()).map_err(io("map the run page"))?;
        let table = model.for_vcpu(id, count).map_err(create)?;
        fd.set_cpuid2(&table).map_err(refused("set the CPUID table")).map_err(create)?;
        if vm.caps().mce {
            ioctls::setup_mce(&fd, msrs::MCE_BANKS).map_err(io("set up the machine checks"))?;
        }
        setup::reset_state(&fd).map_err(create)?;
        let msrs = MsrList::probe(vm.kvm(), &fd, model.kind()).map_err(create)?;
        let tsc_offset = vm.caps().vcpu_attributes && tsc::has_offset(&fd);
        let xsave = state::xsave_buffer(vm.caps().xsave2_bytes).map_err(create)?;
        kick::install().map_err(io("install the kick signal"))?;
        let shared = Arc::new(Shared {
            id,
            control: Control::default(),
            page,
            inner: Mutex::new(Inner { fd, msrs, xsave, tsc_offset }),
            vm: Arc::clone(vm),
        });
        let inner = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || thread::main(&inner))
            .map_err(|source| VcpuError::Thread { id, source })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Its number, which is its APIC id.
    #[must_use]
    pub fn id(&self) -> u8 {
        self.shared.id
    }

    /// Where its thread is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.shared.control.phase()
    }

    /// True once a stop was asked for, until the next start.
    #[must_use]
    pub fn stopping(&self) -> bool {
        self.shared.control.stopping()
    }

    /// Lets it run, holding `permit` until it has stopped.
    ///
    /// # Errors
    /// It is not parked; the permit is dropped.
    pub fn start(&self, permit: Permit) -> Result<(), VcpuError> {
        self.shared
            .control
            .start(permit, || self.shared.page.set_immediate_exit(false))
            .map_err(|(phase, _permit)| VcpuError::NotParked { id: self.id(), phase })
    }

    /// Asks it to stop and gets it out of the guest. Does not wait.
    pub fn kick(&self) {
        self.shared.control.ask_stop();
        self.shared.page.set_immediate_exit(true);
        if let Some(thread) = &self.thread {
            kick::signal(thread);
        }
    }

    /// Waits until it is parked: out of the guest, no access pending, its permit dropped.
    ///
    /// # Errors
    /// It still runs when the patience is over.
    pub fn wait_parked(&self, patience: &mut Patience) -> Result<(), VcpuError> {
        if self.shared.control.wait_parked(patience) {
            Ok(())
        } else {
            Err(VcpuError::NotStopped { id: self.id() })
        }
    }

    /// The descriptor, for saving and loading; only while parked.
    pub(crate) fn inner(&self) -> Result<MutexGuard<'_, Inner>, VcpuError> {
        // The lock alone does not say it: a thread that was just started has not taken it yet.
        if self.phase() == Phase::Running {
            return Err(VcpuError::NotParked { id: self.id(), phase: Phase::Running });
        }
        match self.shared.inner.try_lock() {
            Ok(guard) => Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                Err(VcpuError::NotParked { id: self.id(), phase: self.phase() })
            }
        }
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        self.shared.control.ask_exit();
        self.kick();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of vCPU {} panicked", self.shared.id);
        }
    }
}
