//! What can go wrong with the set of devices.

use std::time::Duration;

use thiserror::Error;

use drogher_tracking::SpaceError;

use super::keys::KeyError;
use super::stream::FrameError;
use crate::io_thread::IoError;
use crate::pci::{ConfigError, StateError, WindowFull};
use crate::tracking::SpacesError;
use crate::wiring::WiringError;

/// An error of a plugin or its host, as a cause.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// Why something about a device failed. `device` is its label: `00:01.0 plugin-id`, or before it
/// has one, the name or path that the user gave.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// There is no such plugin, or it cannot be used.
    #[error("Cannot load plugin {device:?}")]
    Load {
        /// Name or path.
        device: String,
        /// What the loader said.
        #[source]
        source: Fault,
    },
    /// The plugin made no device.
    #[error("Plugin {device:?} did not make a device")]
    Create {
        /// Name or path.
        device: String,
        /// What it said.
        #[source]
        source: Fault,
    },
    /// What its source says of it to the VMM is unknown here.
    #[error("Device {device}")]
    Key {
        /// The device.
        device: String,
        /// What.
        source: Box<KeyError>,
    },
    /// A wire for a port that the device does not have.
    #[error(
        "{device} has {count} Ethernet ports, so {key} means nothing to it; leave it out, or name a device that has some"
    )]
    NoPort {
        /// The device.
        device: String,
        /// The key.
        key: &'static str,
        /// Ports that it has.
        count: u32,
    },
    /// A wire that cannot be had.
    #[error("{device}: its wire cannot be had")]
    Wire {
        /// The device.
        device: String,
        /// Why.
        source: Box<drogher_wires::WireError>,
    },
    /// Two devices are called the same.
    #[error("{device}: the name {name:?} is taken by {other}; give each device another vm.name")]
    Name {
        /// The second device.
        device: String,
        /// The name.
        name: String,
        /// The first.
        other: String,
    },
    /// Its address space cannot be had.
    #[error("{device}: no address space")]
    Space {
        /// The device.
        device: String,
        /// Why not.
        #[source]
        source: Box<SpacesError>,
    },
    /// It is to enter NDMA early, and has none.
    #[error("{device} has no NDMA, and cannot enter it early; leave it out of early NDMA")]
    NoNdma {
        /// The device.
        device: String,
    },
    /// Tracking does not follow the device.
    #[error("{device}: its tracking does not follow it {what}")]
    Tracking {
        /// The device.
        device: String,
        /// Where to.
        what: &'static str,
        /// Why not.
        #[source]
        source: Box<SpaceError>,
    },
    /// More devices than bus 0 has slots.
    #[error("{count} devices; bus 0 has room for {max}")]
    TooMany {
        /// Devices asked for.
        count: usize,
        /// Slots for devices.
        max: usize,
    },
    /// A region that this machine cannot map.
    #[error("{device}: region {index} has flags {flags:#x}; only memory regions can be mapped")]
    Region {
        /// The device.
        device: String,
        /// Region index.
        index: u32,
        /// Its flags.
        flags: u32,
    },
    /// What the plugin describes does not fit into a type-0 header.
    #[error("{device}: its description fits no PCI function")]
    Config {
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// The BARs do not fit into the MMIO window.
    #[error("{device}: no place for its BARs")]
    Window {
        /// The device.
        device: String,
        /// Why.
        #[source]
        source: WindowFull,
    },
    /// The machine refused an interrupt, doorbell or range.
    #[error("{device}: cannot {what}")]
    Wiring {
        /// The device.
        device: String,
        /// What was asked of the machine.
        what: &'static str,
        /// Its answer.
        #[source]
        source: WiringError,
    },
    /// The I/O thread refused a doorbell.
    #[error("{device}: cannot watch doorbell {index}")]
    Watch {
        /// The device.
        device: String,
        /// Doorbell index.
        index: usize,
        /// What the thread said.
        #[source]
        source: IoError,
    },
    /// No eventfd could be made or duplicated.
    #[error("{device}: no file descriptor for doorbell {index}")]
    Eventfd {
        /// The device.
        device: String,
        /// Doorbell index.
        index: usize,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A call into the device failed.
    #[error("{device}: {what} failed")]
    Call {
        /// The device.
        device: String,
        /// Which call, with the state it was to lead to.
        what: String,
        /// What it answered.
        #[source]
        source: Fault,
    },
    /// The device is in ERROR; it is not called any more until it is reset.
    #[error("{device} is in ERROR ({reason}); reset or remove it")]
    Failed {
        /// The device.
        device: String,
        /// Why it went there.
        reason: String,
    },
    /// The device has no migration extension.
    #[error("{device} cannot be migrated: its plugin has no migration extension")]
    NotMigratable {
        /// The device.
        device: String,
    },
    /// A call that makes no sense in this state of the device.
    #[error("{device}: {what} is not possible in state {state}")]
    WrongState {
        /// The device.
        device: String,
        /// What was asked for.
        what: &'static str,
        /// The state it is in.
        state: String,
    },
    /// The device sent more than it had announced.
    #[error("{device}: {sent} bytes of state, {max} were announced")]
    TooMuchState {
        /// The device.
        device: String,
        /// Bytes sent or received.
        sent: u64,
        /// Most bytes allowed.
        max: u64,
    },
    /// The buffer for state is too small for any.
    #[error("A buffer of {len} bytes holds no device state")]
    Buffer {
        /// Its length.
        len: usize,
    },
    /// The stream of a device's state is damaged.
    #[error("{device}: damaged state")]
    Frame {
        /// The device.
        device: String,
        /// Where.
        #[source]
        source: FrameError,
    },
    /// The host-owned state of a device, or of the bus, was refused.
    #[error("{device}: PCI state refused")]
    State {
        /// The device, or "bus".
        device: String,
        /// Why.
        #[source]
        source: StateError,
    },
    /// No permit to run.
    #[error("{device} may not run")]
    Permit {
        /// The device.
        device: String,
        /// Why not.
        #[source]
        source: Fault,
    },
    /// What other devices have sent to one did not arrive within the grace phase.
    #[error(
        "{device} has not got {writes} writes of other devices within {longest:?}; \
         the guest goes on, try again, or reset the device"
    )]
    Grace {
        /// The device that they are for.
        device: String,
        /// How many.
        writes: usize,
        /// Length of the phase.
        longest: Duration,
    },
    /// A device is to be saved without what other devices have sent to it.
    #[error("{device} stands, and has not got {writes} writes of other devices; let it run on")]
    Undelivered {
        /// The device that they are for.
        device: String,
        /// How many.
        writes: usize,
    },
    /// A device was to write to itself.
    #[error("{device} cannot be its own peer; name another device")]
    OwnPeer {
        /// The device.
        device: String,
    },
    /// There is no thread to deliver to a device.
    #[error("{device}: no thread for what other devices send to it")]
    PeerThread {
        /// The device.
        device: String,
        /// The operating system's answer.
        #[source]
        source: std::io::Error,
    },
    /// A device is to write to one that there is not.
    #[error("{device}: vm.peers names {name:?}; devices with a vm.name are: {known}")]
    NoPeer {
        /// The device.
        device: String,
        /// As given.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// A name that is no device's.
    #[error("There is no device {asked:?}; there are: {known}")]
    NoSuchDevice {
        /// As asked for.
        asked: String,
        /// All devices.
        known: String,
    },
    /// A plugin that several devices are of.
    #[error("{asked:?} could be any of {found}; say which by its address or its vm.name")]
    SeveralDevices {
        /// As asked for.
        asked: String,
        /// Those devices.
        found: String,
    },
    /// There is no device of this index.
    #[error("There is no device {0}")]
    NoDevice(usize),
}
