//! Why a machine fails the engine.

use drogher_migrate::BlockerList;

use super::guest::GuestError;
use crate::device::DeviceError;
use crate::dirty_log::DirtyLogError;
use crate::machine::MachineError;
use crate::memory::MemoryError;
use crate::record::StateError;
use crate::tracking::TrackingError;
use crate::vcpu::cpuid::UnknownCpu;
use crate::vm::VmError;

/// Why a machine could not do what the engine asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The machine.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Starting or stopping the guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The tracking of the devices' DMA.
    #[error(transparent)]
    Tracking(Box<TrackingError>),
    /// The guest cannot be moved; every reason, one a line.
    #[error("This guest cannot be moved:\n{0}")]
    Blocked(BlockerList),
    /// The log of the vCPUs' writes.
    #[error(transparent)]
    DirtyLog(#[from] DirtyLogError),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// vCPU or interrupt controller state.
    #[error(transparent)]
    State(#[from] StateError),
    /// KVM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A page that is no RAM.
    #[error("{bytes} bytes at GPA {gpa:#x} are not RAM")]
    NotRam {
        /// The first byte.
        gpa: u64,
        /// How many.
        bytes: usize,
    },
    /// A RAM region that there is not.
    #[error("There is no RAM region {0}")]
    NoRegion(usize),
    /// Something arrived before the machine was built, or a second machine was asked for.
    #[error("No machine has been built for this guest, or a second one was asked for")]
    NotBuilt,
    /// More vCPUs than a number of vCPUs can say.
    #[error("{0} vCPUs")]
    Cpus(u32),
    /// A CPU model that there is not here.
    #[error(transparent)]
    CpuModel(#[from] UnknownCpu),
    /// RAM is laid out otherwise here.
    #[error("The guest's RAM is laid out in a way that this build does not have")]
    Layout,
    /// There is more machine state than there should be.
    #[error("{0} bytes of machine state are left over")]
    Leftover(usize),
    /// Parts of the machine state are missing.
    #[error("The machine state of {bytes} bytes ends inside its {part} part")]
    Truncated {
        /// Bytes of state.
        bytes: usize,
        /// Which part.
        part: &'static str,
    },
}

impl From<TrackingError> for HostError {
    fn from(error: TrackingError) -> Self {
        Self::Tracking(Box::new(error))
    }
}
