//! What devices ask of the machine: interrupts, doorbells, bus ranges, guest RAM, fd watches.
//!
//! The `pci` and `device` modules see the machine through [`Wiring`] only. [`Vm`](crate::vm::Vm)
//! implements it; tests may implement it over plain memory.

use std::ops::Range;
use std::sync::Arc;

use vm_device::{DeviceMmio, DevicePio};
use vmm_sys_util::eventfd::EventFd;

use crate::io_thread::IoHandle;
use crate::memory::GuestRam;

/// Why the machine could not do what a device asked for.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// KVM refused a request.
    #[error("KVM refused to {what}")]
    Kvm {
        /// What was asked for, with its address or GSI.
        what: String,
        /// KVM's answer.
        #[source]
        source: std::io::Error,
    },
    /// Another device has (part of) this range.
    #[error("the {bus} range {start:#x}..{end:#x} is taken or empty")]
    Range {
        /// "MMIO" or "PIO".
        bus: &'static str,
        /// First address.
        start: u64,
        /// One past the last address.
        end: u64,
    },
    /// No device was claimed at this address.
    #[error("nothing is claimed at {bus} address {base:#x}")]
    NotClaimed {
        /// "MMIO" or "PIO".
        bus: &'static str,
        /// The base address asked for.
        base: u64,
    },
    /// All GSIs are in use.
    #[error("all {0} interrupt routes are in use")]
    NoGsi(usize),
    /// The GSI is not one that `new_msi_vector` gave out.
    #[error("GSI {0} is no MSI line of this machine")]
    UnknownGsi(u32),
}

/// The address, and so the message data, of a message-signalled interrupt (PCI 3.0, 6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address; the upper 32 bits are zero on ordinary guests.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// One MSI line: writing 1 to `fd` sends the message that [`Wiring::set_msi_routes`] last gave
/// it, while the line is attached. An unattached line only counts in its eventfd.
#[derive(Debug)]
pub struct MsiLine {
    /// Global system interrupt, unique in this machine; 24 and above.
    pub gsi: u32,
    /// The eventfd bound to it, non-blocking.
    pub fd: EventFd,
}

/// A guest address whose writes ring an eventfd without leaving the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DoorbellAt {
    /// GPA.
    pub address: u64,
    /// Access width in bytes: 1, 2, 4 or 8; 0 for any width.
    pub width: u32,
}

/// What a device may ask of the machine. All functions may be called from any thread and do not
/// call into devices. None is meant for the blackout but `attach`, `detach` and `set_msi_routes`.
pub trait Wiring: Send + Sync {
    /// Binds guest writes at an MMIO address to `fd`.
    ///
    /// # Errors
    /// KVM's, with the address; EEXIST if the address is bound already.
    fn register_ioeventfd(&self, at: DoorbellAt, fd: &EventFd) -> Result<(), WiringError>;

    /// Undoes [`register_ioeventfd`](Self::register_ioeventfd) with the same arguments. When it
    /// returns, no further write reaches `fd`; what was rung before stays readable in it.
    ///
    /// # Errors
    /// KVM's, with the address.
    fn unregister_ioeventfd(&self, at: DoorbellAt, fd: &EventFd) -> Result<(), WiringError>;

    /// Makes a new MSI line, not attached and without a route.
    ///
    /// # Errors
    /// No free GSI, or no eventfd.
    fn new_msi_vector(&self) -> Result<MsiLine, WiringError>;

    /// Sets the messages of several lines at once (one update of KVM's routing table).
    /// `None` takes a line's route away: what is then written to its attached fd is lost.
    ///
    /// # Errors
    /// An unknown GSI (then nothing was changed), or KVM's.
    fn set_msi_routes(&self, routes: &[(u32, Option<MsiMessage>)]) -> Result<(), WiringError>;

    /// Sets the message of one line.
    ///
    /// # Errors
    /// As [`set_msi_routes`](Self::set_msi_routes).
    fn set_msi_route(&self, gsi: u32, message: MsiMessage) -> Result<(), WiringError> {
        self.set_msi_routes(&[(gsi, Some(message))])
    }

    /// Binds the line's eventfd to its GSI (irqfd). What the fd counted before is delivered.
    ///
    /// # Errors
    /// KVM's, with the GSI.
    fn attach_msi(&self, line: &MsiLine) -> Result<(), WiringError>;

    /// Unbinds the line's eventfd. When it returns, every write made before has been delivered
    /// to the interrupt controllers, and later ones only count in the fd.
    ///
    /// # Errors
    /// KVM's, with the GSI.
    fn detach_msi(&self, line: &MsiLine) -> Result<(), WiringError>;

    /// Gives a detached line's GSI back.
    ///
    /// # Errors
    /// An unknown GSI, or KVM's.
    fn remove_msi_vector(&self, line: MsiLine) -> Result<(), WiringError>;

    /// Routes guest accesses inside `range` to `device` (called on the vCPU's thread, without
    /// any lock of the bus held, so a device may move its own range).
    ///
    /// # Errors
    /// The range is empty or overlaps another one.
    fn claim_mmio(
        &self,
        range: Range<u64>,
        device: Arc<dyn DeviceMmio + Send + Sync>,
    ) -> Result<(), WiringError>;

    /// Moves the range claimed at base `from` to base `to` (a BAR was written). An access that
    /// another vCPU had begun before may still arrive with its old offset.
    ///
    /// # Errors
    /// Nothing is claimed at `from`, or the new place overlaps; then the old one stays.
    fn move_mmio(&self, from: u64, to: u64) -> Result<(), WiringError>;

    /// Takes the range claimed at `base` away.
    ///
    /// # Errors
    /// Nothing is claimed there.
    fn release_mmio(&self, base: u64) -> Result<(), WiringError>;

    /// Routes guest port accesses inside `range` to `device`.
    ///
    /// # Errors
    /// The range is empty or overlaps another one.
    fn claim_pio(
        &self,
        range: Range<u16>,
        device: Arc<dyn DevicePio + Send + Sync>,
    ) -> Result<(), WiringError>;

    /// The thread that watches file descriptors (doorbells).
    fn io(&self) -> &IoHandle;

    /// Guest RAM.
    fn ram(&self) -> &Arc<GuestRam>;
}
