//! What the engine asks of a machine. The engine knows no KVM and no devices: everything that it
//! wants done to a guest is a method here.
//!
//! All methods are called on the one thread that drives this side of the migration. Pages are
//! guest page numbers (GPA >> 12); every range is half-open and lies within one region of
//! [`ConfigBlock::memory`]. Devices are named by their index in [`ConfigBlock::devices`].

use std::ops::Range;
use std::time::Duration;

use drogher_iommu_types::DirtyBitmap;

use crate::blocker::Blocker;
use crate::config::ConfigBlock;
use crate::lease::Permits;

/// Bytes in a page.
pub const PAGE_SIZE: usize = 4096;

/// Most pages that the engine clears in the vCPU log at once (64 MiB): a clear holds locks that
/// a write fault of the guest waits for.
pub const PIECE_PAGES: u64 = 16_384;

/// How a range of pages begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// So many pages that nothing has ever been written to: zeroes, and reading them would fill the
    /// hole that they are.
    Hole(u64),
    /// So many pages that may hold anything.
    Data(u64),
}

impl Extent {
    /// The same within `pages`, of which there is one at least; never empty.
    pub(crate) fn within(self, pages: u64) -> Self {
        match self {
            Self::Hole(hole) if hole > 0 => Self::Hole(hole.min(pages)),
            Self::Hole(_) => Self::Data(pages),
            Self::Data(data) => Self::Data(data.clamp(1, pages)),
        }
    }
}

/// Which harvest of the vCPU log this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Harvest {
    /// vCPUs run. The log is only read; [`SourceHost::clear_vcpu_log`] clears it, piece by piece.
    Round,
    /// vCPUs and devices stand. The log is read and cleared as in a round, once.
    Final,
    /// Everything is saved. Pages written since the final harvest; nothing clears the log afterwards.
    /// Reporting more is allowed, but costs downtime.
    Last,
}

/// What reading device state gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceRead {
    /// So many bytes, at least one, are at the front of the buffer.
    Bytes(usize),
    /// Pre-copy only: nothing more for now.
    NoMoreNow,
    /// The end of the stream, for ever.
    End,
}

/// What stopping the vCPUs found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paused {
    /// The user had paused the VM: it arrives paused.
    pub by_user: bool,
    /// The guest has reset itself or shut down meanwhile: there is nothing to move any more.
    pub ended: Option<GuestEnd>,
}

/// How a guest ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestEnd {
    /// It has switched itself off.
    Shutdown,
    /// It has reset itself.
    Reset,
    /// It has died: triple fault, or an error of the hypervisor.
    Crash,
}

impl std::fmt::Display for GuestEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Shutdown => "shut down",
            Self::Reset => "reset itself",
            Self::Crash => "crashed",
        })
    }
}

/// State bytes that devices still have to send, by their own word.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DevicePending {
    /// Bytes that pre-copy can still take out now.
    pub precopy_bytes: u64,
    /// Bytes that have to be sent after the stop.
    pub stop_copy_bytes: u64,
}

/// A hash over one part of the state besides RAM, for `--verify`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDigest {
    /// What it is of, the same on both sides: a device's slot, `vcpu0`, `clock`.
    pub name: String,
    /// The hash, of state as it was read from the device or vCPU now, not of what was sent.
    pub hash: u64,
}

/// The machine of the source.
///
/// Any method may fail; the engine then rolls back: [`resume`](Self::resume) if the stop had
/// begun, [`track_stop`](Self::track_stop) if tracking had been started. Neither depends on how
/// far the failed call came.
pub trait SourceHost {
    /// Why a call failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// What the destination must be able to build. The engine fills in lease and epoch.
    fn config(&mut self) -> Result<ConfigBlock, Self::Error>;

    /// Switches dirty logs on, for vCPUs and DMA, and moves devices to pre-copy. From its return
    /// on every write to guest memory is logged.
    fn track_start(&mut self) -> Result<(), Self::Error>;

    /// All of RAM has been sent once; the rounds begin. Called before the first
    /// [`harvest_dma`](Self::harvest_dma).
    fn rounds_begin(&mut self) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Switches them off again, also half-started ones. Called with the guest running.
    fn track_stop(&mut self) -> Result<(), Self::Error>;

    /// ORs the vCPU dirty log of one region (index in [`ConfigBlock::memory`]) into `into`, which
    /// covers the region's pages. Clears nothing in `into`.
    fn harvest_vcpus(
        &mut self,
        kind: Harvest,
        region: usize,
        into: &DirtyBitmap,
    ) -> Result<(), Self::Error>;

    /// Reads and clears the dirty state of all DMA to one region and ORs it into `into`; returns
    /// only when accesses that began before the clear have finished (clear, invalidate, drain).
    fn harvest_dma(&mut self, region: usize, into: &DirtyBitmap) -> Result<(), Self::Error>;

    /// Clears, in the vCPU log, what the last [`harvest_vcpus`](Self::harvest_vcpus) returned for
    /// `pages`: at most [`PIECE_PAGES`], from a multiple of 64. The engine copies the dirty pages
    /// of the piece next. A log that is cleared by reading it has nothing to do here.
    fn clear_vcpu_log(&mut self, region: usize, pages: Range<u64>) -> Result<(), Self::Error>;

