//! What the set asks of a device. [`Instance`](drogher_plugin_host::Instance) is one; tests have
//! others, which fail at will.

use std::sync::Arc;

use drogher_plugin_host::{DeviceInfo, ParamInfo, PrecopyInfo, Read, State, StateFormat};
use drogher_tracking::{DeviceLog, LogCaps, PinBoard, Pins, Preference};

use super::error::Fault;

/// Who made a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginName {
    /// Id, the same for ever.
    pub id: String,
    /// Version for people.
    pub version: String,
    /// ABI major.
    pub abi_major: u32,
    /// ABI minor.
    pub abi_minor: u32,
}

/// What a device is; constant.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Who made it.
    pub plugin: PluginName,
    /// What it looks like on the bus.
    pub info: DeviceInfo,
    /// What its migration can do, if it can.
    pub migration: Option<StateFormat>,
    /// It can be kept from all DMA while it runs.
    pub ndma: bool,
}

/// What a device brings for the tracking of its writes; constant.
#[derive(Clone, Default)]
pub struct Tracking {
    /// Its own log.
    pub log: Option<(LogCaps, Arc<dyn DeviceLog>)>,
    /// Which of its writes go to memory that it has pinned.
    pub pins: Pins,
    /// Where it pins, if it does.
    pub pin_board: Option<Arc<PinBoard>>,
    /// What its plugin prefers.
    pub preference: Option<Preference>,
}

/// One device. Calls may come from any thread and overlap; the endpoint serialises them, and each
/// ends by a deadline of its own.
pub trait Endpoint: Send + Sync {
    /// What it is.
    fn shape(&self) -> &Shape;
    /// Reads a region, 1 to 8 bytes.
    fn region_read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Fault>;
    /// Writes a region, 1 to 8 bytes.
    fn region_write(&self, region: u32, offset: u64, data: &[u8]) -> Result<(), Fault>;
    /// Reads the device-specific area of configuration space.
    fn config_read(&self, offset: u32, data: &mut [u8]) -> Result<(), Fault>;
    /// Writes it.
    fn config_write(&self, offset: u32, data: &[u8]) -> Result<(), Fault>;
    /// Reads the device's own bytes of a capability below 0x100.
    fn cap_read(&self, cap: u32, offset: u32, data: &mut [u8]) -> Result<(), Fault> {
        let _ = data;
        Err(format!("no byte {offset} in capability {cap}").into())
    }
    /// Writes them.
    fn cap_write(&self, cap: u32, offset: u32, data: &[u8]) -> Result<(), Fault> {
        let _ = data;
        Err(format!("no byte {offset} in capability {cap}").into())
    }
    /// A doorbell was rung.
    fn doorbell(&self, index: u32) -> Result<(), Fault>;
    /// Back to power-on, also out of ERROR and NDMA; in STOP on return.
    fn reset(&self) -> Result<(), Fault>;
    /// Why the device is in ERROR, if it is.
    fn failed(&self) -> Option<String>;
    /// The state it is in.
    fn state(&self) -> State;
    /// Goes to a state over as many arcs as it takes.
    fn go(&self, state: State) -> Result<(), Fault>;
    /// Enters or leaves NDMA. Only called if [`Shape::ndma`].
    fn set_ndma(&self, on: bool) -> Result<(), Fault>;
    /// What pre-copy could read now.
    fn precopy_info(&self) -> Result<PrecopyInfo, Fault>;
    /// Bytes that STOP_COPY would give now.
    fn stop_copy_bytes(&self) -> Result<u64, Fault>;
    /// Reads state in a saving state.
    fn read_state(&self, buf: &mut [u8]) -> Result<Read, Fault>;
    /// Writes state in RESUMING.
    fn write_state(&self, data: &[u8]) -> Result<(), Fault>;
    /// Every effective parameter, also those left at their default.
    fn params(&self) -> Result<Vec<(String, String)>, Fault>;
    /// The parameters that its plugin describes.
    fn param_infos(&self) -> Vec<ParamInfo> {
        Vec::new()
    }
    /// Sets one while the device lives.
    fn set_param(&self, name: &str, value: &str) -> Result<(), Fault> {
        Err(format!("{name}={value}: this plugin has no parameters").into())
    }
    /// What it brings for its tracking.
    fn tracking(&self) -> Tracking {
        Tracking::default()
    }
}
