//! The trait that a plugin implements.

use crate::{
    DeviceInfo, Failure, Host, LogCaps, LogReport, LogStart, ParamSpec, Params, PinKind,
    PrecopyInfo, Preference, Read, State, StateFormat,
};

/// A device.
///
/// Calls into one instance never overlap, but come from no fixed thread, and each has a deadline
/// (about 2 s; 5 s for state changes, reset and NDMA): a late device is given up. Work that takes
/// longer belongs on a worker ([`Host::spawn`]).
///
/// A panic, in a call or on a worker of [`Host::spawn`], and [`Host::fail`] move the device to ERROR; a
/// reset then drops the value and creates it anew, with the parameters as they are.
///
/// An instance begins as after power-on, in [`State::Stop`]: no DMA and no interrupt before
/// `set_state` lets it run.
pub trait Device: Sized + Send + 'static {
    /// The states and the format of the saved state; `None`: the device cannot be migrated.
    const MIGRATION: Option<StateFormat> = None;
    /// Has `enter_ndma` and `leave_ndma`.
    const NDMA: bool = false;
    /// The parameters.
    const PARAMS: &'static [ParamSpec] = &[];

    /// Makes an instance. `params` holds every parameter of [`Self::PARAMS`], checked, with its
    /// default where none was given.
    fn create(host: Host, params: &Params) -> Result<Self, Failure>;

    /// What the device is. Asked once, after `create`.
    fn info(&self) -> DeviceInfo;

    /// Back to power-on contents: out of NDMA, sessions dropped, pending doorbells forgotten. The
    /// state is [`State::Stop`] afterwards and nothing runs on return.
    fn reset(&mut self) -> Result<(), Failure>;

    /// Reads from a region (1 to 8 bytes, little endian, inside the region, any alignment). `data`
    /// is zeroed. A failure makes the guest read all ones.
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Failure> {
        let _ = (region, offset, data);
        Err(Failure::unsupported("No regions"))
    }

    /// Writes to a region.
    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Failure> {
        let _ = (region, offset, data);
        Err(Failure::unsupported("No regions"))
    }

    /// Doorbell number `index` was rung, once or more. In NDMA, STOP and STOP_COPY: latch it; it is
    /// then part of the state.
    fn doorbell(&mut self, index: u32) -> Result<(), Failure> {
        let _ = index;
        Err(Failure::unsupported("No doorbells"))
    }

    /// Reads from the device-specific configuration area; `offset` in the configuration space.
    fn config_read(&mut self, offset: u32, data: &mut [u8]) -> Result<(), Failure> {
        let _ = (offset, data);
        Err(Failure::unsupported("No configuration area"))
    }

    /// Writes to the device-specific configuration area.
    fn config_write(&mut self, offset: u32, data: &[u8]) -> Result<(), Failure> {
        let _ = (offset, data);
        Err(Failure::unsupported("No configuration area"))
    }

    /// Goes from `from` to `to`, one legal arc of [`Self::MIGRATION`], completely before returning.
    /// On return of STOP and STOP_COPY no access is in flight and no worker runs. `Resuming` to
    /// `Stop` checks and takes what was written. A failure must leave `from`, unless it is fatal.
    fn set_state(&mut self, from: State, to: State) -> Result<(), Failure> {
        let _ = (from, to);
        Err(Failure::unsupported("No migration"))
    }

    /// In the pre-copy states only.
    fn precopy_info(&mut self) -> Result<PrecopyInfo, Failure> {
        Err(Failure::unsupported("No pre-copy"))
    }

    /// Estimate of the bytes that STOP_COPY would give now. In any state.
    fn stop_copy_size(&mut self) -> Result<u64, Failure> {
        Err(Failure::unsupported("No migration"))
    }

    /// Reads the next state data, in the saving states only. All data of one session are one byte
    /// stream: the destination may get it cut differently.
    fn read_state(&mut self, data: &mut [u8]) -> Result<Read, Failure> {
        let _ = data;
        Err(Failure::unsupported("No migration"))
    }

    /// Takes the next state data, in RESUMING only. Trust nothing in them.
    fn write_state(&mut self, data: &[u8]) -> Result<(), Failure> {
        let _ = data;
        Err(Failure::unsupported("No migration"))
    }

    /// No DMA and no interrupt from the return of this on, until `leave_ndma` or `reset`, over all
    /// state changes. Registers answer, doorbells latch.
    fn enter_ndma(&mut self) -> Result<(), Failure> {
        Err(Failure::unsupported("No NDMA"))
    }

    /// DMA may start again; latched doorbells are served if the device runs.
    fn leave_ndma(&mut self) -> Result<(), Failure> {
        Err(Failure::unsupported("No NDMA"))
    }

    /// Whether it has NDMA, for devices of which some have and some have not; asked once.
    fn has_ndma(&self) -> bool {
        Self::NDMA
    }

    /// What its own log can do, if it has one; asked once. Such a device makes its writes with
    /// [`Host::dma_write_logged`] or to pinned memory.
    fn log_caps(&self) -> Option<LogCaps> {
        None
    }

    /// Begins to log writes to these ranges; returns the tracking page size that it takes. Bits are set
    /// after the store. No state of the device begins or ends it but a reset.
    fn log_start(&mut self, start: LogStart) -> Result<u64, Failure> {
        let _ = start;
        Err(Failure::unsupported("No log"))
    }

    /// Moves what was logged from `gpa` on into `report`.
    fn log_report(&mut self, gpa: u64, report: &mut LogReport<'_>) -> Result<(), Failure> {
        let _ = (gpa, report);
        Err(Failure::unsupported("No log"))
    }

    /// Ends logging, and lets go of the host's bitmap.
    fn log_stop(&mut self) -> Result<(), Failure> {
        Err(Failure::unsupported("No log"))
    }

    /// Whether and how it pins; asked once. What is pinned to write has to be given back before
    /// `set_state` returns STOP, STOP_COPY or RESUMING.
    fn pin_kind(&self) -> Option<PinKind> {
        None
    }

    /// This range of IOVA is about to be unmapped: gives back every pin that overlaps it.
    fn unmap(&mut self, iova: u64, len: u64) -> Result<(), Failure> {
        let _ = (iova, len);
        Err(Failure::unsupported("No pins"))
    }

    /// How its DMA is best tracked, if it minds; asked once.
    fn preference(&self) -> Option<Preference> {
        None
    }

    /// A parameter with `runtime` was set to a checked value; `params` holds all, the new value
    /// already in place. On failure the old value stays.
    fn param_set(&mut self, name: &str, params: &Params) -> Result<(), Failure> {
        let _ = params;
        Err(Failure::unsupported(format!("Parameter {name} cannot be set")))
    }
}