    /// How `pages` begin: as a hole in the memory file, or with contents. Asked in the bulk pass, and
    /// for `--verify`: what is dirty is no hole.
    fn extent(&mut self, pages: Range<u64>) -> Extent {
        Extent::Data(pages.end - pages.start)
    }

    /// Copies guest memory from page `first` on; `buf` is a whole number of pages. The guest may
    /// be writing to them.
    fn read_ram(&mut self, first: u64, buf: &mut [u8]) -> Result<(), Self::Error>;

    /// State bytes that devices still have, all together.
    fn device_pending(&mut self) -> Result<DevicePending, Self::Error>;

    /// Takes pre-copy data of one device; devices without pre-copy say `NoMoreNow` at once.
    fn device_precopy(&mut self, device: usize, buf: &mut [u8]) -> Result<DeviceRead, Self::Error>;

    /// What the stop costs besides moving bytes (vCPUs, devices, loading), as far as the machine
    /// knows it from earlier or by design.
    fn fixed_downtime(&mut self) -> Duration {
        Duration::from_millis(1)
    }

    /// Stops the vCPUs, with pending PIO and MMIO completed, within a bounded time. From now until
    /// [`resume`](Self::resume) the machine answers pause and resume requests with "busy".
    fn pause_vcpus(&mut self) -> Result<Paused, Self::Error>;

    /// All devices to P2P and NDMA.
    fn quiesce(&mut self) -> Result<(), Self::Error>;

    /// All devices to STOP; timers, fd watches and I/O threads parked; doorbells read out; irqfds
    /// off. Every lease permit is given back. Nothing writes guest memory from here on, except
    /// the saving of state.
    fn stop(&mut self) -> Result<(), Self::Error>;

    /// Reads the state of one stopped device. Pre-copy data taken before and this are one stream.
    fn device_state(&mut self, device: usize, buf: &mut [u8]) -> Result<DeviceRead, Self::Error>;

    /// Appends the state of vCPUs, interrupt controllers, clock and PCI to `out`, which has been
    /// reserved to [`ConfigBlock::max_machine_state`]. Called after all devices.
    fn machine_state(&mut self, out: &mut Vec<u8>) -> Result<(), Self::Error>;

    /// For `--verify`: hashes of everything besides RAM.
    fn state_digests(&mut self, out: &mut Vec<StateDigest>) -> Result<(), Self::Error>;

    /// Rolls back from any point of the stop: devices, irqfds and vCPUs go on, each with a new
    /// permit; a VM that the user had paused stays paused. The lease is held, its epoch raised.
    fn resume(&mut self, permits: &Permits) -> Result<(), Self::Error>;
}

/// The machine of the destination.
pub trait DestinationHost {
    /// Why a call failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Every reason why this machine cannot take this guest; empty if it can. Loads nothing that
    /// the peer chose: plugins are found by their ids.
    fn check(&mut self, config: &ConfigBlock) -> Vec<Blocker>;

    /// Builds all that is slow to build: VM, irqchip, slots, RAM, plugins, irqfds, ioeventfds and
    /// parked vCPU threads. RAM reads as zeroes.
    fn prepare(&mut self, config: &ConfigBlock) -> Result<(), Self::Error>;

    /// Where these pages lie in this process, if what they are to hold may be received right there; else it
    /// is received elsewhere and goes through [`write_ram`](Self::write_ram). Only before
    /// [`run`](Self::run): nobody else touches guest memory then.
    fn ram_mut(&mut self, _pages: Range<u64>) -> Option<&mut [u8]> {
        None
    }

    /// Stores pages from page `first` on; `data` is a whole number of pages.
    fn write_ram(&mut self, first: u64, data: &[u8]) -> Result<(), Self::Error>;

    /// Makes pages that may have been written before read as zeroes.
    fn zero_ram(&mut self, pages: Range<u64>) -> Result<(), Self::Error>;

    /// The source has sent round `round` (0 is the bulk pass). What has come is mapped at the end
    /// of the bulk pass at the latest, so that neither a later round nor the guest faults it in.
    fn round_done(&mut self, round: u32) -> Result<(), Self::Error>;

    /// Takes a piece of one device's state, in order.
    fn load_device(&mut self, device: usize, data: &[u8]) -> Result<(), Self::Error>;

    /// One device's state is complete: RESUMING to STOP, which checks it.
    fn finish_device(&mut self, device: usize) -> Result<(), Self::Error>;

    /// Sets the state of vCPUs, interrupt controllers, clock and PCI. What is left to
    /// [`run`](Self::run) cannot fail for a reason that lies in the state.
    fn load_machine(&mut self, state: &[u8]) -> Result<(), Self::Error>;

    /// For `--verify`: as [`SourceHost::extent`].
    fn extent(&mut self, pages: Range<u64>) -> Extent {
        Extent::Data(pages.end - pages.start)
    }

    /// For `--verify`: copies guest memory out again.
    fn read_ram(&mut self, first: u64, buf: &mut [u8]) -> Result<(), Self::Error>;

    /// For `--verify`: hashes of everything besides RAM, named and made as the source's.
    fn state_digests(&mut self, out: &mut Vec<StateDigest>) -> Result<(), Self::Error>;

    /// Starts devices and vCPUs, each with a permit; with `paused` vCPUs stay parked until the
    /// user resumes. The lease is held, its epoch raised.
    fn run(&mut self, permits: &Permits, paused: bool) -> Result<(), Self::Error>;
}
